"""DuckDB sessions: in memory, bounded memory, closed at the end.

DuckDB's wheel has no ICU: time-zone arithmetic is Arrow's, in `core.parsing`; here times are compared only.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import pyarrow as pa

from fraud_assets.core import features
from fraud_assets.core.schema import WINDOW_DAYS
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


@cache
def _instance(memory_limit: str, spill: str) -> DuckDBPyConnection:
    """The process's in-memory database: a cursor of it costs 0.3 ms, a database of its own 20 ms."""
    import duckdb

    instance = duckdb.connect(config={"memory_limit": memory_limit, "temp_directory": spill})
    # DuckDB reports what is still open at exit as leaked.
    atexit.register(instance.close)
    return instance


@cache
def _window_sql(delay_days: int, folder: Path) -> str:
    """The feature definition as DuckDB's SQL, kept in `folder`: SQLFrame takes 1.6 s to import and to compile it."""
    made_of = (
        Path(features.__file__).read_text("utf-8"),
        WINDOW_DAYS,
        delay_days,
        version("sqlframe"),
        version("sqlglot"),
    )
    file = folder / f"windows-{sha256(repr(made_of).encode()).hexdigest()[:16]}.sql"
    try:
        return file.read_text("utf-8")
    except OSError:
        sql = _compiled(delay_days)
    # Where it cannot be kept, the next process compiles again.
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", encoding="utf-8", dir=folder, delete=False) as part:
            part.write(sql)
        Path(part.name).replace(file)
    return sql


def _compiled(delay_days: int) -> str:
    import duckdb
    from sqlframe.duckdb import DuckDBSession, Window
    from sqlframe.duckdb import functions as F  # noqa: N812

    connection = duckdb.connect()
    try:
        session = DuckDBSession(conn=connection)
        session.catalog.add_table("transactions", column_mapping=dict(features.TRANSACTION_COLUMNS))
        session.catalog.add_table("labels", column_mapping=dict(features.LABEL_COLUMNS))
        transactions, labels = session.table("transactions"), session.table("labels")
        return features.window_features(transactions, labels, delay_days, F, Window).sql(dialect="duckdb")
    finally:
        connection.close()


def compute_windows(transactions: pa.Table, labels: pa.Table, settings: Settings) -> pa.Table:
    """Windowed features of the new transactions (see `core.features.window_features`), ordered by `arrival`."""
    sql = _window_sql(settings.feedback_delay_days, settings.home_path / "cache")
    with connect(settings) as connection:
        connection.register("transactions", transactions)
        connection.register("labels", labels)
        return connection.sql(f"select * from ({sql}) order by arrival").to_arrow_table()
