"""DuckDB sessions: in memory, bounded memory, closed at the end.

DuckDB's wheel has no ICU: time-zone arithmetic is Arrow's, in `core.parsing`; here times are compared only.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from fraud_assets.errors import LakeError
from fraud_assets.lake.damage import damaged_among, named_data_file

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from fraud_assets.settings import Settings


_files: WeakKeyDictionary[DuckDBPyConnection, list[str]] = WeakKeyDictionary()


def reads(connection: DuckDBPyConnection, files: Iterable[str]) -> None:
    """Notes the Parquet files that a connection reads, so that an error on one of them can name it."""
    _files.setdefault(connection, []).extend(files)


@contextmanager
def connect(settings: Settings, *, spill: bool = True) -> Iterator[DuckDBPyConnection]:
    """A connection with views of its own; all of a process share FRAUD_DUCKDB_MEMORY_LIMIT, spill under FRAUD_HOME.

    Args:
        settings: memory limit and home.
        spill: without, nothing is written to disk, and what memory cannot hold fails.

    Raises:
        LakeError: a file cannot be read, or neither memory nor disk is enough.
    """
    folder = settings.home_path / "spill"
    connection = _instance(settings.duckdb_memory_limit, str(folder) if spill else "").cursor()
    import duckdb

    try:
        yield connection
    except duckdb.InternalException:
        _instance.cache_clear()  # after an error of its own DuckDB refuses all that comes to this database
        raise
    except duckdb.FatalException as error:
        _instance.cache_clear()
        raise LakeError(
            "DuckDB gave up its database after an error of another query of this process. Nothing is lost; run again."
        ) from error
    except duckdb.Error as error:
        if (damaged := named_data_file(str(error))) is not None:
            raise damaged from error
        if not isinstance(error, (duckdb.IOException, duckdb.OutOfMemoryException)):
            # Of a damaged footer or page DuckDB does not say in which file it is.
            if type(error) is duckdb.Error and (damaged := damaged_among(_files.get(connection, ()))) is not None:
                raise damaged from error
            raise
        cause = str(error).strip().splitlines()[0]
        raise LakeError(
            f"DuckDB cannot go on: {cause[:300]}. Check the lake and the free space at {folder}, raise "
            f"FRAUD_DUCKDB_MEMORY_LIMIT ({settings.duckdb_memory_limit}), or lower FRAUD_BATCH_ROWS "
            f"({settings.batch_rows}) and FRAUD_BATCH_BYTES ({settings.batch_bytes})."
        ) from error
    finally:
        connection.close()


def quoted_name(name: str) -> str:
    """Returns a name as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


@cache
def _instance(memory_limit: str, spill: str) -> DuckDBPyConnection:
    """The process's in-memory database: a cursor of it costs 0.3 ms, a database of its own 20 ms."""
    import duckdb

    instance = duckdb.connect(config={"memory_limit": memory_limit, "temp_directory": spill})
    # DuckDB reports what is still open at exit as leaked.
    atexit.register(instance.close)
    return instance
