"""Always-on landing by Spark: one query that reads all partitions, planned anew whenever it ends."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fraud_assets.engines.spark.landing import Landed, PlanAgainError, TopicQuery
from fraud_assets.engines.spark.session import has_ended
from fraud_assets.errors import BrokerError, EngineError, LakeError, MessagesLostError
from fraud_assets.ingest.landing import LandingReport, TopicReaders, land_new_labels
from fraud_assets.ingest.service.lander import consumer_group
from fraud_assets.ingest.service.metrics import LandingMetrics
from fraud_assets.ingest.service.outages import Outages, run_with_retries
from fraud_assets.ingest.service.status import Say, StatusReporter, Tell
from fraud_assets.lake.positions import NOTHING
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class SparkEndedError(EngineError):
    """The session is no more; only a new process has another."""


def land_forever_on_spark(
    spark: SparkSession,
    lake: Lake,
    settings: Settings,
    say: Say,
    stop: threading.Event,
    tell: Tell = lambda reports: None,
    metrics: LandingMetrics | None = None,
) -> None:
    """Lands until `stop` is set, as `land_forever` does; the messages by Spark, in commits of FRAUD_SPARK_LAND_ROWS.

    One of them has all partitions, for Spark shares them out itself. Others into the same lake, on Spark or not, do no
    harm and are of no use.

    Raises:
        MessagesLostError: messages are gone that had not landed; nothing is skipped.
        RefusedError: the broker does not let us in at the start. Later that may pass, as an outage does.
        LakeError: the lake cannot be used at the start.
        SparkEndedError: it has ended.
    """
    metrics = metrics or LandingMetrics()
    news = StatusReporter(say, tell, settings.dagster_event_seconds)
    outages = Outages(stop, news, metrics, (BrokerError, LakeError, EngineError))
    lander = _Lander(spark, lake, settings, stop, news, metrics, consumer_group(lake, settings))
    run_with_retries(outages, lander, lake, settings, say, final=(MessagesLostError, SparkEndedError))


@dataclass
class _Lander:
    spark: SparkSession
    lake: Lake
    settings: Settings
    stop: threading.Event
    news: StatusReporter
    metrics: LandingMetrics
    group: str
    was_let_in: bool = False
    newest: float | None = None
    """Time of the last message that landed, in seconds since 1970."""

    def follow(self) -> bool:
        """Lands what comes to the topics until told to stop, or until the query has to be planned anew."""
        with TopicReaders.of(self.settings, self.group) as readers:

            def landed(batch: Landed) -> None:
                self.newest = self.newest if batch.newest is None else batch.newest.timestamp()
                self._note(batch.reports, batch.lag)
                readers.transactions.tell({s: offset for s, offset in batch.positions.items() if offset != NOTHING})

            def beside(lag: Mapping[int, int]) -> None:
                labels, _ = land_new_labels(self.lake, self.settings, readers, self.stop.is_set)
                self._note({labels.table: labels}, lag)

            query = TopicQuery(self.spark, self.lake, self.settings, readers, landed, self.stop.is_set)
            try:
                query.run(bounded=False, beside=beside)
            except PlanAgainError:
                return True
            except EngineError as error:
                if has_ended(self.spark):
                    raise SparkEndedError(f"Spark has ended: {error} Start `fraud-assets land` again.") from error
                raise
        return True

    def _note(self, reports: Mapping[str, LandingReport], lag: Mapping[int, int]) -> None:
        self.was_let_in = True
        self.metrics.looked()
        self.metrics.landed(reports.values())
        self.metrics.lags(self.settings.transactions_topic, lag, self.newest)
        self.news.landed(reports)
        self.news.recovered("topics")
        self.news.tick(sum(lag.values()))
