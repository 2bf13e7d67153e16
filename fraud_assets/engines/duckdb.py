"""DuckDB sessions: in memory, bounded memory, closed at the end.

DuckDB's wheel has no ICU: time-zone arithmetic is Arrow's, in `core.parsing`; here times are compared only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from fraud_assets.settings import Settings


@contextmanager
def connect(settings: Settings) -> Iterator[DuckDBPyConnection]:
    """A connection whose memory is bounded by FRAUD_DUCKDB_MEMORY_LIMIT; spills under FRAUD_HOME."""
    import duckdb

    spill = settings.home_path / "spill"
    connection = duckdb.connect(
        config={"memory_limit": settings.duckdb_memory_limit, "temp_directory": str(spill)}
    )
    try:
        yield connection
    finally:
        connection.close()
