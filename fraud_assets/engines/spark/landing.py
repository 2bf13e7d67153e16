"""Landing of the transactions topic by Spark: executors read Kafka and write data files, the driver commits them.

A Structured Streaming query reads on from what the table holds. Its checkpoint is new at every start and is thrown away
at the end: the positions in the table's log are the one truth, for this lander as for every other, and each batch is
held against them. Labels are few; the driver drains them, before every batch.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from fraud_assets.core.schema import fraud_labels, raw_transactions
from fraud_assets.engines.landing_report import LandingReport, empty_reports, key_by_partition, merge_reports
from fraud_assets.engines.landing_tables import build_loss_note
from fraud_assets.engines.local.landing import land_new_labels, land_transactions, read_committed_offsets
from fraud_assets.engines.spark.messages import Landing, Written
from fraud_assets.engines.spark.session import spark_faults
from fraud_assets.errors import BrokerError, CommitConflictError, EngineError
from fraud_assets.kafka.java_client import java_client
from fraud_assets.kafka.topic_readers import TopicReaders
from fraud_assets.lake.append import commit_append, discard, retry_conflicts
from fraud_assets.lake.known_topics import LogStarts, positions_in
from fraud_assets.lake.positions import Positions, SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming import StreamingQuery

logger = logging.getLogger(__name__)

_TASK_ROWS = 100_000
"""Fewer messages than this are not worth a task and a data file of their own."""
_SLICE_SECONDS = 0.2
_LAST_BATCH_SECONDS = 12
"""So long may a batch that is under way take to its commit when landing is told to stop.

With twice `_END_SECONDS` it is less than the 30 s that Kubernetes gives.
"""
_END_SECONDS = 8
"""So long may Spark take to end a query that has nothing under way."""
_UNHELD_TIME = "long overflow"
"""Of Spark's error on a message whose time it cannot hold, as where a producer put in nanoseconds."""


class ReplanError(Exception):
    """The query does not join on to what the table holds or to the topic's partitions; a new one has to be planned."""


@dataclass(frozen=True)
class LandedBatch:
    """What one batch did.

    Attributes:
        reports: by table.
        positions: what the table holds now of the topic.
        newest: latest time that a message of it carries.
        lag: messages per partition that the query saw and that are still to come.
    """

    reports: dict[str, LandingReport]
    positions: Positions
    newest: datetime | None = None
    lag: dict[int, int] = field(default_factory=dict)


def drain_topics(
    session: Callable[[], SparkSession],
    lake: Lake,
    settings: Settings,
    readers: TopicReaders,
    stop: Callable[[], bool],
) -> dict[str, LandingReport]:
    """Drains both topics to their present ends, labels first; gives a report by table name."""
    begun = monotonic()
    ends = readers.transactions.end_offsets(stop)
    reports = empty_reports()
    reports[fraud_labels.name], _ = land_new_labels(lake, settings, readers, stop)

    def landed(batch: LandedBatch) -> None:
        for name, report in batch.reports.items():
            reports[name] = merge_reports(reports[name], report)
        if rows := batch.reports[raw_transactions.name].rows:
            logger.info(f"{raw_transactions.name}: {rows:,} rows landed from {settings.transactions_topic}")

    rows_at_failure = -1
    while not stop():
        first = readers.transactions.first_offsets(partial(positions_in, lake, raw_transactions), stop)
        if all(first.get(stream, 0) > end for stream, end in ends.items()):
            break
        try:
            TopicQuery(session(), lake, settings, readers, landed, stop).run(bounded=True)
            break
        except ReplanError:
            continue
        except EngineError:
            # An executor that was lost, a leader that moved: once it may pass.
            if reports[raw_transactions.name].rows == rows_at_failure:
                raise
            rows_at_failure = reports[raw_transactions.name].rows
    known = read_committed_offsets(lake, raw_transactions, ends)
    lag = {stream: max(0, end - known[stream]) for stream, end in ends.items()}
    total = reports[raw_transactions.name]
    reports[raw_transactions.name] = LandingReport(
        total.table,
        total.rows,
        total.bytes,
        seconds=monotonic() - begun,
        offsets=key_by_partition(known),
        lag=key_by_partition(lag),
    )
    return reports


