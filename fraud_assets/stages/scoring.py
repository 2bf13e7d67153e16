"""Scores every feature row exactly once with the current champion, and rescores a range on request."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from fraud_assets.core.schema import (
    FEATURE_VERSION,
    TIME,
    TRANSACTION_FEATURES,
    fraud_predictions,
    transaction_features,
)
from fraud_assets.core.scoring import PREDICTION_INPUTS, ModelVersion, Scorer
from fraud_assets.engines.base import Engine, ScoringBatch, ScoringResult
from fraud_assets.engines.local.engine import LocalEngine
from fraud_assets.engines.scoring import score_rows
from fraud_assets.errors import CommitConflictError, LakeError, SettingError
from fraud_assets.lake.append import commit_append, commit_range, discard, retry_conflicts
from fraud_assets.lake.batches import find_pending, next_bounds
from fraud_assets.lake.data_files import Rows, count_rows
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.positions import committed_offset, find_largest_positions
from fraud_assets.lake.tables import Lake, read
from fraud_assets.registry.champion import load_champion
from fraud_assets.settings import Settings
from fraud_assets.stages.alert_days import BusiestDay, find_busiest_day
from fraud_assets.stages.calibration import read_threshold

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoringReport:
    """The result of one run.

    Attributes:
        rows: Number of scored rows.
        alerts: Number of rows that alert.
        model: The model of the last batch.
        batches: Number of batches.
        seconds: Duration.
        days: Days of `tx_datetime` of the rows, in UTC.
        busiest: The day with the most alerts.
    """

    rows: int = 0
    alerts: int = 0
    model: ModelVersion | None = None
    batches: int = 0
    seconds: float = 0.0
    days: frozenset[date] = frozenset()
    busiest: BusiestDay | None = None

    @property
    def alert_rate(self) -> float:
        """Share of the rows that alert."""
        return self.alerts / self.rows if self.rows else 0.0

    def add_batch(self, scored: ScoringResult, model: ModelVersion) -> ScoringReport:
        """Returns the report with one more batch."""
        return replace(
            self,
            rows=self.rows + count_rows(scored.rows),
            alerts=self.alerts + scored.alerts,
            model=model,
            batches=self.batches + 1,
            days=self.days | _find_days(scored.rows),
        )

    def finish(self, lake: Lake, settings: Settings, seconds: float) -> ScoringReport:
        """Returns the report of a finished run, with the busiest of its days."""
        busiest = find_busiest_day(lake.open(fraud_predictions), settings, self.days) if self.days else None
        return replace(self, seconds=seconds, busiest=busiest)


def score_pending(lake: Lake, settings: Settings, engine: Engine | None = None) -> ScoringReport:
    """Scores all feature rows beyond the committed offsets, batch by batch, in landing order.

    Champion and threshold are read again for each batch, so a new champion takes effect within a long backlog.

    Args:
        lake: The lake.
        settings: The settings of the registry and DuckDB.
        engine: The engine that scores the batches; called only if there are pending rows; default: this process.

    Returns:
        Counts of this run.

    Raises:
        NoChampionError: No champion exists yet. Nothing was scored.
        LakeError: A table cannot be read or written. Earlier batches stay committed.
        EngineError: A job of the engine failed. Earlier batches stay committed.
    """
    started = time.monotonic()
    engine = engine or LocalEngine(settings)
    report = ScoringReport()
    # The version is pinned, so that a run ends even if features arrive faster than it scores them.
    features = lake.open(transaction_features)

    @retry_conflicts
    def score_batch() -> ScoringReport | None:
        return _score_batch(lake, settings, engine, features, report)

    while (after := score_batch()) is not None:
        report = after
    return report.finish(lake, settings, time.monotonic() - started)


def _score_batch(
    lake: Lake, settings: Settings, engine: Engine, features: DeltaTable, report: ScoringReport
) -> ScoringReport | None:
    """Scores and commits the next batch.

    Returns:
        The report with this batch, or None if nothing is pending.
    """
    handle = lake.open(fraud_predictions)
    pending = find_pending(features, lambda source: committed_offset(handle, source), settings)
    if not pending.target:
        return None
    scorer = load_scorer(lake, settings)
    bounds = next_bounds(pending, settings, engine.limits)
    result = engine.score(ScoringBatch(lake, pending, bounds, scorer))
    if result.other_versions:
        discard(lake, fraud_predictions, result.rows)
        raise _make_version_error(result.other_versions, lake)
    try:
        commit_append(handle, fraud_predictions, result.rows, bounds.target, _commit_info(result, scorer.model_version))
    except CommitConflictError:
        discard(lake, fraud_predictions, result.rows)
        logger.info("Another writer committed first; the batch starts over from the current table versions")
        raise
    report = report.add_batch(result, scorer.model_version)
    logger.info(
        f"scored {report.rows:,} of {report.rows + pending.rows - count_rows(result.rows):,} transactions: "
        f"{report.alerts:,} alerts"
    )
    return report


def load_scorer(lake: Lake, settings: Settings) -> Scorer:
    """Loads the current champion and its threshold. The time of scoring is now.

    Raises:
        NoChampionError: No champion exists yet.
        LakeError: The champion has no threshold, or the threshold cannot be read.
    """
    current = load_champion(lake, settings)
    threshold = read_threshold(lake, current, settings)
    return Scorer(current.model, ModelVersion(current.version, current.run_id), threshold, datetime.now(UTC))


def score_range(lake: Lake, settings: Settings, start: datetime, end: datetime) -> ScoringReport:
    """Rescores `tx_datetime` in [start, end) with the current champion, threshold and features.

    Each day is one commit. Rows that were never scored stay pending for `score_pending`. The range is scored in
    this process for every FRAUD_ENGINE, because only delta-rs itself can replace rows by a predicate.

    Args:
        lake: The lake.
        settings: The settings of the registry and DuckDB.
        start: Start of the range (inclusive), with time zone.
        end: End of the range (exclusive).

    Returns:
        Counts of this run.

    Raises:
        SettingError: The range is empty or has no time zone.
        NoChampionError: No champion exists yet.
        LakeError: A table cannot be read or written. Earlier days stay committed.
    """
    if start.tzinfo is None or end.tzinfo is None or start >= end:
        raise SettingError(f"The range from {start} to {end} is empty or has no time zone. Give start < end, in UTC.")
    started = time.monotonic()
    report = ScoringReport()
    for low, high in _split_by_day(lake.open(transaction_features), start.astimezone(UTC), end.astimezone(UTC)):
        day = _score_day(lake, settings, low, high)
        if day is not None:
            report = report.add_batch(*day)
            logger.info(f"rescored up to {high:%Y-%m-%d %H:%M}: {report.rows:,} transactions")
    return report.finish(lake, settings, time.monotonic() - started)


def _make_version_error(versions: frozenset[str], lake: Lake) -> LakeError:
    return LakeError(
        f"Rows of {lake.uri(transaction_features)} have feature version {', '.join(sorted(versions))}, but the "
        f"champion supports only version {FEATURE_VERSION}. Recompute their range of tx_datetime first."
    )


def _commit_info(scored: ScoringResult, model_version: ModelVersion) -> dict[str, object]:
    return {
        "rows": count_rows(scored.rows),
        "alerts": scored.alerts,
        "model_version": model_version.version,
        "model_run_id": model_version.run_id,
    }


def _find_days(rows: Rows) -> frozenset[date]:
    """Returns the days of `tx_datetime` of the predictions."""
    if isinstance(rows, pa.Table):
        return frozenset(pc.unique(rows["tx_date"]).to_pylist())
    return frozenset(date.fromisoformat(file.partition) for file in rows if file.partition)


def _split_by_day(features: DeltaTable, start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """Splits a range at midnight and drops days without features, so that empty days cost nothing."""
    actions = add_actions(features)
    days_with_rows = sorted(pc.unique(actions["partition.tx_date"]).to_pylist()) if actions.num_rows else []
    days = []
    for day in days_with_rows:
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
        low, high = max(midnight, start), min(midnight + timedelta(days=1), end)
        if low < high:
            days.append((low, high))
    return days


@retry_conflicts
def _score_day(
    lake: Lake, settings: Settings, low: datetime, high: datetime
) -> tuple[ScoringResult, ModelVersion] | None:
    """Rescores a day, or a part of it, in one commit.

    Returns:
        The new predictions and their model, or None if there are no predictions to replace.
    """
    within = (
        (pc.field("tx_date") == low.date())
        & (pc.field("tx_datetime") >= pa.scalar(low, TIME))
        & (pc.field("tx_datetime") < pa.scalar(high, TIME))
    )
    where = f"tx_datetime >= '{low:%Y-%m-%dT%H:%M:%S.%fZ}' AND tx_datetime < '{high:%Y-%m-%dT%H:%M:%S.%fZ}'"
    # Predictions are opened first: rows that are scored for the first time later are beyond their committed offsets.
    handle = lake.open(fraud_predictions)
    rows = read(lake.open(transaction_features), PREDICTION_INPUTS, within)
    rows = _select_committed(rows.cast(pa.schema([TRANSACTION_FEATURES.field(n) for n in PREDICTION_INPUTS])), handle)
    if not rows.num_rows:
        return None
    scorer = load_scorer(lake, settings)
    scored = score_rows(rows, scorer)
    if scored.other_versions:
        raise _make_version_error(scored.other_versions, lake)
    note = {"rescored": f"{low.isoformat()}/{high.isoformat()}", **_commit_info(scored, scorer.model_version)}
    commit_range(handle, fraud_predictions, pa.table(scored.rows), where, note)
    return scored, scorer.model_version


def _select_committed(rows: pa.Table, handle: DeltaTable) -> pa.Table:
    """Returns the rows that the handle's version already holds: those up to its committed offsets."""
    masks: list[Any] = [
        reduce(
            pc.and_,
            (
                pc.equal(rows["topic"], source.topic),
                pc.equal(rows["topic_id"], source.topic_id),
                pc.equal(rows["partition"], source.partition),
                pc.less_equal(rows["offset"], committed_offset(handle, source)),
            ),
        )
        for source in find_largest_positions(rows)
    ]
    return rows.filter(reduce(pc.or_, masks)) if masks else rows
