"""Always-on landing with Spark: one query reads all partitions and is planned again whenever it ends."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fraud_assets.engines.landing_report import LandingReport
from fraud_assets.engines.local.landing import land_new_labels
from fraud_assets.engines.spark.batch_landing import LandedBatch, ReplanError
from fraud_assets.engines.spark.session import has_session_ended
from fraud_assets.engines.spark.topic_query import TopicQuery
from fraud_assets.errors import BrokerError, EngineError, LakeError, SparkEndedError
from fraud_assets.ingest.service.metrics import LandingMetrics
from fraud_assets.ingest.service.status import StatusReporter
from fraud_assets.kafka.topic_readers import TopicReaders
from fraud_assets.lake.positions import NOTHING
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


TRANSIENT = (BrokerError, LakeError, EngineError)
"""Errors after which the query is planned again."""


@dataclass
class SparkFollower:
    """Lands both topics on Spark with one query that reads all partitions. Implements `TopicFollower`.

    Attributes:
        has_connected: whether the broker has accepted a connection.
        newest: time of the last message that landed, in seconds since 1970.
    """

    spark: SparkSession
    lake: Lake
    settings: Settings
    stop: threading.Event
    status: StatusReporter
    metrics: LandingMetrics
    group: str
    has_connected: bool = False
    newest: float | None = None

    def follow(self) -> bool:
        """Lands new messages until `stop` is set or the query must be planned again. Returns true."""
        with TopicReaders.of(self.settings, self.group) as readers:

            def on_landed(batch: LandedBatch) -> None:
                self.newest = self.newest if batch.newest is None else batch.newest.timestamp()
                self._record(batch.reports, batch.lag)
                readers.transactions.commit_to_broker(
                    {p: offset for p, offset in batch.positions.items() if offset != NOTHING}
                )

            def land_labels(lag: Mapping[int, int]) -> None:
                labels, _ = land_new_labels(self.lake, self.settings, readers, self.stop.is_set)
                self._record({labels.table: labels}, lag)

            query = TopicQuery(self.spark, self.lake, self.settings, readers, on_landed, self.stop.is_set)
            try:
                query.run(bounded=False, beside=land_labels)
            except ReplanError:
                return True
            except EngineError as error:
                if has_session_ended(self.spark):
                    raise SparkEndedError(
                        f"The Spark session has ended: {error} Start `fraud-assets land` again."
                    ) from error
                raise
        return True

    def _record(self, reports: Mapping[str, LandingReport], lag: Mapping[int, int]) -> None:
        self.has_connected = True
        self.metrics.record_poll()
        self.metrics.record_landed(reports.values())
        self.metrics.record_lag(self.settings.transactions_topic, lag, self.newest)
        self.status.landed(reports)
        self.status.recovered("topics")
        self.status.report(sum(lag.values()))
