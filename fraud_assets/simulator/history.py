"""Drops the history of a simulated world as one file, which lands far faster than one message per payment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fraud_assets.errors import DiskError
from fraud_assets.settings import CONTRACT_FIELDS, Settings

LANDING_SECONDS = 120.0


def drop_history(days: Iterable[pa.Table], settings: Settings) -> tuple[Path | None, int]:
    """Drops one Parquet file with all rows into the drop folder.

    Args:
        days: results of `simulate_past_traffic`.
        settings: define the drop folder and the field names in files.

    Returns:
        The file and its number of rows; None and 0 if there are no rows.

    Raises:
        DiskError: the file cannot be written.
    """
    tables = [_as_file_rows(table, settings) for table in days if table.num_rows]
    if not tables:
        return None, 0
    rows = pa.concat_tables(tables)
    file = settings.incoming / f"simulated-history-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.parquet"
    # Landing ignores this name, so a partly written file never lands.
    part = file.with_name(f"{file.name}.part")
    try:
        settings.incoming.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, part, compression="zstd")
        part.rename(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DiskError(f"{file} cannot be written: {error}. Set FRAUD_HOME to a writable folder.") from error
    return file, rows.num_rows


def wait_until_landed(file: Path, on_wait: Callable[[], object], seconds: float = LANDING_SECONDS) -> bool:
    """Waits until a dropped file has landed.

    Args:
        file: path of the file in the drop folder.
        on_wait: called between two checks; it sleeps, and may raise an exception to stop the wait.
        seconds: maximum time to wait.

    Returns:
        False if the file has not landed within `seconds`.
    """
    until = time.monotonic() + seconds
    while file.exists():
        if time.monotonic() > until:
            return False
        on_wait()
    return True


def _as_file_rows(made: pa.Table, settings: Settings) -> pa.Table:
    # Null means no label. With False, every genuine payment would get a label.
    fraud = pc.if_else(made["is_fraud"], True, pa.scalar(None, pa.bool_()))
    columns = {settings.contract.payload_field(name): made[name] for name in CONTRACT_FIELDS}
    columns[settings.contract.payload_field("is_fraud")] = fraud
    columns[settings.contract.payload_field("labelled_at")] = made["labelled_at"]
    return pa.table(columns)
