"""Runs the feature definition as DuckDB SQL, which is compiled once and cached on disk."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from fraud_assets.core import features
from fraud_assets.lake.duckdb_session import connect
from fraud_assets.settings import WINDOW_DAYS, Settings
from fraud_assets.system.files import replaced_file


@cache
def _window_sql(delay_days: int, folder: Path) -> str:
    """Returns the feature definition as DuckDB SQL, cached in `folder`.

    SQLFrame takes 1.6 s to import and to compile it.
    """
    inputs = (
        Path(features.__file__).read_text("utf-8"),
        WINDOW_DAYS,
        delay_days,
        version("sqlframe"),
        version("sqlglot"),
    )
    file = folder / f"windows-{sha256(repr(inputs).encode()).hexdigest()[:16]}.sql"
    try:
        return file.read_text("utf-8")
    except OSError:
        sql = _compile(delay_days)
    # If the file cannot be written, the next process compiles again.
    with suppress(OSError), replaced_file(file) as part:
        part.write(sql.encode())
    return sql


def _compile(delay_days: int) -> str:
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
    """Computes the windowed features of the new transactions, ordered by `arrival`.

    Args:
        transactions: Rows of `core.features.TRANSACTION_COLUMNS`.
        labels: Rows of `core.features.LABEL_COLUMNS`.
        settings: The feedback delay and DuckDB's memory.

    Returns:
        The columns of `core.features.window_features`.
    """
    sql = _window_sql(settings.feedback_delay_days, settings.home_path / "cache")
    with connect(settings) as connection:
        connection.register("transactions", transactions)
        connection.register("labels", labels)
        return connection.sql(f"select * from ({sql}) order by arrival").to_arrow_table()
