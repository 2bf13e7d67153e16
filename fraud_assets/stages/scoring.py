"""Predictions: every feature row scored exactly once by the champion of its moment; a range again on request."""

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
from fraud_assets.lake.positions import committed_offset, positions_of
from fraud_assets.lake.tables import Lake, read
from fraud_assets.registry.champion import load_champion
from fraud_assets.settings import Settings
from fraud_assets.stages.alert_days import BusiestDay, find_busiest_day
from fraud_assets.stages.training import read_threshold

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoringReport:
    """What one run scored: `model` is that of the last batch, `days` are those of `tx_datetime`, in UTC."""

    rows: int = 0
    alerts: int = 0
    model: ModelVersion | None = None
    batches: int = 0
    seconds: float = 0.0
    days: frozenset[date] = frozenset()
    busiest: BusiestDay | None = None

    @property
    def alert_rate(self) -> float:
        """Share of the rows that alerted."""
        return self.alerts / self.rows if self.rows else 0.0

    def plus(self, scored: ScoringResult, model: ModelVersion) -> ScoringReport:
        """The report with one more batch."""
        return replace(
            self,
            rows=self.rows + count_rows(scored.rows),
            alerts=self.alerts + scored.alerts,
            model=model,
            batches=self.batches + 1,
            days=self.days | _days_of(scored.rows),
        )

    def ended(self, lake: Lake, settings: Settings, seconds: float) -> ScoringReport:
        """The report of a run that has ended, with the busiest of its days."""
        busiest = find_busiest_day(lake.open(fraud_predictions), settings, self.days) if self.days else None
        return replace(self, seconds=seconds, busiest=busiest)

    def metadata(self) -> dict[str, str | int | float]:
        """Plain values, for plots in the web UI.

        What a run without rows does not know (rate, model, days) is left out: a plot then has no point, not a zero.
        """
        values: dict[str, str | int | float] = {
            "rows": self.rows,
            "alerts": self.alerts,
            "batches": self.batches,
            "seconds": round(self.seconds, 3),
        }
        if self.rows:
            values["alert_rate"] = round(self.alert_rate, 6)
        if self.model:
            values |= {"model_version": self.model.version, "model_run_id": self.model.run_id}
        return values | self.busiest.metadata() if self.busiest else values


def score_pending(lake: Lake, settings: Settings, engine: Engine | None = None) -> ScoringReport:
    """Scores all feature rows beyond the committed offsets, batch by batch, in landing order.

    Champion and threshold are read again for each batch, so that a long backlog follows a change of champion.

    Args:
        lake: the tables.
        settings: the registry and DuckDB's memory.
        engine: scores the batches, called only if there is something to score; default: this process.

    Returns:
        Counts of this run.

    Raises:
        NoChampionError: there is no champion yet; nothing was scored.
        LakeError: a table cannot be read or written; the batches before stay committed.
        EngineError: a job of the engine failed; the batches before stay committed.
    """
    began = time.monotonic()
    engine = engine or LocalEngine(settings)
    report = ScoringReport()
    # Pinned: a run ends at the features of its start, however fast more come in.
    features = lake.open(transaction_features)

    @retry_conflicts
    def score_batch() -> ScoringReport | None:
        return _score_batch(lake, settings, engine, features, report)

    while (after := score_batch()) is not None:
        report = after
    return report.ended(lake, settings, time.monotonic() - began)


def _score_batch(
    lake: Lake, settings: Settings, engine: Engine, features: DeltaTable, report: ScoringReport
) -> ScoringReport | None:
    """Scores and commits the next batch; gives the report with it, or None if nothing is pending."""
    handle = lake.open(fraud_predictions)
    work = find_pending(features, lambda stream: committed_offset(handle, stream), settings)
    if not work.target:
        return None
    scorer = load_scorer(lake, settings)
    bounds = next_bounds(work, settings, engine.limits)
    result = engine.score(ScoringBatch(lake, work, bounds, scorer))
    if result.other_versions:
        discard(lake, fraud_predictions, result.rows)
        raise _unknown(result.other_versions, lake)
    try:
        commit_append(handle, fraud_predictions, result.rows, bounds.target, _facts(result, scorer.made))
    except CommitConflictError:
        discard(lake, fraud_predictions, result.rows)
        logger.info("Another writer committed first; the batch starts over from what the tables hold now.")
        raise
    report = report.plus(result, scorer.made)
    logger.info(
        f"{report.rows:,} of {report.rows + work.rows - count_rows(result.rows):,} transactions scored: "
        f"{report.alerts:,} alerts"
    )
    return report


