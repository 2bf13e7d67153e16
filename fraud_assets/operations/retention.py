"""Deletes rows that are older than the FRAUD_RETENTION_DAYS of their table, whole partitions at a time.

A row is deleted if both its partition day and its day of ingest are too old, so a history that landed today counts as
new. Ages are counted from the oldest message that a stage has not processed yet, for all tables.
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
from fraud_assets.lake.positions import NOTHING, SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

_RETAINED_FROM = "fraud:retained_from"
"""Application id. Its version is the first day of ingest that a table still contains in full, as an ordinal."""


@dataclass(frozen=True)
class RetiredRows:
    """The numbers of rows and partition days that retention removed from a table, all older than `before`."""

    rows: int = 0
    days: int = 0
    before: date | None = None


NO_ROWS_RETIRED = RetiredRows()


def read_retained_from(handle: DeltaTable) -> date | None:
    """Returns the first day of ingest that the table contains in full; None if retention has removed nothing."""
    ordinal = handle.transaction_version(_RETAINED_FROM)
    return None if ordinal is None else date.fromordinal(ordinal)


def find_oldest_waiting_day(lake: Lake, settings: Settings) -> date | None:
    """Returns the day of ingest of the oldest message without features or score; None if no message waits."""
    days = []
    for source, target in ((raw_transactions, transaction_features), (transaction_features, fraud_predictions)):
        if not lake.exists(source):
            continue
        handle = lake.open(target) if lake.exists(target) else None

        def committed(partition: SourcePartition, handle: DeltaTable | None = handle) -> int:
            return NOTHING if handle is None else committed_offset(handle, partition)

        pending = find_pending(lake.open(source), committed, settings)
        if pending.rows:
            days.append(pc.min(read_batch(pending, settings, columns=["ingested_at"])["ingested_at"]).as_py().date())
    return min(days, default=None)


def delete_old_rows(lake: Lake, table: Table, settings: Settings, today: date, waiting: date | None) -> RetiredRows:
    """Deletes the table's partitions that are older than its retention. Committed positions stay.

    Only metadata is written.

    Args:
        lake: the lake that contains the table.
        table: the table to delete from.
        settings: define the retention.
        today: the day from which ages are counted, in UTC.
        waiting: result of `find_oldest_waiting_day`. If it is before `today`, ages are counted from it, because the
            waiting message needs the rows before it.

    Returns:
        The deleted rows and partition days.

    Raises:
        LakeError: the table cannot be written.
    """
    keep, partition = settings.retention_days.get(table.name), table.partition_by
    if keep is None or partition is None:
        return NO_ROWS_RETIRED
    before = min(day for day in (today, waiting) if day is not None) - timedelta(days=keep)

    @retry_conflicts
    def delete() -> RetiredRows:
        handle = lake.open(table)
        days = _find_outdated_days(handle, partition, before)
        if not days:
            return NO_ROWS_RETIRED
        floor = max(before, read_retained_from(handle) or before)
        listed = ", ".join(f"date '{day}'" for day in days)
        # A late row or a compaction may change one of these days at the same time; `commit_errors` reports a conflict.
        with commit_errors(handle):
            removed = handle.delete(
                f"{partition} in ({listed})",
                commit_properties=CommitProperties(
                    custom_metadata={"retained_from": str(floor), TRANSACTIONS: "1"},
                    app_transactions=[Transaction(_RETAINED_FROM, floor.toordinal())],
                ),
            )
        return RetiredRows(removed["num_deleted_rows"], len(days), before)

    return delete()


def _find_outdated_days(handle: DeltaTable, partition: str, before: date) -> Sequence[date]:
    """Returns the partition days before a day whose rows were all ingested before it too, by file statistics."""
    actions = add_actions(handle)
    if not actions.num_rows:
        return []
    midnight = datetime(before.year, before.month, before.day, tzinfo=UTC)
    old = pc.and_(
        pc.less(actions[f"partition.{partition}"], pa.scalar(before)),
        # A file without statistics may hold newer rows.
        pc.fill_null(pc.less(actions["max.ingested_at"].cast(TIME), pa.scalar(midnight, TIME)), False),
    )
    new = set(actions.filter(pc.invert(old))[f"partition.{partition}"].to_pylist())
    return sorted(set(actions.filter(old)[f"partition.{partition}"].to_pylist()) - new)
