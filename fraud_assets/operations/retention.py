"""Retention: rows that are older than FRAUD_RETENTION_DAYS keeps their table go, whole partitions at a time.

A row goes once it is too old by both its partition and its day of ingest, so a history that was landed today is
as young as today. What a stage has not taken yet stops the clock for all tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction

from fraud_assets.core.schema import (
    TIME,
    Table,
    fraud_predictions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.lake.append import commit_errors, retry_conflicts
from fraud_assets.lake.batches import find_pending, read_batch
from fraud_assets.lake.log import TRANSACTIONS, add_actions
from fraud_assets.lake.positions import SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

_RETAINED_FROM = "fraud:retained_from"
"""Application id whose version is the first day of ingest that a table still holds in full, as an ordinal."""


@dataclass(frozen=True)
class Retired:
    """What retention removed from a table: rows and partition days, all older than `before`."""

    rows: int = 0
    days: int = 0
    before: date | None = None


def retained_from(handle: DeltaTable) -> date | None:
    """First day of ingest from which the table holds everything; None where retention has removed nothing."""
    ordinal = handle.transaction_version(_RETAINED_FROM)
    return None if ordinal is None else date.fromordinal(ordinal)


def oldest_waiting(lake: Lake, settings: Settings) -> date | None:
    """Day of ingest of the oldest message that has no features or no score yet; None where nothing waits."""
    days = []
    for source, target in ((raw_transactions, transaction_features), (transaction_features, fraud_predictions)):
        if not lake.exists(source):
            continue
        taken = lake.open(target) if lake.exists(target) else None

        def known(stream: SourcePartition, taken: DeltaTable | None = taken) -> int:
            return -1 if taken is None else committed_offset(taken, stream)

        work = find_pending(lake.open(source), known, settings)
        if work.rows:
            days.append(pc.min(read_batch(work, settings, columns=["ingested_at"])["ingested_at"]).as_py().date())
    return min(days, default=None)


def delete_old_rows(lake: Lake, table: Table, settings: Settings, today: date, waiting: date | None) -> Retired:
    """Removes the table's partitions that are older than its retention; positions stay. Only metadata is written.

    Args:
        today: the day that ages are counted from, UTC.
        waiting: `oldest_waiting`; what lies so many days before it is still needed.

    Raises:
        LakeError: the table cannot be written.
    """
    keep, partition = settings.retention_days.get(table.name), table.partition_by
    if keep is None or partition is None:
        return Retired()
    before = min(day for day in (today, waiting) if day is not None) - timedelta(days=keep)

    @retry_conflicts
    def delete() -> Retired:
        handle = lake.open(table)
        days = _outdated(handle, partition, before)
        if not days:
            return Retired()
        floor = max(before, retained_from(handle) or before)
        listed = ", ".join(f"date '{day}'" for day in days)
        # A late row or a compaction may come into one of these days meanwhile.
        with commit_errors(handle):
            removed = handle.delete(
                f"{partition} in ({listed})",
                commit_properties=CommitProperties(
                    custom_metadata={"retained_from": str(floor), TRANSACTIONS: "1"},
                    app_transactions=[Transaction(_RETAINED_FROM, floor.toordinal())],
                ),
            )
        return Retired(removed["num_deleted_rows"], len(days), before)

    return delete()


def _outdated(handle: DeltaTable, partition: str, before: date) -> Sequence[date]:
    """Partition days before a day of which every row was also ingested before it, by file statistics."""
    actions = add_actions(handle)
    if not actions.num_rows:
        return []
    midnight = datetime(before.year, before.month, before.day, tzinfo=UTC)
    old = pc.and_(
        pc.less(actions[f"partition.{partition}"], pa.scalar(before)),
        # A file without statistics may hold anything.
        pc.fill_null(pc.less(actions["max.ingested_at"].cast(TIME), pa.scalar(midnight, TIME)), False),
    )
    young = set(actions.filter(pc.invert(old))[f"partition.{partition}"].to_pylist())
    return sorted(set(actions.filter(old)[f"partition.{partition}"].to_pylist()) - young)
