"""The past of a simulated world, as one file for the drop folder: far quicker than a message for each payment."""

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
    """Moves one Parquet file with all rows into the drop folder.

    Args:
        days: tables of `past_traffic`.
        settings: of the drop folder, and of the names that the fields have in files.

    Returns:
        The file and its number of rows; no file if there are no rows.

    Raises:
        DiskError: the file cannot be written.
    """
    tables = [_as_dropped(table, settings) for table in days if table.num_rows]
    if not tables:
        return None, 0
    rows = pa.concat_tables(tables)
    file = settings.incoming / f"simulated-history-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.parquet"
    # Landing ignores this name, so that a half-written file is never taken.
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
    """Waits until the lander has taken a dropped file; False if that takes longer than `seconds`.

    Args:
        file: in the drop folder.
        on_wait: called between two looks; it pauses, and may raise to give up.
        seconds: to wait at most.
    """
    until = time.monotonic() + seconds
    while file.exists():
        if time.monotonic() > until:
            return False
        on_wait()
    return True


def _as_dropped(made: pa.Table, settings: Settings) -> pa.Table:
    # A null is no label. With False, every genuine payment would get one.
    fraud = pc.if_else(made["is_fraud"], True, pa.scalar(None, pa.bool_()))
    columns = {settings.contract.payload_field(name): made[name] for name in CONTRACT_FIELDS}
    columns[settings.contract.payload_field("is_fraud")] = fraud
    columns[settings.contract.payload_field("labelled_at")] = made["labelled_at"]
    return pa.table(columns)
