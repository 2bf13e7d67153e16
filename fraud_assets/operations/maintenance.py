"""Maintains the tables: applies retention, compacts files, writes checkpoints and vacuums. Adds no rows."""

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
from fraud_assets.operations.retention import NO_ROWS_RETIRED, RetiredRows, delete_old_rows, find_oldest_waiting_day
from fraud_assets.settings import Settings

_LOG_RETENTION = "delta.logRetentionDuration"


@dataclass(frozen=True)
class MaintenanceReport:
    """The result of the maintenance of one table.

    Attributes:
        version: version of the table after maintenance.
        files_before: number of data files before maintenance.
        files_after: number of data files after maintenance.
        files_removed: number of files on disk that the vacuum removed.
        seconds: duration of compaction, log clean-up and vacuum.
        rows_retired: number of rows that FRAUD_RETENTION_DAYS removed.
        days_retired: number of partition days that FRAUD_RETENTION_DAYS removed.
    """

    version: int
    files_before: int
    files_after: int
    files_removed: int
    seconds: float
    rows_retired: int = 0
    days_retired: int = 0

    def metadata(self) -> dict[str, int | float]:
        """Returns the report as plain numbers, which the web UI plots."""
        return {key: round(value, 3) for key, value in asdict(self).items()}


def maintain_table(
    lake: Lake, table: Table, settings: Settings, retired: RetiredRows = NO_ROWS_RETIRED
) -> MaintenanceReport:
    """Compacts small files, shortens the log, and removes unused files that are older than FRAUD_VACUUM_HOURS.

    Committed positions stay, so readers that read new rows by position find no new rows.

    Args:
        lake: the lake that contains the table.
        table: the table to maintain, which must exist.
        settings: define the sizes and ages.
        retired: the rows that retention removed from the table before, for the report.

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
            # A recomputation rewrote the same files at the same time. The next maintenance compacts them.
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
    """Removes log entries before the last checkpoint that are older than FRAUD_LOG_HOURS, then writes a checkpoint.

    The order matters: a reader that opened the table just before the new checkpoint still reads the older entries.
    """
    retention = {_LOG_RETENTION: f"interval {settings.log_hours} hours"}
    if handle.metadata().configuration.get(_LOG_RETENTION) != retention[_LOG_RETENTION]:
        handle.alter.set_table_properties(retention)
    handle.cleanup_metadata()
    handle.create_checkpoint()


def maintain_lake(lake: Lake, settings: Settings, today: date | None = None) -> dict[str, MaintenanceReport]:
    """Maintains every table that exists.

    Args:
        lake: the lake to maintain.
        settings: define the sizes, the ages and the retention.
        today: the day from which ages are counted; the default is the current day in UTC.

    Returns:
        A report for each table, by name.

    Raises:
        LakeError: a table cannot be read or written.
    """
    today = today or datetime.now(UTC).date()
    waiting = find_oldest_waiting_day(lake, settings) if settings.retention_days else None
    return {
        table.name: maintain_table(lake, table, settings, delete_old_rows(lake, table, settings, today, waiting))
        for table in TABLES
        if lake.exists(table)
    }
