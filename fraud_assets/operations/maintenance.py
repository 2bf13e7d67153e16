"""Maintains the tables: applies retention, compacts, writes checkpoints and vacuums. It adds no rows."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime

from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError

from fraud_assets.core.schema import TABLES, Table
from fraud_assets.lake.append import WRITER
from fraud_assets.lake.table_errors import table_error
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.retention import Retired, delete_old_rows, oldest_waiting
from fraud_assets.settings import Settings

_LOG_RETENTION = "delta.logRetentionDuration"


@dataclass(frozen=True)
class MaintenanceReport:
    """What maintenance did to one table; `rows_retired` and `days_retired` are what FRAUD_RETENTION_DAYS took away."""

    version: int
    files_before: int
    files_after: int
    files_removed: int
    seconds: float
    rows_retired: int = 0
    days_retired: int = 0

    def metadata(self) -> dict[str, int | float]:
        """Plain numbers, for plots in the web UI."""
        return {key: round(value, 3) for key, value in asdict(self).items()}


def maintain_table(lake: Lake, table: Table, settings: Settings, retired: Retired = Retired()) -> MaintenanceReport:  # noqa: B008
    """Compact small files, shorten the log, remove files older than FRAUD_VACUUM_HOURS that no version uses.

    Stored positions survive it, and readers that take new rows by position see nothing new. `retired` is what
    retention did to the table before, for the report.

    Raises:
        LakeError: the table cannot be written.
    """
    began = time.monotonic()
    handle = lake.open(table)
    before = len(handle.file_uris())
    try:
        try:
            handle.optimize.compact(target_size=settings.compact_target_bytes, writer_properties=WRITER)
        except CommitFailedError:
            # A recomputation rewrote the same files meanwhile: they are compacted the next time.
            handle = lake.open(table)
        _shorten_log(handle, settings)
        removed = handle.vacuum(
            retention_hours=settings.vacuum_hours, dry_run=False, enforce_retention_duration=False, full=True
        )
    except (DeltaError, OSError) as error:
        raise table_error(lake.uri(table), error) from error
    handle = lake.open(table)
    return MaintenanceReport(
        handle.version(),
        before,
        len(handle.file_uris()),
        len(removed),
        time.monotonic() - began,
        retired.rows,
        retired.days,
    )


def _shorten_log(handle: DeltaTable, settings: Settings) -> None:
    """Removes log entries older than FRAUD_LOG_HOURS that lie before the last checkpoint, then writes a new one.

    In this order, because who opened the table just before the new checkpoint still reads the entries before it.
    """
    kept = {_LOG_RETENTION: f"interval {settings.log_hours} hours"}
    if handle.metadata().configuration.get(_LOG_RETENTION) != kept[_LOG_RETENTION]:
        handle.alter.set_table_properties(kept)
    handle.cleanup_metadata()
    handle.create_checkpoint()


def maintain_lake(lake: Lake, settings: Settings, today: date | None = None) -> dict[str, MaintenanceReport]:
    """Maintains every table that exists; gives a report by table name. Ages are counted from `today` (default: UTC)."""
    today = today or datetime.now(UTC).date()
    waiting = oldest_waiting(lake, settings) if settings.retention_days else None
    return {
        table.name: maintain_table(lake, table, settings, delete_old_rows(lake, table, settings, today, waiting))
        for table in TABLES
        if lake.exists(table)
    }
