"""A Kafka consumer of one topic: log starts and ends, first offsets to read, and the events that end a read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fraud_assets.errors import BrokerError
from fraud_assets.kafka.broker import Broker, find_broker
from fraud_assets.kafka.client import missing_topic_error
from fraud_assets.kafka.consumer_config import build_consumer_config
from fraud_assets.kafka.loss_rules import find_first_readable_offset, messages_ahead_error, messages_lost_error
from fraud_assets.kafka.unreadable_partitions import UnreadablePartitions, is_end
from fraud_assets.kafka.watermarks import Watermarks
from fraud_assets.lake.positions import Positions, SourcePartition
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message

    from fraud_assets.lake.known_topics import LogStarts

CommittedOffsets = Callable[[Collection[SourcePartition], "LogStarts"], Positions]
"""Returns the last offset of each partition that the lake holds; see `find_positions`."""

POLL_SECONDS = 0.1


def never() -> bool:
    """A `stop` callback that never requests a stop."""
    return False


class TopicClient:
    """A Kafka consumer of one topic. A context manager; it sends the broker no requests between reads.

    Every method can raise `BrokerError` (the broker does not answer, the topic does not exist or was recreated) and
    `MessagesLostError` (the broker no longer has messages that did not land).

    Args:
        topic: Name of the topic.
        settings: The connection to the broker, and the limits of a batch.
        broker: The broker; found from the settings if None.
        group: Name of the consumer group.

    Attributes:
        accepted: Per `topic/partition`, the lost offsets that FRAUD_ACCEPT_LOST gives up.
        consumer: librdkafka's consumer; None after `close`.
        watermarks: Partitions, log starts and log ends, as the broker reports them.
        faults: The partitions that the client cannot read.
    """

    def __init__(self, topic: str, settings: Settings, broker: Broker | None = None, group: str = "") -> None:
        from confluent_kafka import Consumer

        self.topic = topic
        self.settings = settings
        self.broker = broker or find_broker(settings)
        self.group = group or "fraud-assets"
        self.accepted: dict[str, str] = {}
        self.watermarks = Watermarks(topic, settings, self.broker, lambda: self.consumer)
        self.faults = UnreadablePartitions(topic, self.broker)
        self._assigned_from: Mapping[int, int] = {}
        self.consumer: Any = Consumer(build_consumer_config(self.broker, settings, self.group))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_answering(self) -> bool:
        """Whether the broker answered the last request."""
        return self.watermarks.is_answering

    @property
    def unreadable(self) -> Mapping[int, str]:
        """The fault and the fix of each partition that the client cannot read. Safe to call from another thread."""
        return self.faults.sentences

    def close(self, *, wait: bool = True) -> None:
        """Closes the connection and leaves the group, without waiting for an unavailable broker. Safe to repeat."""
        if self.consumer is None:
            return
        references, self.consumer = [self.consumer], None
        in_order = wait and self.is_answering
        # librdkafka waits up to a session time-out for an unavailable broker, both to leave the group and to be
        # destroyed. The broker notices the end of the session by itself, so there is no need to wait.
        thread = threading.Thread(
            target=_close_consumer, args=(references, in_order), name="close a consumer", daemon=True
        )
        thread.start()
        thread.join(self.settings.kafka_timeout_seconds if in_order else POLL_SECONDS)

    def end_offsets(self, stop: Callable[[], bool] = never) -> dict[SourcePartition, int]:
        """Returns, per partition, the offset before the high watermark: the end of a bounded read.

        For an empty partition this is its log start - 1 (-1 if nothing was ever written). Open transactions are not
        included.
        """
        return {source: self.watermarks.high[source.partition] - 1 for source in self._list_sources(stop)}

    def log_starts(self, stop: Callable[[], bool] = never) -> dict[SourcePartition, int] | None:
        """Returns the first offset that the broker has of every partition; None for an embedded broker."""
        if self.broker.embedded:
            return None
        return {source: self.watermarks.low[source.partition] for source in self._list_sources(stop)}

    def first_offsets(
        self,
        committed_offsets: CommittedOffsets,
        stop: Callable[[], bool] = never,
        partitions: Sequence[int] | None = None,
    ) -> dict[SourcePartition, int]:
        """Returns the first offset to read of each partition.

        Callers that read by other means get the same checks as `read` and `follow`.

        Args:
            committed_offsets: Returns the last offset of each partition that the lake holds.
            stop: Polled between requests to the broker; True ends the wait for an answer.
            partitions: Numbers of the partitions; all of the topic if None.
        """
        if partitions is None:
            partitions = self.watermarks.list_partitions(stop)
        topic_id = self.watermarks.fetch_topic_id()
        self.watermarks.update(partitions, stop)
        sources = [SourcePartition(self.topic, topic_id, partition) for partition in partitions]
        return self.offsets_after(committed_offsets(sources, lambda: self.log_starts(stop)))

    def offsets_after(self, committed: Positions) -> dict[SourcePartition, int]:
        """Returns the first offset to read of each partition, given its last landed offset and the current watermarks.

        Raises:
            MessagesLostError: The log starts after the next offset, and FRAUD_ACCEPT_LOST does not give that up.
            BrokerError: The log ends before the last landed offset.
        """
        low, high = self.watermarks.low, self.watermarks.high
        found = find_first_readable_offset(committed, low, high, self.settings.accept_lost)
        self.accepted |= found.given_up
        if found.ahead:
            raise messages_ahead_error(found.ahead, high)
        if found.lost:
            raise messages_lost_error(found.lost, low, self.broker, self.settings)
        return found.first

    def assign(self, first_offsets: Mapping[int, int]) -> None:
        """Assigns partitions to the consumer, each at its first offset, and forgets earlier faults."""
        from confluent_kafka import TopicPartition

        self._assigned_from = first_offsets
        self.faults.clear()
        self.consumer.assign(
            [TopicPartition(self.topic, partition, offset) for partition, offset in first_offsets.items()]
        )

    def is_next_message(self, event: Message, next_offsets: Mapping[int, int]) -> bool:
        """Returns whether an event is a message to deliver, with no unread message of its partition before it.

        Args:
            event: An event of librdkafka: a message, the end of a partition, or an error.
            next_offsets: The next offset of each partition, to report a loss.

        Raises:
            MessagesLostError: The broker dropped messages before they were fetched.
            BrokerError: The topic no longer exists, or the client failed.
        """
        if event.error() is None:
            return not self.faults or self.faults.passes(event.partition())
        self._handle_error(event, next_offsets)
        return False

    def _handle_error(self, event: Message, next_offsets: Mapping[int, int]) -> None:
        from confluent_kafka import KafkaError

        error: KafkaError = event.error()
        code, partition = error.code(), event.partition()
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE) and partition in next_offsets:
            # The broker dropped messages between the request for its log start and the fetch.
            self.watermarks.update([partition], never)
            if self.watermarks.low[partition] <= next_offsets[partition]:
                # Seen on a topic that was just created: the broker refuses an offset that it holds. Nothing is lost.
                raise BrokerError(
                    f"{self.broker.title} refused offset {next_offsets[partition]} of partition {partition} of topic "
                    f"{self.topic!r}, although it holds it. Try again."
                )
            lost = {SourcePartition(self.topic, "", partition): next_offsets[partition] - 1}
            raise messages_lost_error(lost, self.watermarks.low, self.broker, self.settings)
        if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED):
            raise missing_topic_error(self.broker, self.topic, self.settings)
        if error.fatal():
            raise BrokerError(f"Reading topic {self.topic!r} failed: {error.str()}. Restart landing.")
        if is_end(event):
            self.faults.passes(partition)
        elif partition in self._assigned_from:
            # All messages before this offset have been delivered. It is the offset of a batch of messages, and reading
            # may have started in the middle of that batch.
            offset = max(event.offset() or 0, self._assigned_from[partition])
            self.faults.add(partition, offset, error)
        # Other errors (a lost connection, a moving leader) are temporary, or end in the caller's time-out.

    def commit_to_broker(self, reached: Positions) -> None:
        """Commits landed offsets to the broker, for lag monitors only; does not wait for the answer."""
        from confluent_kafka import TopicPartition

        if reached and not self.broker.embedded:
            self.consumer.commit(
                offsets=[TopicPartition(self.topic, source.partition, last + 1) for source, last in reached.items()],
                asynchronous=True,
            )

    def check_topic_id(self, topic_id: str) -> None:
        """Raises `TopicRecreatedError` if the topic now has another id."""
        self.watermarks.check_topic_id(topic_id)

    def _list_sources(self, stop: Callable[[], bool]) -> list[SourcePartition]:
        """Returns all partitions of the topic and updates their watermarks."""
        partitions = self.watermarks.list_partitions(stop)
        topic_id = self.watermarks.fetch_topic_id()
        self.watermarks.update(partitions, stop)
        return [SourcePartition(self.topic, topic_id, partition) for partition in partitions]


def _close_consumer(references: list[Consumer], in_order: bool) -> None:
    """Closes the consumer in order, or destroys it by dropping its only reference."""
    if in_order:
        references[0].close()
    references.clear()
