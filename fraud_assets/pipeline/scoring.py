"""Predictions: every feature row scored exactly once by the champion of its moment; a range again on request."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Any

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
from fraud_assets.lake.batches import pending, read_batch
from fraud_assets.lake.positions import positions_of, stored
from fraud_assets.lake.tables import Lake, add_actions, read
from fraud_assets.pipeline.training import current_threshold
from fraud_assets.registry import champion
from fraud_assets.settings import Settings

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ScoringReport:
    """What one run scored; `model_version` is that of the last batch."""

    rows: int = 0
    alerts: int = 0
    model_version: int = 0
    batches: int = 0
    seconds: float = 0.0

    @property
    def alert_rate(self) -> float:
        """Share of the rows that alerted."""
        return self.alerts / self.rows if self.rows else 0.0

    def plus(self, scored: pa.Table, model_version: int) -> ScoringReport:
        """The report with one more batch."""
        alerts = pc.sum(scored["is_alert"]).as_py() or 0
        return replace(
            self,
            rows=self.rows + scored.num_rows,
            alerts=self.alerts + alerts,
            model_version=model_version,
            batches=self.batches + 1,
        )

    def metadata(self) -> dict[str, int | float]:
        """Plain numbers, for plots in the web UI."""
        return {
            "rows": self.rows,
            "alerts": self.alerts,
            "alert_rate": round(self.alert_rate, 6),
            "model_version": self.model_version,
            "batches": self.batches,
            "seconds": round(self.seconds, 3),
        }


def score_pending(lake: Lake, settings: Settings, progress: Progress = lambda line: None) -> ScoringReport:
    """Score all feature rows beyond the stored positions, batch by batch, in landing order.

    Champion and threshold are read anew for each batch, so that a long backlog follows a hand-over.

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
        work = pending(features, lambda stream: stored(handle, stream), settings)  # noqa: B023
        if not work.target:
            return replace(report, seconds=time.monotonic() - began)
        batch = read_batch(work, settings, columns=PREDICTION_INPUTS)
        scored, version = _scored(batch, lake, settings)
        try:
            commit(handle, fraud_predictions, scored, positions_of(batch), _facts(scored, version))
        except CommitConflictError:
            progress("another run scored the same transactions first; starting over from its positions")
            continue
        report = report.plus(scored, version)
        progress(f"{report.rows:,} of {report.rows + work.rows - batch.num_rows:,} transactions scored: "
                 f"{report.alerts:,} alerts")  # fmt: skip


def score_range(
    lake: Lake, settings: Settings, start: datetime, end: datetime, progress: Progress = lambda line: None
) -> ScoringReport:
    """Score `tx_datetime` in [start, end) again, with the champion, threshold and features of now.

    Day by day, each in one commit. Rows that wait for their first score are left to `score_pending`.

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
        scored, version = _score_day(lake, settings, low, high)
        if scored.num_rows:
            report = report.plus(scored, version)
            progress(f"scored again up to {high:%Y-%m-%d %H:%M}: {report.rows:,} transactions")
    return replace(report, seconds=time.monotonic() - began)


def _scored(rows: pa.Table, lake: Lake, settings: Settings) -> tuple[pa.Table, int]:
    """Predictions of the rows and the version that made them."""
    current = champion(settings)
    others = set(pc.unique(rows["feature_version"]).to_pylist()) - {FEATURE_VERSION}
    if others:
        raise LakeError(
            f"Rows of {lake.uri(transaction_features)} have feature version {', '.join(sorted(others))}, the champion "
            f"scores version {FEATURE_VERSION}: restate their range of tx_datetime first."
        )
    threshold = current_threshold(lake, current.version, settings)
    return predictions(rows, current.model, threshold, current.version, datetime.now(UTC)), current.version


def _facts(scored: pa.Table, version: int) -> dict[str, object]:
    return {"rows": scored.num_rows, "alerts": pc.sum(scored["is_alert"]).as_py() or 0, "model_version": version}


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


def _score_day(lake: Lake, settings: Settings, low: datetime, high: datetime) -> tuple[pa.Table, int]:
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
            return FRAUD_PREDICTIONS.empty_table(), 0
        scored, version = _scored(rows, lake, settings)
        mark = {"rescored": f"{low.isoformat()}/{high.isoformat()}", **_facts(scored, version)}
        try:
            commit(handle, fraud_predictions, scored, {}, mark, restated=where)
        except CommitConflictError:
            continue
        return scored, version


def _contained(rows: pa.Table, handle: DeltaTable) -> pa.Table:
    """The rows that the handle's version already holds: at or below its stored positions."""
    masks: list[Any] = [
        reduce(
            pc.and_,
            (
                pc.equal(rows["topic"], stream.topic),
                pc.equal(rows["lineage"], stream.lineage),
                pc.equal(rows["partition"], stream.partition),
                pc.less_equal(rows["offset"], stored(handle, stream)),
            ),
        )
        for stream in positions_of(rows)
    ]
    return rows.filter(reduce(pc.or_, masks)) if masks else rows
