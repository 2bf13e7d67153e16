"""Predictions: every feature row scored exactly once by the champion of its moment; a range again on request."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import reduce
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from fraud_assets.core.schema import (
    FEATURE_VERSION,
    FRAUD_PREDICTIONS,
    TIME,
    TRANSACTION_FEATURES,
    fraud_predictions,
    transaction_features,
)
from fraud_assets.core.scoring import PREDICTION_INPUTS, predictions
from fraud_assets.errors import LakeError, SettingError
from fraud_assets.lake.append import CommitConflictError, commit
from fraud_assets.lake.batches import Bounds, Pending, next_bounds, pending, rows_within
from fraud_assets.lake.data_files import Rows, count_of, discard
from fraud_assets.lake.positions import committed_offset, positions_of
from fraud_assets.lake.tables import Lake, add_actions, read
from fraud_assets.registry.champion import champion_for
from fraud_assets.registry.models import ModelVersion
from fraud_assets.settings import Settings
from fraud_assets.stages.alert_days import BusiestDay, busiest_day
from fraud_assets.stages.training import current_threshold

if TYPE_CHECKING:
    import treelite

Progress = Callable[[str], None]


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

    def plus(self, scored: Scored, model: ModelVersion) -> ScoringReport:
        """The report with one more batch."""
        return replace(
            self,
            rows=self.rows + count_of(scored.rows),
            alerts=self.alerts + scored.alerts,
            model=model,
            batches=self.batches + 1,
            days=self.days | _days_of(scored.rows),
        )

    def ended(self, lake: Lake, settings: Settings, seconds: float) -> ScoringReport:
        """The report of a run that has ended, with the busiest of its days."""
        busiest = busiest_day(lake.open(fraud_predictions), settings, self.days) if self.days else None
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


@dataclass(frozen=True)
class Scorer:
    """What all rows of a batch are scored with: a model version, its threshold and the moment."""

    model: treelite.Model
    made: ModelVersion
    threshold: float
    scored_at: datetime

    @classmethod
    def now(cls, lake: Lake, settings: Settings) -> Scorer:
        """The champion of this moment. Raises `NoChampionError` and `LakeError`."""
        current = champion_for(lake, settings)
        threshold = current_threshold(lake, current, settings)
        return cls(current.model, ModelVersion(current.version, current.run_id), threshold, datetime.now(UTC))

    def score(self, rows: pa.Table) -> pa.Table:
        """Predictions of the rows (columns PREDICTION_INPUTS), in their order."""
        made = self.made
        return predictions(rows, self.model, self.threshold, made.version, made.run_id, self.scored_at)


@dataclass(frozen=True)
class Batch:
    """What one round scores: the feature rows within the `bounds` of `work`."""

    lake: Lake
    settings: Settings
    work: Pending
    bounds: Bounds
    scorer: Scorer


@dataclass(frozen=True)
class Scored:
    """Predictions ready for their commit, and how many of them alert.

    `other_versions` are feature versions that the model does not know; rows of them are not scored.
    """

    rows: Rows
    alerts: int
    other_versions: frozenset[str] = frozenset()


def score_pending(
    lake: Lake,
    settings: Settings,
    progress: Progress = lambda line: None,
    compute: Callable[[Batch], Scored] | None = None,
) -> ScoringReport:
    """Score all feature rows beyond the stored positions, batch by batch, in landing order.

    Champion and threshold are read anew for each batch, so that a long backlog follows a hand-over.

    Args:
        lake: where the tables are.
        settings: of the batch and the registry.
        progress: told after every batch.
        compute: the engine, asked only when there is something to score; this process where None.

    Raises:
        NoChampionError: there is no champion yet; nothing was scored.
        LakeError: a table cannot be read or written; the batches before stay committed.
    """
    began = time.monotonic()
    report = ScoringReport()
    # Pinned: a run ends at the features of its start, however fast more come in.
    features = lake.open(transaction_features)
    while True:
        handle = lake.open(fraud_predictions)
        work = pending(features, lambda stream: committed_offset(handle, stream), settings)  # noqa: B023
        if not work.target:
            return report.ended(lake, settings, time.monotonic() - began)
        scorer = Scorer.now(lake, settings)
        batch = Batch(lake, settings, work, next_bounds(work, settings), scorer)
        scored = (compute or compute_here)(batch)
        if scored.other_versions:
            discard(lake, fraud_predictions, scored.rows)
            raise _unknown(scored.other_versions, lake)
        try:
            commit(handle, fraud_predictions, scored.rows, batch.bounds.target, _facts(scored, scorer.made))
        except CommitConflictError:
            discard(lake, fraud_predictions, scored.rows)
            progress("another writer committed first; starting over from what the tables hold now")
            continue
        report = report.plus(scored, scorer.made)
        progress(f"{report.rows:,} of {report.rows + work.rows - count_of(scored.rows):,} transactions scored: "
                 f"{report.alerts:,} alerts")  # fmt: skip


def compute_here(batch: Batch) -> Scored:
    """The batch, scored in this process."""
    return score_rows(rows_within(batch.work, batch.bounds, batch.settings, PREDICTION_INPUTS), batch.scorer)


def score_rows(rows: pa.Table, scorer: Scorer) -> Scored:
    """The rows (columns PREDICTION_INPUTS), scored; none of them where one has another feature version."""
    others = other_versions(rows)
    scored = FRAUD_PREDICTIONS.empty_table() if others else scorer.score(rows)
    return Scored(scored, alerts_in(scored), others)


def other_versions(rows: pa.Table) -> frozenset[str]:
    """Feature versions of the rows that no champion of this release scores."""
    return frozenset(pc.unique(rows["feature_version"]).to_pylist()) - {FEATURE_VERSION}


def alerts_in(scored: pa.Table) -> int:
    """How many of the predictions alert."""
    return pc.sum(scored["is_alert"]).as_py() or 0


def score_range(
    lake: Lake, settings: Settings, start: datetime, end: datetime, progress: Progress = lambda line: None
) -> ScoringReport:
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
            progress(f"scored again up to {high:%Y-%m-%d %H:%M}: {report.rows:,} transactions")
    return report.ended(lake, settings, time.monotonic() - began)


def _unknown(versions: frozenset[str], lake: Lake) -> LakeError:
    return LakeError(
        f"Rows of {lake.uri(transaction_features)} have feature version {', '.join(sorted(versions))}, the champion "
        f"scores version {FEATURE_VERSION}: recompute their range of tx_datetime first."
    )


def _facts(scored: Scored, made: ModelVersion) -> dict[str, object]:
    return {
        "rows": count_of(scored.rows),
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


def _score_day(lake: Lake, settings: Settings, low: datetime, high: datetime) -> tuple[Scored, ModelVersion] | None:
    """What took the place of the day's predictions, and the model that made it; None where it has none."""
    within = (
        (pc.field("tx_date") == low.date())
        & (pc.field("tx_datetime") >= pa.scalar(low, TIME))
        & (pc.field("tx_datetime") < pa.scalar(high, TIME))
    )
    where = f"tx_datetime >= '{low:%Y-%m-%dT%H:%M:%S.%fZ}' AND tx_datetime < '{high:%Y-%m-%dT%H:%M:%S.%fZ}'"
    while True:
        # Predictions first: what is scored for the first time afterwards stays beyond their stored positions.
        handle = lake.open(fraud_predictions)
        rows = read(lake.open(transaction_features), PREDICTION_INPUTS, within)
        rows = _contained(rows.cast(pa.schema([TRANSACTION_FEATURES.field(n) for n in PREDICTION_INPUTS])), handle)
        if not rows.num_rows:
            return None
        scorer = Scorer.now(lake, settings)
        scored = score_rows(rows, scorer)
        if scored.other_versions:
            raise _unknown(scored.other_versions, lake)
        mark = {"rescored": f"{low.isoformat()}/{high.isoformat()}", **_facts(scored, scorer.made)}
        try:
            commit(handle, fraud_predictions, scored.rows, {}, mark, recomputed=where)
        except CommitConflictError:
            continue
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
