"""Turns landed messages into features and quarantine, exactly once.

Quarantine is committed first and features last. If a run is killed in between, the next run processes the same messages
again, in parts if they no longer fit into one batch. Messages that quarantine already holds stay there; all others
become features.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
from deltalake import DeltaTable

from fraud_assets.core.quarantine_reasons import DUPLICATE
from fraud_assets.core.schema import quarantined_transactions, raw_transactions, transaction_features
from fraud_assets.engines.base import Engine, FeatureBatch
from fraud_assets.engines.local.engine import LocalEngine
from fraud_assets.errors import CommitConflictError, SettingError
from fraud_assets.lake.append import commit_append, commit_partitions, commit_range, discard, retry_conflicts
from fraud_assets.lake.batches import Bounds, Pending, find_pending, next_bounds
from fraud_assets.lake.data_files import count_rows
from fraud_assets.lake.positions import AFTER_ALL_OFFSETS, SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureReport:
    """Counts of one run. `landed` is the sum of `features`, `quarantined` and `duplicates`."""

    landed: int = 0
    features: int = 0
    quarantined: int = 0
    duplicates: int = 0
    batches: int = 0
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)

    def add_batch(self, landed: int, features: int, reasons: dict[str, int]) -> FeatureReport:
        """Returns the report with one more batch."""
        total = {key: self.reasons.get(key, 0) + reasons.get(key, 0) for key in {*self.reasons, *reasons}}
        duplicates = total.get(DUPLICATE, 0)
        return replace(
            self,
            landed=self.landed + landed,
            features=self.features + features,
            quarantined=sum(total.values()) - duplicates,
            duplicates=duplicates,
            batches=self.batches + 1,
            reasons=dict(sorted(total.items())),
        )


def process_landed(lake: Lake, settings: Settings, engine: Engine | None = None) -> FeatureReport:
    """Processes all messages that have landed so far, batch by batch, in landing order.

    Args:
        lake: The lake.
        settings: The settings of DuckDB.
        engine: The engine that computes the batches; default: this process.

    Returns:
        Counts of this run.

    Raises:
        LakeError: A table cannot be read or written. Earlier batches stay committed.
        EngineError: A job of the engine failed. Earlier batches stay committed.
    """
    started = time.monotonic()
    engine = engine or LocalEngine(settings)
    report = FeatureReport()
    # The version is pinned, so that a run ends even if messages land faster than it processes them.
    landed = lake.open(raw_transactions)

    @retry_conflicts
    def process_batch() -> FeatureReport | None:
        return _process_batch(lake, settings, engine, landed, report)

    while (after := process_batch()) is not None:
        report = after
    return replace(report, seconds=time.monotonic() - started)


def _process_batch(
    lake: Lake, settings: Settings, engine: Engine, landed: DeltaTable, report: FeatureReport
) -> FeatureReport | None:
    """Computes and commits the next batch.

    Returns:
        The report with this batch, or None if nothing is pending.
    """
    features, quarantine = lake.open(transaction_features), lake.open(quarantined_transactions)
    pending = find_pending(landed, lambda source: committed_offset(features, source), settings)
    if not pending.target:
        return None
    started = _find_started(pending, quarantine)
    bounds = next_bounds(pending, settings, engine.limits, started or None)
    quarantined = _find_quarantined(quarantine, bounds, settings) if started else None
    result = engine.compute_features(FeatureBatch(lake, pending, bounds, features, quarantine, quarantined))
    counts = {"landed": result.landed, "features": count_rows(result.features), **result.reasons}
    uncommitted = {quarantined_transactions: result.rejected, transaction_features: result.features}
    try:
        if count_rows(result.rejected) or not started:
            # Quarantine may be ahead: this batch may be the first part of a batch that a killed run started.
            reached = {source: max(offset, started.get(source, offset)) for source, offset in bounds.target.items()}
            commit_append(quarantine, quarantined_transactions, result.rejected, reached, counts)
            del uncommitted[quarantined_transactions]
        commit_append(features, transaction_features, result.features, bounds.target, counts)
    except CommitConflictError:
        for table, rows in uncommitted.items():
            discard(lake, table, rows)
        logger.info("Another writer committed first; the batch starts over from the current table versions")
        raise
    report = report.add_batch(result.landed, count_rows(result.features), result.reasons)
    logger.info(
        f"processed {report.landed:,} of {report.landed + pending.rows - result.landed:,} messages: "
        f"{report.features:,} features, {report.quarantined:,} quarantined, {report.duplicates:,} duplicates"
    )
    return report


def recompute(lake: Lake, settings: Settings, start: datetime, end: datetime, engine: Engine | None = None) -> int:
    """Recomputes the features of `tx_datetime` in [start, end) with the current history and labels.

    The committed offsets do not change, so these rows do not become pending for scoring; rescore the range explicitly.
    The windows of later rows are not recomputed.

    Args:
        lake: The lake.
        settings: The settings of DuckDB.
        start: Start of the range (inclusive), with time zone.
        end: End of the range (exclusive).
        engine: The engine that computes the range; default: this process.

    Returns:
        The number of recomputed rows.

    Raises:
        SettingError: The range is empty or has no time zone.
        LakeError: A table cannot be read or written. Earlier commits stay.
        EngineError: A job of the engine failed. Earlier commits stay.
    """
    if start.tzinfo is None or end.tzinfo is None or start >= end:
        raise SettingError(f"The range from {start} to {end} is empty or has no time zone. Give start < end, in UTC.")
    engine = engine or LocalEngine(settings)
    low = datetime(start.year, start.month, start.day, tzinfo=UTC)
    step = timedelta(days=engine.recompute_days)
    done = 0
    while low < end:
        high = min(low + step, end)
        done += _recompute_range(lake, engine, max(low, start), high)
        logger.info(f"recomputed up to {high:%Y-%m-%d %H:%M}: {done:,} rows")
        low += step
    return done


@retry_conflicts
def _recompute_range(lake: Lake, engine: Engine, low: datetime, high: datetime) -> int:
    handle = lake.open(transaction_features)
    result = engine.recompute_features(lake, handle, low, high)
    if not result.count:
        return 0
    note = {"recomputed": f"{low.isoformat()}/{high.isoformat()}", "rows": result.count}
    try:
        if isinstance(result.rows, pa.Table):
            where = f"tx_datetime >= '{low:%Y-%m-%dT%H:%M:%S.%fZ}' AND tx_datetime < '{high:%Y-%m-%dT%H:%M:%S.%fZ}'"
            commit_range(handle, transaction_features, result.rows, where, note)
        else:
            commit_partitions(handle, transaction_features, result.rows, result.days, note)
    except CommitConflictError:
        discard(lake, transaction_features, result.rows)
        raise
    return result.count


def _find_started(pending: Pending, quarantine: DeltaTable) -> dict[SourcePartition, int]:
    """Returns the offsets up to which a killed run committed quarantine but not features; usually empty."""
    committed = {source: committed_offset(quarantine, source) for source in pending.target}
    return {source: offset for source, offset in committed.items() if offset > pending.start[source]}


def _find_quarantined(quarantine: DeltaTable, bounds: Bounds, settings: Settings) -> Pending:
    """Finds the rows of the batch that quarantine already holds."""
    return find_pending(quarantine, lambda source: bounds.start.get(source, AFTER_ALL_OFFSETS), settings)
