"""The engine that computes on Spark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import pyarrow as pa

from fraud_assets.engines.base import (
    FeatureBatch,
    FeatureResult,
    RecomputedRange,
    RowFunction,
    ScoringBatch,
    ScoringResult,
    TrainingWindow,
)
from fraud_assets.engines.landing_report import LandingReport
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.engines.spark.features import compute_features, recompute_features
from fraud_assets.engines.spark.landing import drain_topics
from fraud_assets.engines.spark.scoring import score_batch
from fraud_assets.engines.spark.session import convert_spark_errors, require_connector
from fraud_assets.engines.spark.training import map_window
from fraud_assets.kafka.broker import uses_external_broker
from fraud_assets.kafka.topic_client import never
from fraud_assets.kafka.topic_readers import TopicReaders
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyspark import Broadcast
    from pyspark.sql import SparkSession


class SparkEngine:
    """Computes on Spark's executors. Implements `Engine`.

    Args:
        settings: The message contract, the topics and the limits of a batch.
        session: Returns the Spark session; called only if work is pending.
    """

    recompute_days = 31

    def __init__(self, settings: Settings, session: Callable[[], SparkSession]) -> None:
        self.limits = settings.spark_batch_limits
        self._settings = settings
        self._session = session
        self._models: dict[str, Broadcast[bytes]] = {}

    def land_topics(
        self, lake: Lake, *, transactions: bool = True, stop: Callable[[], bool] = never
    ) -> dict[str, LandingReport]:
        """See `Engine.land_topics`. The embedded broker does not support Java clients; this process reads it itself.

        Raises:
            EngineError: A job failed twice without progress.
            JarsError: Spark's Kafka connector cannot be resolved.
            BrokerError, MessagesLostError, LakeError: Nothing is skipped, and committed batches stay.
        """
        settings = self._settings
        if not transactions or not uses_external_broker(settings):
            return land_topics(lake, settings, transactions=transactions, stop=stop)
        require_connector(settings)
        with TopicReaders.of(settings, settings.consumer_group) as readers:
            return drain_topics(self._session, lake, settings, readers, stop)

    def compute_features(self, batch: FeatureBatch) -> FeatureResult:
        """See `Engine.compute_features`."""
        with convert_spark_errors(self._settings):
            return compute_features(self._session(), batch, self._settings)

    def recompute_features(self, lake: Lake, handle: DeltaTable, start: datetime, end: datetime) -> RecomputedRange:
        """See `Engine.recompute_features`. It writes whole days, with unchanged rows outside the range."""
        with convert_spark_errors(self._settings):
            return recompute_features(self._session(), lake, handle, start, end, self._settings)

    def score(self, batch: ScoringBatch) -> ScoringResult:
        """See `Engine.score`."""
        spark = self._session()
        run_id = batch.scorer.model_version.run_id
        with convert_spark_errors(self._settings):
            if run_id not in self._models:
                self._models[run_id] = spark.sparkContext.broadcast(batch.scorer.model.serialize_bytes())
            return score_batch(spark, batch, self._models[run_id])

    def map_window(
        self, window: TrainingWindow, columns: Sequence[str], function: RowFunction, schema: pa.Schema
    ) -> pa.Table:
        """See `Engine.map_window`."""
        with convert_spark_errors(self._settings):
            return map_window(self._session(), window, columns, function, schema)