class TopicQuery:
    """One query on the transactions topic, from what the table holds to the ends of now or until it is stopped."""

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
        # Held while a batch is landed, and while others use the readers.
        self._busy = threading.Lock()
        self._ended = False
        self._failure: BaseException | None = None
        self._query: StreamingQuery | None = None
        self._topic_id = ""
        self._next: dict[SourcePartition, int] = {}
        self._held: dict[SourcePartition, int] = {}

    def run(self, *, bounded: bool, beside: Callable[[Mapping[int, int]], None] | None = None) -> None:
        """Lands batch by batch; ends after the one under way.

        Args:
            bounded: to the ends that the topic has now, else until `stop` says so.
            beside: called between batches about every FRAUD_LAND_INTERVAL_SECONDS, once the query has looked at the
                topic, with the messages per partition that it saw there and that are not in the table.

        Raises:
            PlanAgainError: another query has to take over.
            EngineError: a job failed.
            BrokerError, MessagesLostError, LakeError: nothing is skipped; what was committed stays.
        """
        first = self._plan()
        try:
            with _checkpoint(self._settings) as folder, spark_faults(self._settings):
                query = self._query = self._start(first, folder, bounded)
                try:
                    self._attend(query, _SLICE_SECONDS if bounded else self._settings.land_interval_seconds, beside)
                finally:
                    self._ended = True
                    # A job may wait for a broker or for workers that never come; it is cancelled, and nobody misses it.
                    if self._busy.acquire(timeout=_LAST_BATCH_SECONDS):
                        self._busy.release()
                    _end(query)
            if self._failure is not None:
                raise self._failure
        except EngineError:
            # Of the broker and the topic their own reader tells more, if it is these.
            if not self._stop():
                self._plan()
            raise

    def _plan(self) -> dict[SourcePartition, int]:
        """First offset to read of every partition; raises what keeps landing from going on."""

        def held(streams: Collection[SourcePartition], log_starts: LogStarts) -> dict[SourcePartition, int]:
            self._held = positions_in(self._lake, raw_transactions, streams, log_starts)
            return self._held

        self._next = self._readers.transactions.first_offsets(held, self._stop)
        self._topic_id = next(iter(self._next)).topic_id
        return dict(self._next)

    def _start(self, first: Positions, folder: Path, bounded: bool) -> StreamingQuery:
        settings, topic = self._settings, self._readers.transactions.topic
        options = {
            **{f"kafka.{name}": value for name, value in java_client(settings).items()},
            # Spark looks up its place anew for every such portion.
            "kafka.max.poll.records": "10000",
            "subscribe": topic,
            "startingOffsets": json.dumps({topic: {str(stream.partition): first[stream] for stream in first}}),
            "includeHeaders": "true",
            "failOnDataLoss": "true",
            "groupIdPrefix": self._readers.transactions.group,
            "maxOffsetsPerTrigger": str(settings.spark_land_rows),
            "kafkaConsumer.pollTimeoutMs": str(int(settings.kafka_timeout_seconds * 1000)),
            # What does not answer is asked again by the next query.
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

    def _attend(
        self, query: StreamingQuery, seconds: float, beside: Callable[[Mapping[int, int]], None] | None
    ) -> None:
        while not self._stop() and self._failure is None and not query.awaitTermination(seconds):
            # A query that failed may not end; see `_end`.
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
        with self._busy:
            # A batch that is passed over here is read again by the next query: nobody keeps its checkpoint.
            if self._ended or self._failure is not None or self._stop():
                return
            try:
                ends = self._ends(number, folder)
                landed = self._land(rows, ends)
                self._next = dict(ends)
                self._landed(replace(landed, lag=self._lag()))
            except BaseException as error:  # noqa: BLE001 - raised by the thread that attends to the query
                self._failure = error

    def _ends(self, number: int, folder: Path) -> dict[SourcePartition, int]:
        """The offset after the last of every partition of this batch, once it is sure that it joins on to the last."""
        begins = self._offsets(folder / (f"offsets/{number - 1}" if number else "sources/0/0"))
        ends = self._offsets(folder / f"offsets/{number}")
        if ends.keys() != self._next.keys():
            raise ReplanError("the topic has other partitions than the query was planned for")
        if begins != self._next:
            raise EngineError(
                f"Spark's batch {number} begins at {key_by_partition(begins)}, and the last one ended at "
                f"{key_by_partition(self._next)}. Nothing of it was landed; it is read again."
            )
        return ends

    def _lag(self) -> dict[int, int]:
        """Messages per partition that are still to come, as far as the query had seen them after its last batch."""
        progress = self._query.lastProgress if self._query else None
        latest = json.loads(progress["sources"][0]["latestOffset"] or "{}") if progress else {}
        ends = latest.get(self._readers.transactions.topic, {})
        return {
            stream.partition: max(0, ends.get(str(stream.partition), offset) - offset)
            for stream, offset in self._next.items()
        }

    def _offsets(self, path: Path) -> dict[SourcePartition, int]:
        """What Spark wrote of its plan; the last line is that of the source."""
        topic = self._readers.transactions.topic
        offsets = json.loads(path.read_text().splitlines()[-1]).get(topic, {})
        return {SourcePartition(topic, self._topic_id, int(partition)): offset for partition, offset in offsets.items()}

    def _land(self, rows: DataFrame, ends: Positions) -> LandedBatch:
        """Drains the labels, then lands the batch up to `ends`."""
        lake, settings, readers = self._lake, self._settings, self._readers
        reports = empty_reports()
        reports[fraud_labels.name], is_drained = land_new_labels(lake, settings, readers, self._stop)
        if not is_drained:
            raise ReplanError("it was stopped")
        begun = monotonic()

        @retry_conflicts
        def land() -> LandedBatch:
            return self._commit(rows, ends, reports, begun)

        return land()

    def _commit(self, rows: DataFrame, ends: Positions, reports: dict[str, LandingReport], begun: float) -> LandedBatch:
        """Writes what the table does not hold yet and commits it. Another lander may have landed part of it."""
        lake, readers = self._lake, self._readers
        handle = lake.open(raw_transactions)
        held = {stream: committed_offset(handle, stream) for stream in ends}
        # Whatever the query was given between this and its first offset, the table holds. Other offsets before
        # this batch carry no message: markers of transactions, and what compaction took.
        if any(held[stream] < known for stream, known in self._held.items()):
            raise ReplanError("the table holds less than it did")
        try:
            written = self._written(rows, ends, held)
        except EngineError as error:
            if _UNHELD_TIME not in str(error):
                raise
            return self._landed_in_process(reports, ends)
        # What Spark found no message at, such as a marker of a transaction, is taken too; see `TopicReader.tails`.
        reached = {stream: max(held[stream], end - 1) for stream, end in ends.items()}
        ahead = {stream: offset for stream, offset in reached.items() if offset > held[stream]}
        if not ahead:
            self._held = reached
            return LandedBatch(reports, reached)
        note = {"rows": written.rows, **build_loss_note(readers.transactions.accepted)}
        try:
            # All that was read by now was of this topic id, or nothing of it is landed.
            readers.transactions.check_topic_id(self._topic_id)
            commit_append(handle, raw_transactions, written.files or raw_transactions.schema.empty_table(), ahead, note)
        except (CommitConflictError, BrokerError):
            discard(lake, raw_transactions, written.files)
            raise
        self._held = reached
        reports[raw_transactions.name] = LandingReport(
            raw_transactions.name,
            written.rows,
            written.bytes,
            seconds=monotonic() - begun,
            offsets=key_by_partition(reached),
        )
        return LandedBatch(reports, reached, written.newest)

    def _written(self, rows: DataFrame, ends: Positions, held: Positions) -> Written:
        if all(held[stream] + 1 >= end for stream, end in ends.items()):
            return Written()
        planned = sum(end - self._next[stream] for stream, end in ends.items())
        landing = Landing(
            self._lake.location(raw_transactions),
            self._settings,
            self._readers.transactions.topic,
            self._topic_id,
            held,
            datetime.now(UTC),
        )
        with spark_faults(self._settings):
            return landing.write(rows, max(1, -(-planned // _TASK_ROWS)))

    def _landed_in_process(self, reports: dict[str, LandingReport], ends: Positions) -> LandedBatch:
        """Lands the batch as `land_topics` does: librdkafka holds what Spark does not."""
        targets = {stream: end - 1 for stream, end in ends.items()}
        reader = self._readers.transactions
        report = land_transactions(self._lake, self._settings, reader, targets, self._stop)
        self._held = read_committed_offsets(self._lake, raw_transactions, ends)
        if self._stop():
            raise ReplanError("it was stopped")
        return LandedBatch({**reports, raw_transactions.name: report}, self._held)


def _end(query: StreamingQuery) -> None:
    """Ends the query, which lands nothing more; one that does not end is left alone."""
    from py4j.protocol import Py4JJavaError

    try:
        query.stop()
    except Py4JJavaError as error:
        # Kafka's admin client, closed while its broker goes away, can sleep for 20 minutes with a call in hand.
        if "TimeoutException" not in error.java_exception.toString():
            raise


@contextmanager
def _checkpoint(settings: Settings) -> Iterator[Path]:
    """A new folder for what Spark notes of a query; it goes with the block, and so do those of killed processes."""
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
