"""The one consumer: reads a topic from the positions that the lake holds, in bounded memory.

`read` goes from explicit offsets to explicit ends, with the partitions assigned by hand. `follow` goes on until
it is told to stop, with the partitions that a consumer group deals out among all who follow. In both the lake
says where a partition begins; offsets committed to the broker are a courtesy to lag monitors and never read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pyarrow as pa

from fraud_assets.errors import BrokerError, MessagesLostError, TopicRemadeError
from fraud_assets.kafka.batch import Batch
from fraud_assets.kafka.broker import Broker, broker_of
from fraud_assets.kafka.client import admin_client, client_config, lineage_of, missing_topic, unreachable
from fraud_assets.lake.positions import NOTHING, Positions, Stream, positions_of
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
    from confluent_kafka.admin import AdminClient

Answer = TypeVar("Answer")
Stored = Callable[[Iterable[Stream]], Positions]

_POLL_SECONDS = 0.1
_SLICE_SECONDS = 1.0
_SESSION_SECONDS = 10
"""After so long without a sign of life, the partitions of a reader go to the others of its group."""
_COMMIT_SECONDS = 600
"""So long may one commit take before the others of the group think that the reader hangs."""
_NEW_PARTITIONS_SECONDS = 15
_QUEUE_BYTES = 8_000_000
"""Of keys and bodies that wait to be read. The client keeps some 400 bytes beside each message."""


def never() -> bool:
    """A reader that nobody stops."""
    return False


class TopicReader:
    """Reads one topic by position. A context manager; may live long, and asks the broker nothing between reads.

    Raises (from every method): `BrokerError` when the broker or topic is not there or the topic was made anew,
    and `MessagesLostError` when the broker no longer has what was not landed.

    Attributes:
        accepted: per `topic/partition` the offsets that are gone and that FRAUD_ACCEPT_LOST gave up.
        group: name of its consumer group.
    """

    def __init__(self, topic: str, settings: Settings, broker: Broker | None = None, group: str = "") -> None:
        from confluent_kafka import Consumer

        self.topic = topic
        self.broker = broker or broker_of(settings)
        self.accepted: dict[str, str] = {}
        self.group = group or "fraud-assets"
        self._settings = settings
        self._admin: AdminClient | None = None if self.broker.embedded else admin_client(self.broker, settings)
        self._low: dict[int, int] = {}
        self._high: dict[int, int] = {}
        self._tails: dict[Stream, tuple[int, int]] = {}
        self._dealt: set[int] = set()
        self._moved = False
        self._places = threading.Lock()
        self._next: dict[int, int] = {}
        self._given: dict[int, int] = {}
        self._answers = True
        queue_bytes = max(min(settings.land_batch_bytes, _QUEUE_BYTES), 1_000_000)
        self._consumer: Any = Consumer(
            {
                **client_config(self.broker, settings),
                "group.id": self.group,
                "session.timeout.ms": _SESSION_SECONDS * 1000,
                "max.poll.interval.ms": _COMMIT_SECONDS * 1000,
                "topic.metadata.refresh.interval.ms": _NEW_PARTITIONS_SECONDS * 1000,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                # Memory: over all partitions.
                "queued.max.messages.kbytes": queue_bytes // 1000,
                "queued.min.messages": 10_000,
                "fetch.max.bytes": min(queue_bytes, 16_000_000),
                # As they are sent: unpacked they are many times as much, and a larger message comes all the same.
                "max.partition.fetch.bytes": 256_000,
                "message.max.bytes": 1_000_000,
                # A read ends at a known offset: an empty fetch is a wait for nothing.
                "fetch.wait.max.ms": 10 if self.broker.embedded else 50,
                "fetch.queue.backoff.ms": 5,
            }
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def answers(self) -> bool:
        """Whether the broker gave an answer when it was asked last."""
        return self._answers

    def close(self, *, wait: bool = True) -> None:
        """Ends the connection and leaves the group; does not wait for a broker that is away. Safe to repeat."""
        if self._consumer is None:
            return
        last, self._consumer = [self._consumer], None
        in_order = wait and self._answers
        # librdkafka waits for a broker that is away as long as a session lasts, be it to leave the group or to be
        # forgotten. The broker learns of it when the session is over, and nobody has to wait for that.
        end = threading.Thread(target=_end, args=(last, in_order), name="end of a consumer", daemon=True)
        end.start()
        end.join(self._settings.kafka_timeout_seconds if in_order else _POLL_SECONDS)

    def end_offsets(self, stop: Callable[[], bool] = never) -> dict[Stream, int]:
        """Per partition the offset before the high watermark: where a read that is to end must end.

        An empty partition has its log start - 1 (-1 when nothing was ever written). Open transactions are
        not included.
        """
        partitions = self._partitions(stop)
        lineage = lineage_of(self.broker, self.topic, self._settings, self._admin)
        self._look(partitions, stop)
        return {Stream(self.topic, lineage, partition): self._high[partition] - 1 for partition in partitions}

    def first_offsets(self, stored: Stored, stop: Callable[[], bool] = never) -> dict[Stream, int]:
        """First offset to read of every partition, by what `stored` says of it; for who reads by other means.

        All that `read` and `follow` look at before they begin is looked at here.
        """
        return self._first_offsets_of(self._partitions(stop), stored, stop)

    def read(
        self, stored: Positions, target: Positions, stop: Callable[[], bool] = never
    ) -> Generator[pa.Table, None, None]:
        """Batches (`MESSAGES`) of everything after `stored` up to and with `target`, a prefix of each partition.

        A batch has at most FRAUD_LAND_BATCH_ROWS rows and about FRAUD_LAND_BATCH_BYTES bytes of keys and bodies.
        `stop` is asked between looks at the broker; when it says so, what was read so far is given and it ends.
        """
        from confluent_kafka import TopicPartition

        self._look([stream.partition for stream in target], stop)
        first = self._first_offsets({stream: stored.get(stream, NOTHING) for stream in target})
        start = {
            stream: offset
            for stream, offset in first.items()
            if offset <= target[stream] and not self._is_empty_tail(stream, offset - 1, target[stream])
        }
        if not start:
            return
        self._consumer.assign([TopicPartition(self.topic, stream.partition, start[stream]) for stream in start])
        try:
            yield from self._batches(start, target, stop)
        finally:
            # Without an assignment nothing is fetched while nobody reads.
            self._consumer.unassign()

    def follow(self, stored: Stored, stop: Callable[[], bool] = never) -> Generator[pa.Table, None, None]:
        """Batches (`MESSAGES`) of the partitions that the group deals to this reader, until `stop` says so.

        A batch is given when it has FRAUD_LAND_BATCH_ROWS rows or FRAUD_LAND_BATCH_BYTES bytes, or
        FRAUD_LAND_INTERVAL_SECONDS after its first message; an empty one after as long without any. Partitions that
        come to this reader are read from what `stored` says of them; what was read of partitions that go is forgotten,
        for others read it. Before a batch is committed ask `check`, and tell `landed` when it is in the lake; both may
        come from another thread.
        """
        partitions = self._partitions(stop)
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
                    batch.lineage = self._begin(stored, stop)
                wait = min(_POLL_SECONDS, max(settings.land_interval_seconds - batch.age, 0.001))
                messages = self._consumer.consume(batch.call_rows, timeout=wait)
                if self._moved:
                    continue
                try:
                    batch.add([message for message in messages if message.error() is None or self._heard(message)])
                except MessagesLostError as error:
                    lost = error
                if batch.is_full or lost or batch.age >= settings.land_interval_seconds:
                    yield self._taken(batch)
                if lost:
                    raise lost
            yield self._taken(batch)
        finally:
            self._consumer.unassign() if self.broker.embedded else self._consumer.unsubscribe()
            self._dealt, self._moved = set(), False

    def landed(self, batch: pa.Table) -> None:
        """Notes that a batch of `follow` is in the lake, and tells the broker for those who watch the lag there."""
        reached = positions_of(batch)
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
            landed, end = next_offsets[place.partition], max(high, self._high[place.partition])
            # What was read to its end has no more messages, only offsets without one.
            lag[place.partition] = 0 if place.offset >= end and landed >= given[place.partition] else end - landed
        return lag

    def _taken(self, batch: Batch) -> pa.Table:
        table = batch.take()
        given = {stream.partition: offset + 1 for stream, offset in positions_of(table).items()}
        with self._places:
            self._given.update(given)
        return table

    def _begin(self, stored: Stored, stop: Callable[[], bool]) -> str:
        """Assigns the partitions that were dealt at what the lake holds of them; gives the topic's lineage."""
        from confluent_kafka import TopicPartition

        partitions = sorted(self._dealt)
        self._moved = False
        first = self._first_offsets_of(partitions, stored, stop)
        begin = {stream.partition: offset for stream, offset in first.items()}
        with self._places:
            self._next, self._given = dict(begin), dict(begin)
        self._consumer.assign([TopicPartition(self.topic, partition, offset) for partition, offset in begin.items()])
        return next(iter(first)).lineage if first else ""

    def _first_offsets_of(
        self, partitions: Sequence[int], stored: Stored, stop: Callable[[], bool]
    ) -> dict[Stream, int]:
        lineage = lineage_of(self.broker, self.topic, self._settings, self._admin)
        self._look(partitions, stop)
        return self._first_offsets(stored([Stream(self.topic, lineage, partition) for partition in partitions]))

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
        lineage = next(iter(start)).lineage
        open_partitions = set(streams)
        batch = Batch(self.topic, lineage, self._settings.land_batch_rows, self._settings.land_batch_bytes)
        heard = monotonic()
        while open_partitions and not stop():
            messages = self._consumer.consume(batch.call_rows, timeout=_POLL_SECONDS)
            if messages:
                heard = monotonic()
            elif monotonic() - heard > self._settings.kafka_timeout_seconds:
                raise unreachable(self.broker, f"nothing came for {self._settings.kafka_timeout_seconds:g} s")
            taken: list[Message] = []
            lost: MessagesLostError | None = None
            for message in messages:
                partition = message.partition()
                try:
                    is_message = message.error() is None or self._heard(message)
                except MessagesLostError as error:
                    lost = error
                    break
                offset = message.offset()
                if not is_message:
                    # Offsets without a message, such as a transaction's marker, may end the partition.
                    if partition in open_partitions and offset is not None and offset > end[partition]:
                        open_partitions.discard(partition)
                        self._tails[streams[partition]] = (self._next[partition] - 1, offset - 1)
                elif partition in open_partitions:
                    if offset <= end[partition]:
                        taken.append(message)
                        self._next[partition] = offset + 1
                    if offset >= end[partition]:
                        open_partitions.discard(partition)
            batch.add(taken)
            if batch.rows and (batch.is_full or lost or not open_partitions):
                yield from self._checked(batch)
                heard = monotonic()
            if lost:
                raise lost
        if batch.rows:
            yield from self._checked(batch)

    def _checked(self, batch: Batch) -> Generator[pa.Table, None, None]:
        table = batch.take()
        self.check(table)
        yield table

    def _heard(self, event: Message) -> bool:
        """False, for an event that is no message, such as the end of a partition; raises for what ends all reading."""
        from confluent_kafka import KafkaError

        error: KafkaError = event.error()
        code, partition = error.code(), event.partition()
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE) and partition in self._next:
            # The broker dropped messages between our look at its log start and the fetch.
            self._look([partition], never)
            raise self._lost({partition: self._next[partition] - 1})
        if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED):
            raise missing_topic(self.broker, self.topic, self._settings)
        if error.fatal():
            raise BrokerError(f"Reading topic {self.topic!r} failed: {error.str()}. Start again.")
        # Others (a connection lost, a leader that moves) pass, or end in the time-out of the caller.
        return False

    def _is_empty_tail(self, stream: Stream, known: int, end: int) -> bool:
        """Whether an earlier read found offsets without messages alone from after `known` to `end`."""
        tail_known, tail_end = self._tails.get(stream, (None, NOTHING))
        return tail_known == known and end <= tail_end

    def _first_offsets(self, stored: Positions) -> dict[Stream, int]:
        """First offset to read of each partition; raises where messages are gone."""
        first: dict[Stream, int] = {}
        lost: dict[int, int] = {}
        for stream, known in stored.items():
            low, high = self._low[stream.partition], self._high[stream.partition]
            if low > known + 1 and (known != NOTHING or self.broker.embedded):
                place = f"{self.topic}/{stream.partition}"
                if self._settings.accept_lost.get(place, NOTHING) >= low:
                    self.accepted[place] = f"{known + 1} to {low - 1}"
                else:
                    lost[stream.partition] = known
            if known >= high:
                raise BrokerError(
                    f"Partition {stream.partition} of topic {self.topic!r} ends at offset {high - 1}, but the lake "
                    f"holds offset {known} of it: the broker lost messages that it had delivered. "
                    "Find out what happened to the broker before landing on; a topic made anew lands from its start."
                )
            first[stream] = max(known + 1, low)
        if lost:
            raise self._lost(lost)
        return first

    def _lost(self, known: Mapping[int, int]) -> MessagesLostError:
        """The sentence on partitions whose log starts after what is known of them."""
        gone = [
            f"Up to {self._low[partition] - last - 1} messages of partition {partition} of topic {self.topic!r} are "
            f"gone: the lake holds offsets up to {last}, {self.broker.name} starts at {self._low[partition]}"
            for partition, last in sorted(known.items())
        ]
        if self.broker.embedded:
            remedy = (
                "The embedded broker keeps about 5 MB a partition: restart it with `fraud-assets broker`, run "
                "`fraud-assets land` while messages are produced, and put bulk data into the drop folder"
            )
        else:
            accepted = ",".join(f"{self.topic}/{partition}={self._low[partition]}" for partition in sorted(known))
            remedy = (
                "Landing stops here rather than skip them: bring them back from another copy into the drop folder "
                f"{self._settings.incoming} and raise the topic's retention; FRAUD_ACCEPT_LOST={accepted} goes on "
                "without them"
            )
        return MessagesLostError(f"{'. '.join(gone)}. {remedy}.")

    def _partitions(self, stop: Callable[[], bool]) -> list[int]:
        """Partitions of the topic; on an embedded broker asking creates it."""
        from confluent_kafka import KafkaError

        deadline = monotonic() + self._settings.kafka_timeout_seconds
        while True:
            metadata = self._ask(lambda wait: self._consumer.list_topics(self.topic, timeout=wait), stop)
            entry = metadata.topics[self.topic]
            if entry.error is None and entry.partitions:
                return sorted(entry.partitions)
            unknown = entry.error is not None and entry.error.code() in (
                KafkaError.UNKNOWN_TOPIC_OR_PART,
                KafkaError.TOPIC_AUTHORIZATION_FAILED,
            )
            if (unknown and not self.broker.embedded) or monotonic() > deadline or stop():
                raise missing_topic(self.broker, self.topic, self._settings)

    def _look(self, partitions: Sequence[int], stop: Callable[[], bool]) -> None:
        """Asks for the low and high watermarks of the partitions."""
        from confluent_kafka import TopicPartition

        for partition in partitions:
            place = TopicPartition(self.topic, partition)
            self._low[partition], self._high[partition] = self._ask(
                lambda wait, place=place: self._consumer.get_watermark_offsets(place, timeout=wait), stop
            )

    def _ask(self, question: Callable[..., Answer | None], stop: Callable[[], bool]) -> Answer:
        """The broker's answer within FRAUD_KAFKA_TIMEOUT_SECONDS, in slices so that `stop` is heard."""
        from confluent_kafka import KafkaException

        deadline = monotonic() + self._settings.kafka_timeout_seconds
        while True:
            wait = max(min(_SLICE_SECONDS, deadline - monotonic()), 0.05)
            try:
                answer = question(wait)
                if answer is not None:
                    self._answers = True
                    return answer
                cause = "timed out"
            except KafkaException as error:
                cause = error.args[0].str()
            if monotonic() >= deadline or stop():
                self._answers = False
                raise unreachable(self.broker, cause)

    def check(self, batch: pa.Table) -> None:
        """Asks the broker whether the topic is still the one that the batch was read from; see `check_lineage`."""
        self.check_lineage(batch["lineage"][0].as_py())

    def check_lineage(self, lineage: str) -> None:
        """Asks the broker whether the topic is still in this life of it, and so all that was read by now is of it.

        Raises:
            TopicRemadeError: it was deleted and made anew.
        """
        broker = broker_of(self._settings) if self.broker.embedded else self.broker
        if lineage_of(broker, self.topic, self._settings, self._admin) != lineage:
            raise TopicRemadeError(
                f"Topic {self.topic!r} was made anew while it was read; what was read last did not land. Its new life "
                "lands from its start, when landing runs again."
            )


def _end(last: list[Consumer], in_order: bool) -> None:
    """Closes the consumer, whose only reference `last` is, in good order or by dropping it."""
    if in_order:
        last[0].close()
    last.clear()
