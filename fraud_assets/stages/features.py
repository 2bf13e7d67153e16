"""Turns what landed into features and quarantine, exactly once.

Quarantine is committed first and features last. If a run is killed in between, the next one takes the same messages
again, in parts if they are more than a batch by now: what quarantine holds of them stays there, all others become
features.
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
from fraud_assets.lake.positions import SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureReport:
    """Counts of one run; `landed` = `features` + `quarantined` + `duplicates`."""

    landed: int = 0
    features: int = 0
    quarantined: int = 0
    duplicates: int = 0
    batches: int = 0
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)

    def plus(self, landed: int, features: int, reasons: dict[str, int]) -> FeatureReport:
        """The report with one more batch."""
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
    """Takes everything that has landed by now, batch by batch, in landing order.

    Args:
        lake: the tables.
        settings: DuckDB's memory.
        engine: computes the batches; default: this process.

    Returns:
        Counts of this run.

    Raises:
        LakeError: a table cannot be read or written; the batches before stay committed.
        EngineError: a job of the engine failed; the batches before stay committed.
    """
    began = time.monotonic()
    engine = engine or LocalEngine(settings)
    report = FeatureReport()
    # Pinned: a run ends at what had landed at its start, however fast more comes in.
    landed = lake.open(raw_transactions)

    @retry_conflicts
    def process_batch() -> FeatureReport | None:
        return _process_batch(lake, settings, engine, landed, report)

    while (after := process_batch()) is not None:
        report = after
    return replace(report, seconds=time.monotonic() - began)


def _process_batch(
    lake: Lake, settings: Settings, engine: Engine, landed: DeltaTable, report: FeatureReport
) -> FeatureReport | None:
    """Computes and commits the next batch; gives the report with it, or None if nothing is pending."""
    features, quarantine = lake.open(transaction_features), lake.open(quarantined_transactions)
    work = find_pending(landed, lambda stream: committed_offset(features, stream), settings)
    if not work.target:
        return None
    begun = _begun(work, quarantine)
    bounds = next_bounds(work, settings, engine.limits, begun or None)
    held = _held(quarantine, bounds, settings) if begun else None
    result = engine.compute_features(FeatureBatch(lake, work, bounds, features, quarantine, held))
    counts = {"landed": result.landed, "features": count_rows(result.features), **result.reasons}
    waiting = {quarantined_transactions: result.rejected, transaction_features: result.features}
    try:
        if count_rows(result.rejected) or not begun:
            # Quarantine may be ahead: of a batch that a killed run began, this one may be the first part.
            reached = {stream: max(offset, begun.get(stream, offset)) for stream, offset in bounds.target.items()}
            commit_append(quarantine, quarantined_transactions, result.rejected, reached, counts)
            del waiting[quarantined_transactions]
        commit_append(features, transaction_features, result.features, bounds.target, counts)
    except CommitConflictError:
        for table, rows in waiting.items():
            discard(lake, table, rows)
        logger.info("Another writer committed first; the batch starts over from what the tables hold now.")
        raise
    report = report.plus(result.landed, count_rows(result.features), result.reasons)
    logger.info(
        f"{report.landed:,} of {report.landed + work.rows - result.landed:,} messages: "
        f"{report.features:,} features, {report.quarantined:,} quarantined, {report.duplicates:,} duplicates"
    )
    return report


def recompute(lake: Lake, settings: Settings, start: datetime, end: datetime, engine: Engine | None = None) -> int:
    """Computes the features of `tx_datetime` in [start, end) again, with all history and labels of now.

    Positions do not move, so predictions do not take these rows for new; score the range again on its own request.
    The windows of later rows are not refreshed.

    Args:
        lake: the tables.
        settings: DuckDB's memory.
        start: first moment, with zone.
        end: the moment after the last.
        engine: computes the range; default: this process.

    Returns:
        The number of rows that were recomputed.

    Raises:
        SettingError: the range is empty or has no zone.
        LakeError: a table cannot be read or written; what was committed before stays.
        EngineError: a job of the engine failed; what was committed before stays.
    """
    if start.tzinfo is None or end.tzinfo is None or start >= end:
        raise SettingError(f"The range from {start} to {end} is empty or without a zone: give start < end, in UTC.")
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


def _begun(work: Pending, quarantine: DeltaTable) -> dict[SourcePartition, int]:
    """How far a killed run got with quarantine beyond features; empty if it did not."""
    ahead = {stream: committed_offset(quarantine, stream) for stream in work.target}
    return {stream: offset for stream, offset in ahead.items() if offset > work.start[stream]}


def _held(quarantine: DeltaTable, bounds: Bounds, settings: Settings) -> Pending:
    """Rows of the batch that quarantine already holds."""
    return find_pending(quarantine, lambda stream: bounds.start.get(stream, 2**62), settings)
