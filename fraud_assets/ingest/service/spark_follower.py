"""Always-on landing by Spark: one query that reads all partitions, planned anew whenever it ends."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fraud_assets.engines.landing_report import LandingReport
from fraud_assets.engines.local.landing import land_new_labels
from fraud_assets.engines.spark.batch_landing import LandedBatch, ReplanError
from fraud_assets.engines.spark.session import session_has_ended
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
    """Follows both topics on Spark: one query reads all partitions. Implements `TopicFollower`."""

    spark: SparkSession
    lake: Lake
    settings: Settings
    stop: threading.Event
    status: StatusReporter
    metrics: LandingMetrics
    group: str
    was_let_in: bool = False
    newest: float | None = None
    """Time of the last message that landed, in seconds since 1970."""

    def follow(self) -> bool:
        """Lands what comes to the topics until told to stop, or until the query has to be planned anew."""
        with TopicReaders.of(self.settings, self.group) as readers:

            def landed(batch: LandedBatch) -> None:
                self.newest = self.newest if batch.newest is None else batch.newest.timestamp()
                self._note(batch.reports, batch.lag)
                readers.transactions.commit_to_broker(
                    {s: offset for s, offset in batch.positions.items() if offset != NOTHING}
                )

            def beside(lag: Mapping[int, int]) -> None:
                labels, _ = land_new_labels(self.lake, self.settings, readers, self.stop.is_set)
                self._note({labels.table: labels}, lag)

            query = TopicQuery(self.spark, self.lake, self.settings, readers, landed, self.stop.is_set)
            try:
                query.run(bounded=False, beside=beside)
            except ReplanError:
                return True
            except EngineError as error:
                if session_has_ended(self.spark):
                    raise SparkEndedError(f"Spark has ended: {error} Start `fraud-assets land` again.") from error
                raise
        return True

    def _note(self, reports: Mapping[str, LandingReport], lag: Mapping[int, int]) -> None:
        self.was_let_in = True
        self.metrics.looked()
        self.metrics.landed(reports.values())
        self.metrics.lags(self.settings.transactions_topic, lag, self.newest)
        self.status.landed(reports)
        self.status.recovered("topics")
        self.status.tick(sum(lag.values()))
