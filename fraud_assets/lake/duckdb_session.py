"""DuckDB sessions with in-memory databases and a memory limit.

DuckDB's wheel has no ICU. Arrow does the time-zone arithmetic, in `core.parsing`; DuckDB only compares times.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from fraud_assets.errors import LakeError
from fraud_assets.lake.data_file_damage import find_damage, find_named_damage

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from fraud_assets.settings import Settings


_files: WeakKeyDictionary[DuckDBPyConnection, list[str]] = WeakKeyDictionary()


def record_files(connection: DuckDBPyConnection, files: Iterable[str]) -> None:
    """Records the Parquet files that a connection reads, so that an error can name the damaged one."""
    _files.setdefault(connection, []).extend(files)


@contextmanager
def connect(settings: Settings, *, spill: bool = True) -> Iterator[DuckDBPyConnection]:
    """Opens a connection with its own views and closes it at the end of the block.

    All connections of a process share FRAUD_DUCKDB_MEMORY_LIMIT and spill to disk under FRAUD_HOME.

    Args:
        settings: Memory limit and home.
        spill: Whether to spill to disk. If False, a query that exceeds the memory limit fails.

    Raises:
        LakeError: A file cannot be read, or memory and disk are not sufficient.
    """
    folder = settings.home_path / "spill"
    connection = _instance(settings.duckdb_memory_limit, str(folder) if spill else "").cursor()
    import duckdb

    try:
        yield connection
    except duckdb.InternalException:
        # After an internal error, DuckDB refuses all further queries of this database.
        _instance.cache_clear()
        raise
    except duckdb.FatalException as error:
        _instance.cache_clear()
        raise LakeError(
            "DuckDB closed its database after an internal error in another query of this process. Nothing is lost; run "
            "the command again."
        ) from error
    except duckdb.Error as error:
        if (damaged := find_named_damage(str(error))) is not None:
            raise damaged from error
        if not isinstance(error, (duckdb.IOException, duckdb.OutOfMemoryException)):
            # For a damaged footer or page, DuckDB does not name the file.
            if type(error) is duckdb.Error and (damaged := find_damage(_files.get(connection, ()))) is not None:
                raise damaged from error
            raise
        cause = str(error).strip().splitlines()[0]
        raise LakeError(
            f"DuckDB cannot continue: {cause[:300]}. Check the lake and the free space at {folder}, raise "
            f"FRAUD_DUCKDB_MEMORY_LIMIT ({settings.duckdb_memory_limit}), or lower FRAUD_BATCH_ROWS "
            f"({settings.batch_rows}) and FRAUD_BATCH_BYTES ({settings.batch_bytes})."
        ) from error
    finally:
        connection.close()


def quote_name(name: str) -> str:
    """Returns a name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@cache
def _instance(memory_limit: str, spill: str) -> DuckDBPyConnection:
    """Returns the process's in-memory database. Opening a cursor takes 0.3 ms, opening a database 20 ms."""
    import duckdb

    instance = duckdb.connect(config={"memory_limit": memory_limit, "temp_directory": spill})
    # DuckDB reports a database that is still open at exit as a leak.
    atexit.register(instance.close)
    return instance
