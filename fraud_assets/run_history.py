"""Keeps Dagster's history small: deletes old successful runs of the sensors and shrinks the databases of ended runs.

Dagster itself keeps every run and one SQLite database per run.
"""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.storage.event_log.sqlite import SqliteEventLogStorage

from fraud_assets.sensors import SENSOR_TAG, SENSORS

MAX_RUNS_PER_CALL = 500
"""Runs per maintenance. With one run every 10 seconds, 90 become due between two maintenance runs."""

_SMALL_PAGE = 1024


def delete_old_runs(
    instance: dg.DagsterInstance, days: float, now: datetime | None = None, most: int = MAX_RUNS_PER_CALL
) -> int:
    """Deletes successful runs of the sensors that are older than `days`, with their logs, the oldest first.

    Failed runs and the run of each asset's last materialization stay. The materialization events of deleted runs are
    deleted too, so the plots of an asset reach back only `days`.

    Args:
        instance: Dagster's instance.
        days: age in days from which a run is deleted.
        now: the time that ages are counted from; default: the current time.
        most: largest number of runs to delete.

    Returns:
        The number of deleted runs.
    """
    before = (now or datetime.now(UTC)) - timedelta(days=days)
    last = _find_last_runs(instance)
    due = dg.RunsFilter(
        tags={SENSOR_TAG: [sensor.name for sensor in SENSORS]},
        statuses=[dg.DagsterRunStatus.SUCCESS],
        created_before=before,
    )
    records = instance.get_run_records(due, limit=most + len(last), ascending=True)
    old = [record.dagster_run.run_id for record in records if record.dagster_run.run_id not in last][:most]
    for run_id in old:
        _delete_run(instance, run_id)
    return len(old)


def shrink_databases(instance: dg.DagsterInstance, most: int = MAX_RUNS_PER_CALL) -> int:
    """Rewrites the SQLite databases of ended runs with small pages: 71 kB instead of 156 kB for 22 events.

    A new database of Dagster has 25 tables and indexes, most of them empty, and each uses a page of 4 kB. A database
    that is currently being read is left for the next call.

    Args:
        instance: Dagster's instance. Nothing happens if its event log is not in SQLite files.
        most: largest number of databases to rewrite.

    Returns:
        The number of rewritten databases.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, SqliteEventLogStorage):
        return 0
    shrunk = 0
    for run_id in storage.get_all_run_ids():
        file = Path(storage.path_for_shard(run_id))
        with suppress(FileNotFoundError, sqlite3.OperationalError):
            if _read_page_size(file) > _SMALL_PAGE and (run := instance.get_run_by_id(run_id)) and run.is_finished:
                _shrink(file)
                shrunk += 1
        if shrunk == most:
            break
    return shrunk


def _read_page_size(file: Path) -> int:
    with file.open("rb") as database:
        header = database.read(18)
    return int(struct.unpack(">H", header[16:18])[0]) if len(header) == 18 else 0


def _shrink(file: Path) -> None:
    with closing(sqlite3.connect(file, timeout=1, isolation_level=None)) as connection:
        # SQLite cannot change the page size while the database has a write-ahead log.
        connection.execute("pragma journal_mode = delete")
        connection.execute(f"pragma page_size = {_SMALL_PAGE}")
        connection.execute("vacuum")
        connection.execute("pragma journal_mode = wal")


def _find_last_runs(instance: dg.DagsterInstance) -> set[str]:
    """Returns the id of the run of each asset's last materialization."""
    records = instance.get_asset_records(instance.all_asset_keys())
    entries = [record.asset_entry.last_materialization_record for record in records]
    return {entry.run_id for entry in entries if entry is not None}


def _delete_run(instance: dg.DagsterInstance, run_id: str) -> None:
    storage = instance.event_log_storage
    if isinstance(storage, SqliteEventLogStorage):
        # Dagster would delete the rows of the run's own database one by one and keep the file. Removing the file is
        # enough.
        instance.run_storage.delete_run(run_id)
        with storage.index_connection() as connection:
            storage.delete_events_for_run(connection, run_id)
        database = storage.path_for_shard(run_id)
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(database + suffix).unlink()
    else:
        instance.delete_run(run_id)
    instance.compute_log_manager.delete_logs(prefix=[run_id])
