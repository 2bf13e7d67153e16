"""Upkeep: compaction, checkpoint and a vacuum that leaves what a reader may still hold. It adds no rows."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from deltalake.exceptions import CommitFailedError, DeltaError

from fraud_assets.core.schema import TABLES, Table
from fraud_assets.lake.tables import Lake, unreadable
from fraud_assets.settings import Settings


@dataclass(frozen=True)
class UpkeepReport:
    """What upkeep did to one table."""

    version: int
    files_before: int
    files_after: int
    files_removed: int
    seconds: float

    def metadata(self) -> dict[str, int | float]:
        """Plain numbers, for plots in the web UI."""
        return {key: round(value, 3) for key, value in asdict(self).items()}


def tend(lake: Lake, table: Table, settings: Settings) -> UpkeepReport:
    """Compact small files, write a checkpoint, remove files older than FRAUD_VACUUM_HOURS that no version uses.

    Stored positions survive it, and readers that take new rows by position see nothing new.

    Raises:
        LakeError: the table cannot be written.
    """
    began = time.monotonic()
    handle = lake.open(table)
    before = len(handle.file_uris())
    try:
        try:
            handle.optimize.compact(target_size=settings.compact_target_bytes)
        except CommitFailedError:
            # A restatement rewrote the same files meanwhile: they are compacted the next time.
            handle = lake.open(table)
        handle.create_checkpoint()
        removed = handle.vacuum(
            retention_hours=settings.vacuum_hours, dry_run=False, enforce_retention_duration=False, full=True
        )
    except (DeltaError, OSError) as error:
        raise unreadable(lake.uri(table), error) from error
    handle = lake.open(table)
    return UpkeepReport(handle.version(), before, len(handle.file_uris()), len(removed), time.monotonic() - began)


def tend_all(lake: Lake, settings: Settings) -> dict[str, UpkeepReport]:
    """Upkeep of every table that exists, by name."""
    return {table.name: tend(lake, table, settings) for table in TABLES if lake.exists(table)}
