"""The feature definition as DuckDB SQL, compiled once and kept on disk."""

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
    with suppress(OSError), replaced_file(file) as part:
        part.write(sql.encode())
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
