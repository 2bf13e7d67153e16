"""The one consumer: reads a topic from explicit offsets to explicit ends, in bounded memory.

The lake knows what was landed, so there is no group membership and no committed offset: partitions are
assigned by hand at the positions that the lake holds.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import pyarrow as pa

from fraud_assets.core.schema import RAW_TRANSACTIONS
from fraud_assets.errors import BrokerError, MessagesLostError
from fraud_assets.kafka.broker import Broker, broker_of
from fraud_assets.kafka.client import admin_client, client_config, lineage_of, missing_topic, unreachable
from fraud_assets.lake.positions import NOTHING, Positions, Stream
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka import Message
    from confluent_kafka.admin import AdminClient

Answer = TypeVar("Answer")

MESSAGES = pa.schema([field for field in RAW_TRANSACTIONS if field.name not in ("ingested_at", "ingest_date")])
"""What a batch of messages looks like: the landing schema without the moment of landing."""

_CALL_ROWS = 10_000
_FIRST_CALL_ROWS = 100
_LIKELY_BYTES = 10_000
_POLL_SECONDS = 0.1
_SLICE_SECONDS = 1.0


def never() -> bool:
    """A reader that nobody stops."""
    return False


class TopicReader:
    """Reads one topic by position. A context manager; may live long, and asks the broker nothing between reads.

    Raises (from every method): `BrokerError` when the broker or topic is not there, and `MessagesLostError`
    when the broker no longer has what was not landed.
    """

    def __init__(self, topic: str, settings: Settings, broker: Broker | None = None) -> None:
        from confluent_kafka import Consumer

        self.topic = topic
        self.broker = broker or broker_of(settings)
        self._settings = settings
        self._admin: AdminClient | None = None if self.broker.embedded else admin_client(self.broker, settings)
        self._low: dict[int, int] = {}
        self._high: dict[int, int] = {}
        self._tails: dict[Stream, tuple[int, int]] = {}
        queue_bytes = max(settings.land_batch_bytes, 1_000_000)
        self._consumer = Consumer(
            {
                **client_config(self.broker, settings),
                "group.id": "fraud-assets",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                # Memory: what is fetched and waiting is at most about a batch, over all partitions.
                "queued.max.messages.kbytes": queue_bytes // 1000,
                "queued.min.messages": 50_000,
                "fetch.max.bytes": min(queue_bytes, 16_000_000),
                "max.partition.fetch.bytes": 1_000_000,
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

    def close(self) -> None:
        """Ends the connection. Safe to repeat."""
        self._consumer.close()

    def end_offsets(self, stop: Callable[[], bool] = never) -> dict[Stream, int]:
        """Per partition the offset before the high watermark: where a read that is to end must end.

        An empty partition has its log start - 1 (-1 when nothing was ever written). Open transactions are
        not included.
        """
        partitions = self._partitions(stop)
        lineage = lineage_of(self.broker, self.topic, self._settings, self._admin)
        self._look(partitions, stop)
        return {Stream(self.topic, lineage, partition): self._high[partition] - 1 for partition in partitions}

    def read(
        self, stored: Positions, target: Positions, stop: Callable[[], bool] = never
    ) -> Generator[pa.Table, None, None]:
        """Batches (`MESSAGES`) of everything after `stored` up to and with `target`, a prefix of each partition.

        A batch has at most FRAUD_LAND_BATCH_ROWS rows and about FRAUD_LAND_BATCH_BYTES bytes of keys and bodies.
        `stop` is asked between looks at the broker; when it says so, what was read so far is given and it ends.
        """
        from confluent_kafka import TopicPartition

        self._look([stream.partition for stream in target], stop)
        start = self._checked_start(stored, target)
        streams = {stream.partition: stream for stream in start}
        if not streams:
            return
        self._consumer.assign([TopicPartition(self.topic, p, start[stream]) for p, stream in streams.items()])
        try:
            yield from self._batches(streams, start, target, stop)
        finally:
            # Without an assignment nothing is fetched while nobody reads.
            self._consumer.unassign()

    def _batches(
        self, streams: dict[int, Stream], start: Positions, target: Positions, stop: Callable[[], bool]
    ) -> Generator[pa.Table, None, None]:
        end = {partition: target[stream] for partition, stream in streams.items()}
        last = {partition: start[stream] - 1 for partition, stream in streams.items()}
        lineage = next(iter(streams.values())).lineage
        open_partitions = set(streams)
        rows_limit, bytes_limit = self._settings.land_batch_rows, self._settings.land_batch_bytes
        chunks: list[pa.Table] = []
        rows = size = 0
        mean = 1
        call_rows = max(1, min(_FIRST_CALL_ROWS, bytes_limit // _LIKELY_BYTES))
        heard = monotonic()
        while open_partitions and not stop():
            messages = self._consumer.consume(min(call_rows, rows_limit - rows), timeout=_POLL_SECONDS)
            if messages:
                heard = monotonic()
            elif monotonic() - heard > self._settings.kafka_timeout_seconds:
                raise unreachable(self.broker, f"nothing came for {self._settings.kafka_timeout_seconds:g} s")
            taken: list[Message] = []
            for message in messages:
                error = message.error()
                partition = message.partition()
                if error is not None:
                    if self._is_end(error, partition, message.offset(), last, streams):
                        reached = message.offset()
                        if partition in open_partitions and reached is not None and reached > end[partition]:
                            # Offsets without a message, such as a transaction's marker, end the partition.
                            open_partitions.discard(partition)
                            self._tails[streams[partition]] = (last[partition], reached - 1)
                    continue
                offset = message.offset()
                if offset < end[partition]:
                    taken.append(message)
                    last[partition] = offset
                elif partition in open_partitions:
                    open_partitions.discard(partition)
                    if offset == end[partition]:
                        taken.append(message)
                        last[partition] = offset
            if taken:
                chunk, chunk_bytes = _as_table(self.topic, lineage, taken)
                chunks.append(chunk)
                rows += chunk.num_rows
                size += chunk_bytes
                # Never much more in one call than the batch still takes, judged by the size of the last messages.
                mean = max(chunk_bytes // chunk.num_rows, 1)
                call_rows = max(1, min(_CALL_ROWS, (bytes_limit - size) // mean, call_rows * 4))
            if rows and (rows >= rows_limit or size >= bytes_limit or not open_partitions):
                self._check_lineage(lineage)
                yield pa.concat_tables(chunks)
                chunks, rows, size, heard = [], 0, 0, monotonic()
                call_rows = max(1, min(_CALL_ROWS, bytes_limit // mean))
        if rows:
            self._check_lineage(lineage)
            yield pa.concat_tables(chunks)

    def _is_end(
        self, error: object, partition: int, offset: int | None, last: Mapping[int, int], streams: Mapping[int, Stream]
    ) -> bool:
        """Whether an event says that a partition ended; raises for those that say that reading failed."""
        from confluent_kafka import KafkaError

        assert isinstance(error, KafkaError)
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            return True
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE) and partition in streams:
            # The broker dropped messages between our look at its log start and the fetch.
            self._look([partition], never)
            raise self._lost(partition, last[partition], self._low[partition])
        if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED):
            raise missing_topic(self.broker, self.topic, self._settings)
        if error.fatal():
            raise BrokerError(f"Reading topic {self.topic!r} failed: {error.str()}. Start again.")
        # Others (a connection lost, a leader that moves) pass, or end in the time-out of the caller.
        return False

    def _checked_start(self, stored: Positions, target: Positions) -> dict[Stream, int]:
        """First offset to read of each partition that has something to read; raises where messages are gone."""
        start: dict[Stream, int] = {}
        for stream, end in target.items():
            known = stored.get(stream, NOTHING)
            low, high = self._low[stream.partition], self._high[stream.partition]
            if low > known + 1 and (known != NOTHING or self.broker.embedded):
                raise self._lost(stream.partition, known, low)
            if known >= high:
                raise BrokerError(
                    f"Partition {stream.partition} of topic {self.topic!r} ends at offset {high - 1}, but the lake "
                    f"holds offset {known} of it: the broker lost messages that it had delivered. "
                    "Find out what happened to the broker before landing on; a topic made anew lands from its start."
                )
            tail_known, tail_end = self._tails.get(stream, (None, NOTHING))
            if end > known and end >= low and not (tail_known == known and end <= tail_end):
                start[stream] = max(known + 1, low)
        return start

    def _lost(self, partition: int, known: int, low: int) -> MessagesLostError:
        if self.broker.embedded:
            remedy = (
                "The embedded broker keeps about 5 MB a partition: restart it with `fraud-assets broker`, run "
                "`fraud-assets land` while messages are produced, and put bulk data into the drop folder"
            )
        else:
            remedy = (
                "Landing stops here rather than skip them: bring them back from another copy into a new topic "
                f"or into the drop folder {self._settings.incoming}, name the topic to read by its setting, and "
                "raise the topic's retention"
            )
        return MessagesLostError(
            f"Up to {low - known - 1} messages of partition {partition} of topic {self.topic!r} are gone: the lake "
            f"holds offsets up to {known}, {self.broker.name} starts at {low}. {remedy}."
        )

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
                    return answer
                cause = "timed out"
            except KafkaException as error:
                cause = error.args[0].str()
            if monotonic() >= deadline or stop():
                raise unreachable(self.broker, cause)

    def _check_lineage(self, lineage: str) -> None:
        """Raises where the topic was deleted and made anew while it was read."""
        broker = broker_of(self._settings) if self.broker.embedded else self.broker
        if lineage_of(broker, self.topic, self._settings, self._admin) != lineage:
            raise BrokerError(f"Topic {self.topic!r} was made anew while it was read; nothing of it landed. Run again.")


def _as_table(topic: str, lineage: str, messages: list[Message]) -> tuple[pa.Table, int]:
    """Messages as `MESSAGES`, and the bytes of their keys and bodies."""
    count = len(messages)
    keys = pa.array([message.key() for message in messages], pa.binary())
    values = pa.array([message.value() for message in messages], pa.binary())
    times = [message.timestamp() for message in messages]
    columns = [
        pa.repeat(pa.scalar(topic, pa.string()), count),
        pa.repeat(pa.scalar(lineage, pa.string()), count),
        pa.array([message.partition() for message in messages], pa.int32()),
        pa.array([message.offset() for message in messages], pa.int64()),
        # Kind 0 means that the message carries no time.
        pa.array([time * 1000 if kind else None for kind, time in times], pa.int64()).cast(
            MESSAGES.field("timestamp").type
        ),
        keys,
        values,
        _headers(messages),
    ]
    return pa.Table.from_arrays(columns, schema=MESSAGES), keys.nbytes + values.nbytes


def _headers(messages: list[Message]) -> pa.Array:
    kind = MESSAGES.field("headers").type
    found = [message.headers() for message in messages]
    if not any(found):
        return pa.nulls(len(found), kind)
    rows = [None if not pairs else [{"key": k, "value": v} for k, v in pairs] for pairs in found]
    return pa.array(rows, kind)
