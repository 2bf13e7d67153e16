"""A Structured Streaming query that lands the transactions topic batch by batch.

The query starts at the offsets that the table holds. Its checkpoint is new at every start and is deleted at the end,
because the offsets in the table's log are authoritative for all landers. Each batch is checked against them.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fraud_assets.core.schema import raw_transactions
from fraud_assets.engines.landing_report import key_by_partition
from fraud_assets.engines.spark.batch_landing import BatchLander, LandedBatch, ReplanError
from fraud_assets.engines.spark.session import convert_spark_errors
from fraud_assets.errors import EngineError
from fraud_assets.kafka.java_properties import build_java_properties
from fraud_assets.kafka.topic_readers import TopicReaders
from fraud_assets.lake.known_topics import LogStarts, find_positions
from fraud_assets.lake.positions import Positions, SourcePartition
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming import StreamingQuery

_SLICE_SECONDS = 0.2
"""Seconds between two checks of a bounded query."""
_LAST_BATCH_SECONDS = 12
"""Maximum seconds until a running batch commits after a stop was requested.

Together with twice `_END_SECONDS` it is less than the 30 s that Kubernetes waits.
"""
_END_SECONDS = 8
"""Maximum seconds for Spark to end a query without a running batch."""

OnIdle = Callable[[Mapping[int, int]], None]
"""Called between batches with the number of messages per partition that the query saw and that have not landed."""


class TopicQuery:
    """A query on the transactions topic, from the offsets in the table to the current ends or until it is stopped.

    Args:
        spark: The Spark session.
        lake: The lake to land into.
        settings: The settings of the broker and of Spark.
        readers: Readers of both topics.
        landed: Called after each batch.
        stop: Returns whether a stop is requested.
    """

    def __init__(
        self,
        spark: SparkSession,
        lake: Lake,
        settings: Settings,
        readers: TopicReaders,
        landed: Callable[[LandedBatch], None],
        stop: Callable[[], bool],
    ) -> None:
        self._spark = spark
        self._lake = lake
        self._settings = settings
        self._readers = readers
        self._landed = landed
        self._stop = stop
        # The lock is held while a batch lands and while another caller uses the readers.
        self._busy = threading.Lock()
        self._ended = False
        self._failure: BaseException | None = None
        self._query: StreamingQuery | None = None
        self._topic_id = ""
        self._next: dict[SourcePartition, int] = {}
        self._lander: BatchLander | None = None

    def run(self, *, bounded: bool, beside: OnIdle | None = None) -> None:
        """Lands batch by batch. A stop request takes effect after the current batch.

        Args:
            bounded: Whether to stop at the current ends of the topic. If false, the query runs until `stop` returns
                true.
            beside: Called between batches about every FRAUD_LAND_INTERVAL_SECONDS, once the query has seen the topic.

        Raises:
            ReplanError: Another query has to continue.
            EngineError: A job failed.
            BrokerError, MessagesLostError, LakeError: Nothing is skipped, and committed batches stay.
        """
        first = self._plan()
        try:
            with _checkpoint(self._settings) as folder, convert_spark_errors(self._settings):
                query = self._query = self._start(first, folder, bounded)
                try:
                    self._watch(query, _SLICE_SECONDS if bounded else self._settings.land_interval_seconds, beside)
                finally:
                    self._ended = True
                    # A job can wait forever for a broker or for workers. It is canceled, because nothing depends on it.
                    if self._busy.acquire(timeout=_LAST_BATCH_SECONDS):
                        self._busy.release()
                    _end_query(query)
            if self._failure is not None:
                raise self._failure
        except EngineError:
            # If the broker or the topic is the cause, planning again raises a more exact error.
            if not self._stop():
                self._plan()
            raise

    def _plan(self) -> dict[SourcePartition, int]:
        """Returns the first offset to read of every partition.

        Raises:
            BrokerError, MessagesLostError, LakeError: Landing cannot continue.
        """
        held: dict[SourcePartition, int] = {}

        def read_held(partitions: Collection[SourcePartition], log_starts: LogStarts) -> dict[SourcePartition, int]:
            held.clear()
            held.update(find_positions(self._lake, raw_transactions, partitions, log_starts))
            return dict(held)

        self._next = self._readers.transactions.first_offsets(read_held, self._stop)
        self._topic_id = next(iter(self._next)).topic_id
        self._lander = BatchLander(self._lake, self._settings, self._readers, self._topic_id, held, self._stop)
        return dict(self._next)

    def _start(self, first: Positions, folder: Path, bounded: bool) -> StreamingQuery:
        settings, topic = self._settings, self._readers.transactions.topic
        options = {
            **{f"kafka.{name}": value for name, value in build_java_properties(settings).items()},
            # Spark looks up its position again after each fetch of this many messages.
            "kafka.max.poll.records": "10000",
            "subscribe": topic,
            "startingOffsets": json.dumps({topic: {str(source.partition): first[source] for source in first}}),
            "includeHeaders": "true",
            "failOnDataLoss": "true",
            "groupIdPrefix": self._readers.transactions.group,
            "maxOffsetsPerTrigger": str(settings.spark_land_rows),
            "kafkaConsumer.pollTimeoutMs": str(int(settings.kafka_timeout_seconds * 1000)),
            # If the broker does not respond, the next query repeats the request.
            "fetchOffset.numRetries": "1",
        }
        frame = self._spark.readStream.format("kafka").options(**options).load()

        def land(rows: DataFrame, number: int) -> None:
            self._batch(rows, number, folder)

        self._spark.conf.set("spark.sql.streaming.stopTimeout", f"{_END_SECONDS}s")
        writer = frame.writeStream.foreachBatch(land).option("checkpointLocation", f"file://{folder}")
        if bounded:
            return writer.trigger(availableNow=True).start()
        return writer.trigger(processingTime=f"{int(settings.land_interval_seconds * 1000)} milliseconds").start()

    def _watch(self, query: StreamingQuery, seconds: float, beside: OnIdle | None) -> None:
        """Waits for the end of the query, a failure or a stop request. Calls `beside` between batches."""
        while not self._stop() and self._failure is None and not query.awaitTermination(seconds):
            # A failed query may not end; see `_end_query`.
            if (error := query.exception()) and not query.awaitTermination(_END_SECONDS):
                raise error
            if beside is None or not self._busy.acquire(blocking=False):
                continue
            try:
                if query.lastProgress is not None and self._failure is None:
                    beside(self._lag())
            finally:
                self._busy.release()

    def _batch(self, rows: DataFrame, number: int, folder: Path) -> None:
        """Lands one batch. Spark calls this method on a separate thread."""
        with self._busy:
            # A batch that is skipped here does not get lost: the checkpoint is deleted, so the next query reads it.
            if self._ended or self._failure is not None or self._stop():
                return
            try:
                ends = self._read_ends(number, folder)
                assert self._lander is not None
                landed = self._lander.land(rows, self._next, ends)
                self._next = dict(ends)
                self._landed(replace(landed, lag=self._lag()))
            except BaseException as error:  # noqa: BLE001 - `run` raises it on its own thread.
                self._failure = error

    def _read_ends(self, number: int, folder: Path) -> dict[SourcePartition, int]:
        """Returns the end offset (exclusive) of every partition of a batch.

        Raises:
            ReplanError: The partitions of the topic have changed.
            EngineError: The batch does not start at the end of the previous one.
        """
        begins = self._read_offsets(folder / (f"offsets/{number - 1}" if number else "sources/0/0"))
        ends = self._read_offsets(folder / f"offsets/{number}")
        if ends.keys() != self._next.keys():
            raise ReplanError("the partitions of the topic have changed since the query was planned")
        if begins != self._next:
            raise EngineError(
                f"Spark's batch {number} begins at {key_by_partition(begins)}, but the previous batch ended at "
                f"{key_by_partition(self._next)}. None of it landed; the next query reads it again."
            )
        return ends

    def _lag(self) -> dict[int, int]:
        """Returns the number of messages per partition that the query has seen and that have not landed."""
        progress = self._query.lastProgress if self._query else None
        latest = json.loads(progress["sources"][0]["latestOffset"] or "{}") if progress else {}
        ends = latest.get(self._readers.transactions.topic, {})
        return {
            source.partition: max(0, ends.get(str(source.partition), offset) - offset)
            for source, offset in self._next.items()
        }

    def _read_offsets(self, path: Path) -> dict[SourcePartition, int]:
        """Reads offsets that Spark wrote to its checkpoint. The last line of the file has the offsets of the source."""
        topic = self._readers.transactions.topic
        offsets = json.loads(path.read_text().splitlines()[-1]).get(topic, {})
        return {SourcePartition(topic, self._topic_id, int(partition)): offset for partition, offset in offsets.items()}


def _end_query(query: StreamingQuery) -> None:
    """Ends a query without a running batch. A query that does not end in time is abandoned."""
    from py4j.protocol import Py4JJavaError

    try:
        query.stop()
    except Py4JJavaError as error:
        # If the broker becomes unavailable while Kafka's admin client closes, a pending call can block for 20 minutes.
        if "TimeoutException" not in error.java_exception.toString():
            raise


@contextmanager
def _checkpoint(settings: Settings) -> Iterator[Path]:
    """Provides a new checkpoint folder and deletes it at the end, along with those of killed processes."""
    home = settings.home_path / "spark"
    for left in home.glob("landing-*"):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(int(left.name.split("-")[1]), 0)
            continue
        shutil.rmtree(left, ignore_errors=True)
    folder = home / f"landing-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
