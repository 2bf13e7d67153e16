"""The one consumer: reads a topic from the positions that the lake holds, in bounded memory.

`read` goes from explicit offsets to explicit ends, with the partitions assigned by hand. `follow` goes on until
it is told to stop, with the partitions that a consumer group deals out among all who follow. In both the lake
says where a partition begins; offsets committed to the broker are a courtesy to lag monitors and never read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from fraud_assets.errors import BrokerError, MessagesLostError
from fraud_assets.kafka.broker import Broker, find_broker
from fraud_assets.kafka.client import missing_topic, unreachable_error
from fraud_assets.kafka.consumer_config import consumer_config
from fraud_assets.kafka.loss_rules import first_readable_offset, messages_ahead, messages_lost
from fraud_assets.kafka.message_batch import Batch
from fraud_assets.kafka.unreadable_partitions import UnreadablePartitions, is_end
from fraud_assets.kafka.watermarks import Watermarks
from fraud_assets.lake.positions import NOTHING, Positions, SourcePartition, positions_of
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

    from fraud_assets.lake.known_topics import LogStarts

CommittedOffsets = Callable[[Collection[SourcePartition], "LogStarts"], Positions]
"""Gives the last offset of each partition that the lake holds; see `positions_in`."""

_POLL_SECONDS = 0.1


def never() -> bool:
    """A reader that nobody stops."""
    return False


class TopicReader:
    """Reads one topic by position. A context manager; may live long, and asks the broker nothing between reads.

    Raises (from every method): `BrokerError` when the broker or topic is not there or the topic was recreated,
    and `MessagesLostError` when the broker no longer has what was not landed. `read` raises `UnreadableError` when the
    client cannot read a partition; `follow` goes on with the others, see `table_error`.

    Attributes:
        accepted: per `topic/partition` the offsets that are gone and that FRAUD_ACCEPT_LOST gave up.
        group: name of its consumer group.
    """

    def __init__(self, topic: str, settings: Settings, broker: Broker | None = None, group: str = "") -> None:
        from confluent_kafka import Consumer

        self.topic = topic
        self.broker = broker or find_broker(settings)
        self.accepted: dict[str, str] = {}
        self.group = group or "fraud-assets"
        self._settings = settings
        self._marks = Watermarks(topic, settings, self.broker, lambda: self._consumer)
        self._faults = UnreadablePartitions(topic, self.broker)
        self._tails: dict[SourcePartition, tuple[int, int]] = {}
        self._ends: dict[int, int] = {}
        self._dealt: set[int] = set()
        self._moved = False
        self._places = threading.Lock()
        self._next: dict[int, int] = {}
        self._given: dict[int, int] = {}
        self._begun: dict[int, int] = {}
        self._consumer: Any = Consumer(consumer_config(self.broker, settings, self.group))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def answers(self) -> bool:
        """Whether the broker gave an answer when it was asked last."""
        return self._marks.answers

    @property
    def unreadable(self) -> Mapping[int, str]:
        """What is wrong with the partitions that the client cannot read, and what to do. Safe from another thread."""
        return self._faults.sentences

    def close(self, *, wait: bool = True) -> None:
        """Ends the connection and leaves the group; does not wait for a broker that is away. Safe to repeat."""
        if self._consumer is None:
            return
        last, self._consumer = [self._consumer], None
        in_order = wait and self.answers
        # librdkafka waits for a broker that is away as long as a session lasts, be it to leave the group or to be
        # forgotten. The broker learns of it when the session is over, and nobody has to wait for that.
        end = threading.Thread(target=_end, args=(last, in_order), name="end of a consumer", daemon=True)
        end.start()
        end.join(self._settings.kafka_timeout_seconds if in_order else _POLL_SECONDS)

    def end_offsets(self, stop: Callable[[], bool] = never) -> dict[SourcePartition, int]:
        """Per partition the offset before the high watermark: where a read that is to end must end.

        An empty partition has its log start - 1 (-1 when nothing was ever written). Open transactions are
        not included.
        """
        return {stream: self._marks.high[stream.partition] - 1 for stream in self._streams(stop)}

    def log_starts(self, stop: Callable[[], bool] = never) -> dict[SourcePartition, int] | None:
        """First offset that the broker has of every partition; None from an embedded broker."""
        if self.broker.embedded:
            return None
        return {stream: self._marks.low[stream.partition] for stream in self._streams(stop)}

    def first_offsets(
        self, committed_offsets: CommittedOffsets, stop: Callable[[], bool] = never
    ) -> dict[SourcePartition, int]:
        """Returns the first offset to read of every partition, for a caller that reads by other means.

        All that `read` and `follow` look at before they begin is looked at here.
        """
        return self._first_offsets_of(self._marks.partitions(stop), committed_offsets, stop)

    def read(
        self, stored: Positions, target: Positions, stop: Callable[[], bool] = never
    ) -> Generator[pa.Table, None, None]:
        """Batches (`MESSAGES`) of everything after `stored` up to and with `target`, a prefix of each partition.

        A partition of which `stored` holds nothing has to start at offset 0; see `positions_in`. Offsets at the end of
        a partition may carry no message; see `tails`.
        A batch has at most FRAUD_LAND_BATCH_ROWS rows and about FRAUD_LAND_BATCH_BYTES bytes of keys and bodies.
        `stop` is asked between looks at the broker; when it says so, what was read so far is given and it ends.
        """
        from confluent_kafka import TopicPartition

        self._marks.look([stream.partition for stream in target], stop)
        first = self._first_offsets({stream: stored.get(stream, NOTHING) for stream in target})
        for stream, offset in first.items():
            # What is given up has no messages any more.
            if offset - 1 > (last := stored.get(stream, NOTHING)):
                self._tails[stream] = (last, offset - 1)
        start = {
            stream: offset
            for stream, offset in first.items()
            if offset <= target[stream] and not self._is_empty_tail(stream, offset - 1, target[stream])
        }
        if not start:
            return
        self._begun = {stream.partition: offset for stream, offset in start.items()}
        self._faults.clear()
        self._consumer.assign([TopicPartition(self.topic, place, offset) for place, offset in self._begun.items()])
        try:
            yield from self._batches(start, target, stop)
        finally:
            # Without an assignment nothing is fetched while nobody reads.
            self._consumer.unassign()

    def tails(self, landed: Positions) -> dict[SourcePartition, int]:
        """The last offset of partitions in which `read` found no message after what has landed by now.

        Transactions end in such an offset, and aborted ones have no other. Once the broker removes them, a position
        before them would look like a loss.
        """
        return {
            stream: end
            for stream, (last, end) in self._tails.items()
            if end > last and landed.get(stream, NOTHING) == last
        }

    def follow(
        self, committed_offsets: CommittedOffsets, stop: Callable[[], bool] = never
    ) -> Generator[tuple[pa.Table, dict[SourcePartition, int]], None, None]:
        """Batches (`MESSAGES`) of the partitions that the group deals to this reader, until `stop` says so.

        With each come the positions that the lake holds once the batch and those before it have landed. They may be
        beyond the last message, as those of `tails`.

        A batch is given when it has FRAUD_LAND_BATCH_ROWS rows or FRAUD_LAND_BATCH_BYTES bytes, or
        FRAUD_LAND_INTERVAL_SECONDS after its first message; an empty one after as long without any. Partitions that
        come to this reader are read from their committed offsets; what was read of partitions that go is
        forgotten,
        for others read it. A partition that cannot be read is tried again while the others go on; see `table_error`.
        Before a batch is committed ask `check`, and tell `landed` when it is in the lake; both may come from another
        thread.
        """
        partitions = self._marks.partitions(stop)
        if self.broker.embedded:
            # It keeps a new group waiting for 3 s, and one lander is all that it is for.
            self._dealt, self._moved = set(partitions), True
        else:
            self._consumer.subscribe(
                [self.topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
            )
        settings = self._settings
        batch = Batch(self.topic, "", settings.land_batch_rows, settings.land_batch_bytes)
        lost: MessagesLostError | None = None
        try:
            while not stop():
                if self._moved:
                    batch.clear()
                    batch.topic_id = self._begin(committed_offsets, stop)
                self._faults.retry(self._consumer)
                wait = min(_POLL_SECONDS, max(settings.land_interval_seconds - batch.age, 0.001))
                messages = self._consumer.consume(batch.call_rows, timeout=wait)
                if self._moved:
                    continue
                try:
                    batch.add([message for message in messages if self._is_next(message)])
                except MessagesLostError as error:
                    # What came with it is not in the batch, so no end of a partition may go with the batch either.
                    lost, self._ends = error, {}
                if batch.is_full or lost or batch.age >= settings.land_interval_seconds:
                    yield self._taken(batch)
                if lost:
                    raise lost
            yield self._taken(batch)
        finally:
            self._consumer.unassign() if self.broker.embedded else self._consumer.unsubscribe()
            self._dealt, self._moved = set(), False

    def landed(self, reached: Positions) -> None:
        """Notes what of `follow` is in the lake, and tells the broker for those who watch the lag there."""
        with self._places:
            # What went to another reader meanwhile is not this one's any more.
            for stream, offset in reached.items():
                if stream.partition in self._next:
                    self._next[stream.partition] = max(offset + 1, self._next[stream.partition])
        self.tell(reached)

    def tell(self, reached: Positions) -> None:
        """Tells the broker what the lake holds, for those who watch the lag there; does not wait for an answer."""
        from confluent_kafka import TopicPartition

        if reached and not self.broker.embedded:
            self._consumer.commit(
                offsets=[TopicPartition(self.topic, stream.partition, last + 1) for stream, last in reached.items()],
                asynchronous=True,
            )

    def lag(self) -> dict[int, int]:
        """Messages after the last that landed, per partition that `follow` has; as far as the broker told."""
        from confluent_kafka import TopicPartition

        with self._places:
            next_offsets, given = dict(self._next), dict(self._given)
        places = [TopicPartition(self.topic, partition) for partition in next_offsets]
        lag = {}
        for place in self._consumer.position(places) if places else []:
            _, high = self._consumer.get_watermark_offsets(place, cached=True)
            landed, end = next_offsets[place.partition], max(high, self._marks.high[place.partition])
            # What was read to its end has no more messages, only offsets without one.
            lag[place.partition] = 0 if place.offset >= end and landed >= given[place.partition] else end - landed
        return lag

    def _taken(self, batch: Batch) -> tuple[pa.Table, dict[SourcePartition, int]]:
        table = batch.take()
        reached = positions_of(table)
        with self._places:
            self._given.update({stream.partition: offset + 1 for stream, offset in reached.items()})
            for partition, end in self._ends.items():
                if end > self._given.get(partition, end):
                    self._given[partition] = end
                    reached[SourcePartition(self.topic, batch.topic_id, partition)] = end - 1
        return table, reached

    def _begin(self, committed_offsets: CommittedOffsets, stop: Callable[[], bool]) -> str:
        """Assigns the partitions that were dealt at what the lake holds of them; gives the topic's topic_id."""
        from confluent_kafka import TopicPartition

        self._moved = False
        held: Positions = {}

        def looked_up(streams: Collection[SourcePartition], log_starts: LogStarts) -> Positions:
            nonlocal held
            held = committed_offsets(streams, log_starts)
            return held

        first = self._first_offsets_of(sorted(self._dealt), looked_up, stop)
        begin = {stream.partition: offset for stream, offset in first.items()}
        with self._places:
            self._next, self._begun, self._ends = dict(begin), begin, dict(begin)
            # It is less where messages are given up.
            self._given = {stream.partition: held[stream] + 1 for stream in first}
        self._faults.clear()
        self._consumer.assign([TopicPartition(self.topic, partition, offset) for partition, offset in begin.items()])
        return next(iter(first)).topic_id if first else ""

    def _first_offsets_of(
        self, partitions: Sequence[int], committed_offsets: CommittedOffsets, stop: Callable[[], bool]
    ) -> dict[SourcePartition, int]:
        topic_id = self._marks.topic_id()
        self._marks.look(partitions, stop)
        streams = [SourcePartition(self.topic, topic_id, partition) for partition in partitions]
        return self._first_offsets(committed_offsets(streams, lambda: self.log_starts(stop)))

    def _streams(self, stop: Callable[[], bool]) -> list[SourcePartition]:
        """All partitions of the topic, once the broker told of their log starts and ends."""
        partitions = self._marks.partitions(stop)
        topic_id = self._marks.topic_id()
        self._marks.look(partitions, stop)
        return [SourcePartition(self.topic, topic_id, partition) for partition in partitions]

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._dealt = {place.partition for place in partitions}
        self._moved = True
        # Without this librdkafka would begin at the offsets that the broker knows.
        consumer.assign([])

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._dealt -= {place.partition for place in partitions}
        self._moved = True
        consumer.unassign()

    def _batches(
        self, start: Positions, target: Positions, stop: Callable[[], bool]
    ) -> Generator[pa.Table, None, None]:
        streams = {stream.partition: stream for stream in start}
        end = {partition: target[stream] for partition, stream in streams.items()}
        self._next = {partition: start[stream] for partition, stream in streams.items()}
        topic_id = next(iter(start)).topic_id
        open_partitions = set(streams)
        batch = Batch(self.topic, topic_id, self._settings.land_batch_rows, self._settings.land_batch_bytes)
        heard = monotonic()
        while open_partitions and not stop():
            self._faults.retry(self._consumer)
            messages = self._consumer.consume(batch.call_rows, timeout=_POLL_SECONDS)
            taken: list[Message] = []
            lost: MessagesLostError | None = None
            for message in messages:
                partition = message.partition()
                try:
                    is_message = self._is_next(message)
                except MessagesLostError as error:
                    lost = error
                    break
                offset = message.offset()
                if partition not in open_partitions or offset is None:
                    continue
                if is_message:
                    if offset <= end[partition]:
                        taken.append(message)
                        self._next[partition] = offset + 1
                    if offset >= end[partition]:
                        open_partitions.discard(partition)
                elif is_end(message) and partition not in self._faults and offset > end[partition]:
                    # Offsets without a message, such as a transaction's marker, may end the partition.
                    open_partitions.discard(partition)
                    self._tails[streams[partition]] = (self._last_landed(streams[partition]), offset - 1)
            batch.add(taken)
            if taken or any(map(is_end, messages)):
                heard = monotonic()
            trouble = lost or self._stall(open_partitions, heard)
            if batch.rows and (batch.is_full or trouble or not open_partitions):
                yield from self._checked(batch)
                heard = monotonic()
            if trouble:
                raise trouble
        if batch.rows:
            yield from self._checked(batch)

    def _stall(self, open_partitions: set[int], heard: float) -> BrokerError | None:
        """Why nothing more comes of the partitions that are to be read on; None while something may."""
        patience = self._settings.kafka_timeout_seconds
        silent = monotonic() - heard > patience
        if self._faults and open_partitions and (silent or open_partitions <= self.unreadable.keys()):
            return self._faults.error()
        return unreachable_error(self.broker, f"nothing came for {patience:g} s") if silent else None

    def _checked(self, batch: Batch) -> Generator[pa.Table, None, None]:
        table = batch.take()
        self.check(table)
        yield table

    def _is_next(self, message: Message) -> bool:
        """Whether it is a message, and none before it is left out; raises for an event that ends all reading."""
        if message.error() is None:
            return not self._faults or self._faults.passes(message.partition())
        self._heard(message)
        return False

    def _heard(self, event: Message) -> None:
        """Takes an event that is no message, such as the end of a partition; raises for what ends all reading."""
        from confluent_kafka import KafkaError

        error: KafkaError = event.error()
        code, partition = error.code(), event.partition()
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE) and partition in self._next:
            # The broker dropped messages between our look at its log start and the fetch.
            self._marks.look([partition], never)
            lost = {SourcePartition(self.topic, "", partition): self._next[partition] - 1}
            raise messages_lost(lost, self._marks.low, self.broker, self._settings)
        if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED):
            raise missing_topic(self.broker, self.topic, self._settings)
        if error.fatal():
            raise BrokerError(f"Reading topic {self.topic!r} failed: {error.str()}. Start again.")
        if is_end(event):
            if self._faults.passes(partition):
                self._ends[partition] = event.offset() or 0
        elif partition in self._begun:
            # All before the offset has come. It is that of a batch, in the middle of which reading may have begun.
            offset = max(event.offset() or 0, self._begun[partition])
            self._faults.failed(partition, offset, error)
        # Others (a connection lost, a leader that moves) pass, or end in the time-out of the caller.

    def _last_landed(self, stream: SourcePartition) -> int:
        """The position of the stream once all that `read` gave has landed."""
        last = self._next[stream.partition] - 1
        before, end = self._tails.get(stream, (last, last))
        return before if end == last else last

    def _is_empty_tail(self, stream: SourcePartition, known: int, end: int) -> bool:
        """Whether an earlier read found offsets without messages alone from after `known` to `end`."""
        tail_known, tail_end = self._tails.get(stream, (None, NOTHING))
        return tail_known == known and end <= tail_end

    def _first_offsets(self, landed: Positions) -> dict[SourcePartition, int]:
        """First offset to read of each partition; raises where messages are gone."""
        found = first_readable_offset(landed, self._marks.low, self._marks.high, self._settings.accept_lost)
        self.accepted |= found.given_up
        if found.ahead:
            raise messages_ahead(found.ahead, self._marks.high)
        if found.lost:
            raise messages_lost(found.lost, self._marks.low, self.broker, self._settings)
        return found.first

    def check(self, batch: pa.Table) -> None:
        """Raises `TopicRecreatedError` where the topic is no longer the one that the batch was read from."""
        self._marks.check_topic_id(batch["topic_id"][0].as_py())

    def check_topic_id(self, topic_id: str) -> None:
        """Raises `TopicRecreatedError` where the topic is no longer in this life of it."""
        self._marks.check_topic_id(topic_id)


def _end(last: list[Consumer], in_order: bool) -> None:
    """Closes the consumer, whose only reference `last` is, in good order or by dropping it."""
    if in_order:
        last[0].close()
    last.clear()
