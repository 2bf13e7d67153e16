"""The engine that computes in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import pyarrow as pa

from fraud_assets.core.scoring import PREDICTION_INPUTS
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
from fraud_assets.engines.local.features import compute_features, recompute_features
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.engines.scoring import score_rows
from fraud_assets.kafka.topic_client import never
from fraud_assets.lake.batches import read_rows_within
from fraud_assets.lake.tables import Lake, read_batches
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from deltalake import DeltaTable


class LocalEngine:
    """Computes in this process with DuckDB and Arrow. Implements `Engine`."""

    recompute_days = 1

    def __init__(self, settings: Settings) -> None:
        self.limits = settings.batch_limits
        self._settings = settings

    def land_topics(
        self, lake: Lake, *, transactions: bool = True, stop: Callable[[], bool] = never
    ) -> dict[str, LandingReport]:
        """See `Engine.land_topics`."""
        return land_topics(lake, self._settings, transactions=transactions, stop=stop)

    def compute_features(self, batch: FeatureBatch) -> FeatureResult:
        """See `Engine.compute_features`."""
        return compute_features(batch, self._settings)

    def recompute_features(self, lake: Lake, handle: DeltaTable, start: datetime, end: datetime) -> RecomputedRange:
        """See `Engine.recompute_features`."""
        return recompute_features(lake, handle, start, end, self._settings)

    def score(self, batch: ScoringBatch) -> ScoringResult:
        """See `Engine.score`."""
        rows = read_rows_within(batch.pending, batch.bounds, self._settings, PREDICTION_INPUTS)
        return score_rows(rows, batch.scorer)

    def map_window(
        self, window: TrainingWindow, columns: Sequence[str], function: RowFunction, schema: pa.Schema
    ) -> pa.Table:
        """See `Engine.map_window`. Only a few batches of rows are in memory at a time."""
        rows = read_batches(window.handle, columns, window.files, window.where)
        return pa.Table.from_batches([batch.cast(schema) for batch in function(rows)], schema)
