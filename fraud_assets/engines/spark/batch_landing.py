"""Lands one batch of the streaming query: executors write data files, and the driver commits them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

from fraud_assets.core.schema import fraud_labels, raw_transactions
from fraud_assets.engines.landing_report import LandingReport, create_reports, key_by_partition
from fraud_assets.engines.landing_tables import build_loss_note
from fraud_assets.engines.local.landing import land_new_labels, land_transactions, read_committed_offsets
from fraud_assets.engines.spark.messages import MessageWriter, WrittenFiles
from fraud_assets.engines.spark.session import convert_spark_errors
from fraud_assets.errors import BrokerError, CommitConflictError, EngineError
from fraud_assets.kafka.topic_readers import TopicReaders
from fraud_assets.lake.append import commit_append, discard, retry_conflicts
from fraud_assets.lake.positions import Positions, committed_offset
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_TASK_ROWS = 100_000
"""Minimum messages of a task. Fewer messages do not justify a separate task and data file."""
_TIME_OVERFLOW = "long overflow"
"""Part of Spark's error for a message time that it cannot represent, for example a time in nanoseconds."""


class ReplanError(Exception):
    """The query no longer matches the table or the partitions of the topic, and a new query has to be planned."""


@dataclass(frozen=True)
class LandedBatch:
    """The result of one batch.

    Attributes:
        reports: Reports by table name.
        positions: The offsets of the topic that the table holds now.
        newest: Latest message time of the batch; None if no message has one.
        lag: Messages per partition that the query saw and that have not landed.
    """

    reports: dict[str, LandingReport]
    positions: Positions
    newest: datetime | None = None
    lag: dict[int, int] = field(default_factory=dict)


class BatchLander:
    """Lands the batches of one query, one after the other.

    Args:
        lake: The lake to land into.
        settings: The settings of the broker and of Spark.
        readers: Readers of both topics.
        topic_id: The id of the topic that the query reads.
        held: The offsets that the table held when the query was planned.
        stop: Returns whether a stop is requested.
    """

    def __init__(
        self,
        lake: Lake,
        settings: Settings,
        readers: TopicReaders,
        topic_id: str,
        held: Positions,
        stop: Callable[[], bool],
    ) -> None:
        self._lake = lake
        self._settings = settings
        self._readers = readers
        self._topic_id = topic_id
        self._held = held
        self._stop = stop

    def land(self, rows: DataFrame, begins: Positions, ends: Positions) -> LandedBatch:
        """Drains the labels topic, then lands a batch.

        Args:
            rows: The messages of the batch, as Spark's Kafka source returns them.
            begins: First offset of the batch by source partition.
            ends: End offset (exclusive) of the batch by source partition.

        Raises:
            ReplanError: A new query has to be planned, or a stop is requested.
            EngineError: A job failed.
            BrokerError, MessagesLostError, LakeError: The batch did not land.
        """
        reports = create_reports()
        reports[fraud_labels.name], is_drained = land_new_labels(self._lake, self._settings, self._readers, self._stop)
        if not is_drained:
            raise ReplanError("a stop is requested")
        started = monotonic()

        @retry_conflicts
        def commit() -> LandedBatch:
            return self._commit(rows, begins, ends, reports, started)

        return commit()

    def _commit(
        self,
        rows: DataFrame,
        begins: Positions,
        ends: Positions,
        reports: dict[str, LandingReport],
        started: float,
    ) -> LandedBatch:
        """Writes and commits the messages that the table does not hold yet. Another lander may have landed some."""
        lake, readers = self._lake, self._readers
        handle = lake.open(raw_transactions)
        held = {source: committed_offset(handle, source) for source in ends}
        # The table holds all offsets up to `self._held`. Other offsets before this batch carry no message: they are
        # transaction markers, or compaction removed them.
        if any(held[source] < known for source, known in self._held.items()):
            raise ReplanError("the table holds fewer messages than before")
        try:
            written = self._write(rows, begins, ends, held)
        except EngineError as error:
            if _TIME_OVERFLOW not in str(error):
                raise
            return self._land_in_process(reports, ends)
        # Offsets without a message, such as transaction markers, count as landed; see `TopicReader.tails`.
        reached = {source: max(held[source], end - 1) for source, end in ends.items()}
        ahead = {source: offset for source, offset in reached.items() if offset > held[source]}
        if not ahead:
            self._held = reached
            return LandedBatch(reports, reached)
        note = {"rows": written.rows, **build_loss_note(readers.transactions.accepted)}
        try:
            # If the topic was recreated meanwhile, some messages may belong to the new topic, so none of them lands.
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
            seconds=monotonic() - started,
            offsets=key_by_partition(reached),
        )
        return LandedBatch(reports, reached, written.newest)

    def _write(self, rows: DataFrame, begins: Positions, ends: Positions, held: Positions) -> WrittenFiles:
        """Writes the messages beyond `held` to data files, without committing them."""
        if all(held[source] + 1 >= end for source, end in ends.items()):
            return WrittenFiles()
        planned = sum(end - begins[source] for source, end in ends.items())
        writer = MessageWriter(
            self._lake.location(raw_transactions),
            self._settings,
            self._readers.transactions.topic,
            self._topic_id,
            held,
            datetime.now(UTC),
        )
        with convert_spark_errors(self._settings):
            return writer.write(rows, max(1, -(-planned // _TASK_ROWS)))

    def _land_in_process(self, reports: dict[str, LandingReport], ends: Positions) -> LandedBatch:
        """Lands the batch like `land_topics`: librdkafka can represent message times that Spark cannot."""
        targets = {source: end - 1 for source, end in ends.items()}
        reader = self._readers.transactions
        report = land_transactions(self._lake, self._settings, reader, targets, self._stop)
        self._held = read_committed_offsets(self._lake, raw_transactions, ends)
        if self._stop():
            raise ReplanError("a stop is requested")
        return LandedBatch({**reports, raw_transactions.name: report}, self._held)