def load_scorer(lake: Lake, settings: Settings) -> Scorer:
    """Returns a scorer of the present champion, its threshold and this moment.

    Raises:
        NoChampionError: there is no champion yet.
        LakeError: the champion has no threshold, or it cannot be read.
    """
    current = load_champion(lake, settings)
    threshold = read_threshold(lake, current, settings)
    return Scorer(current.model, ModelVersion(current.version, current.run_id), threshold, datetime.now(UTC))


def score_range(lake: Lake, settings: Settings, start: datetime, end: datetime) -> ScoringReport:
    """Score `tx_datetime` in [start, end) again, with the champion, threshold and features of now.

    Day by day, each in one commit. Rows that wait for their first score are left to `score_pending`. Always in this
    process, whatever the engine: that a day's rows take the place of others by a predicate is delta-rs's own writing.

    Raises:
        SettingError: the range is empty or has no zone.
        NoChampionError: there is no champion yet.
        LakeError: a table cannot be read or written; the days before stay committed.
    """
    if start.tzinfo is None or end.tzinfo is None or start >= end:
        raise SettingError(f"The range from {start} to {end} is empty or without a zone: give start < end, in UTC.")
    began = time.monotonic()
    report = ScoringReport()
    for low, high in _days(lake.open(transaction_features), start.astimezone(UTC), end.astimezone(UTC)):
        day = _score_day(lake, settings, low, high)
        if day is not None:
            report = report.plus(*day)
            logger.info(f"scored again up to {high:%Y-%m-%d %H:%M}: {report.rows:,} transactions")
    return report.ended(lake, settings, time.monotonic() - began)


def _unknown(versions: frozenset[str], lake: Lake) -> LakeError:
    return LakeError(
        f"Rows of {lake.uri(transaction_features)} have feature version {', '.join(sorted(versions))}, the champion "
        f"scores version {FEATURE_VERSION}: recompute their range of tx_datetime first."
    )


def _facts(scored: ScoringResult, made: ModelVersion) -> dict[str, object]:
    return {
        "rows": count_rows(scored.rows),
        "alerts": scored.alerts,
        "model_version": made.version,
        "model_run_id": made.run_id,
    }


def _days_of(rows: Rows) -> frozenset[date]:
    """Days of `tx_datetime` of the predictions."""
    if isinstance(rows, pa.Table):
        return frozenset(pc.unique(rows["tx_date"]).to_pylist())
    return frozenset(date.fromisoformat(file.partition) for file in rows if file.partition)


def _days(features: DeltaTable, start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """The range cut at midnight, only days that hold features: a range of years costs what is in it."""
    actions = add_actions(features)
    held = sorted(pc.unique(actions["partition.tx_date"]).to_pylist()) if actions.num_rows else []
    days = []
    for day in held:
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
        low, high = max(midnight, start), min(midnight + timedelta(days=1), end)
        if low < high:
            days.append((low, high))
    return days


@retry_conflicts
def _score_day(
    lake: Lake, settings: Settings, low: datetime, high: datetime
) -> tuple[ScoringResult, ModelVersion] | None:
    """What took the place of the day's predictions, and the model that made it; None where it has none."""
    within = (
        (pc.field("tx_date") == low.date())
        & (pc.field("tx_datetime") >= pa.scalar(low, TIME))
        & (pc.field("tx_datetime") < pa.scalar(high, TIME))
    )
    where = f"tx_datetime >= '{low:%Y-%m-%dT%H:%M:%S.%fZ}' AND tx_datetime < '{high:%Y-%m-%dT%H:%M:%S.%fZ}'"
    # Predictions first: what is scored for the first time afterwards stays beyond their committed offsets.
    handle = lake.open(fraud_predictions)
    rows = read(lake.open(transaction_features), PREDICTION_INPUTS, within)
    rows = _contained(rows.cast(pa.schema([TRANSACTION_FEATURES.field(n) for n in PREDICTION_INPUTS])), handle)
    if not rows.num_rows:
        return None
    scorer = load_scorer(lake, settings)
    scored = score_rows(rows, scorer)
    if scored.other_versions:
        raise _unknown(scored.other_versions, lake)
    note = {"rescored": f"{low.isoformat()}/{high.isoformat()}", **_facts(scored, scorer.made)}
    commit_range(handle, fraud_predictions, pa.table(scored.rows), where, note)
    return scored, scorer.made


def _contained(rows: pa.Table, handle: DeltaTable) -> pa.Table:
    """The rows that the handle's version already holds: at or below its stored positions."""
    masks: list[Any] = [
        reduce(
            pc.and_,
            (
                pc.equal(rows["topic"], stream.topic),
                pc.equal(rows["topic_id"], stream.topic_id),
                pc.equal(rows["partition"], stream.partition),
                pc.less_equal(rows["offset"], committed_offset(handle, stream)),
            ),
        )
        for stream in positions_of(rows)
    ]
    return rows.filter(reduce(pc.or_, masks)) if masks else rows
