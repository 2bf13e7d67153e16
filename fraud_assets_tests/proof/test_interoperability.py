"""The tables are standard Delta: every engine and Delta's own Spark connector read and write them."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fraud_assets.core.schema import HEADERS, TABLES, TIME, Table, raw_transactions
from fraud_assets.engines.spark.tables import scan, write
from fraud_assets.errors import JarsError
from fraud_assets.lake.append import append_landed, commit_append
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.positions import SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake, read
from fraud_assets.operations.maintenance import maintain_table
from fraud_assets.settings import Settings
from fraud_assets.system.java import resolve_jars

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.xdist_group("spark"), pytest.mark.timeout(600)]

ROWS = 40
STREAM = SourcePartition("transactions", "life", 0)
FIRST = datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC)


def value(field: pa.Field, row: int) -> Any:
    """A value of the column's type that tells rows apart; every third is null where that may be."""
    if field.nullable and row % 3 == 0:
        return None
    if field.type == HEADERS:
        return [] if row % 3 == 1 else [{"key": "trace", "value": b"\x00\xff"}, {"key": None, "value": None}]
    of_type: dict[pa.DataType, Any] = {
        pa.string(): "" if row % 5 == 1 else f"{field.name} {row} – ü/%20={row}",
        pa.binary(): b"" if row % 5 == 1 else b"%d\x00\xff" % row,
        TIME: FIRST + timedelta(days=7 * row, microseconds=row),
        pa.date32(): date(2026, 1, 1 + row % 3),
        pa.bool_(): row % 2 == 0,
        pa.float64(): row / 7,
        pa.int32(): row,
        pa.int64(): row,
    }
    return of_type[field.type]


def rows_of(table: Table) -> pa.Table:
    columns = [pa.array([value(field, row) for row in range(ROWS)], field.type) for field in table.schema]
    return pa.table(columns, schema=table.schema)


def as_set(rows: pa.Table, table: Table) -> list[str]:
    """Rows in no order, to compare."""
    return sorted(map(repr, rows.select(table.schema.names).cast(table.schema).to_pylist()))


@pytest.fixture(scope="module")
def delta_conf() -> str:
    """FRAUD_SPARK_CONF of a session with Delta's own connector."""
    try:
        jars = resolve_jars("fraud_assets_tests.support", "delta-spark.pom.xml", "Delta's Spark connector")
    except JarsError as error:
        pytest.skip(str(error))
    conf = {
        "spark.jars": ",".join(map(str, sorted(jars.glob("*.jar")))),
        # It reads a table's log by 50 tasks.
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    }
    return ";".join(f"{name}={value}" for name, value in conf.items())


def by_duckdb(lake: Lake, table: Table) -> pa.Table:
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        connection.register("rows", lake.open(table).to_pyarrow_dataset())
        return connection.sql("select * from rows").to_arrow_table()


def by_spark(spark: SparkSession, lake: Lake, table: Table) -> pa.Table:
    handle = lake.open(table)
    return scan(spark, lake, table, handle, add_actions(handle)["path"].to_pylist()).toArrow()


@pytest.fixture(scope="module")
def lakes(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Lake]:
    """Every table, with every type of column, as each of the two engines writes it."""
    folder = tmp_path_factory.mktemp("lakes")
    made = {engine: Lake(str(folder / engine)) for engine in ("process", "spark")}
    for table in TABLES:
        rows = rows_of(table)
        commit_append(made["process"].open(table), table, rows, {STREAM: ROWS - 1})
        frame = spark.createDataFrame(rows).repartition(2)
        commit_append(made["spark"].open(table), table, write(frame, made["spark"], table), {STREAM: ROWS - 1})
    return made


@pytest.mark.parametrize("engine", ["process", "spark"])
def test_delta_spark_and_we_read_and_append_to_the_same_tables(
    engine: str, lakes: dict[str, Lake], delta_conf: str, spark: SparkSession, settings: Settings, tmp_path: Path
) -> None:
    lake = lakes[engine]
    driver = Path(__file__).parents[1] / "support" / "delta_spark_driver.py"
    ended = subprocess.run(
        [sys.executable, driver, tmp_path, lake.uri(raw_transactions), *map(lake.uri, TABLES)],
        env={
            **os.environ,
            "FRAUD_HOME": str(settings.home_path),
            "FRAUD_SPARK_MASTER": "local[2]",
            "FRAUD_SPARK_CONF": delta_conf,
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    for number, table in enumerate(TABLES):
        expected = as_set(rows_of(table), table)
        assert as_set(pq.read_table(tmp_path / f"{number}.parquet"), table) == expected
        if table is not raw_transactions:
            assert as_set(read(lake.open(table)), table) == expected
            assert as_set(by_spark(spark, lake, table), table) == expected
            assert as_set(by_duckdb(lake, table), table) == expected
    # To this one the connector appended its own rows again.
    twice = sorted(as_set(rows_of(raw_transactions), raw_transactions) * 2)
    handle = lake.open(raw_transactions)
    assert any(commit.get("engineInfo", "").startswith("Apache-Spark") for commit in handle.history())
    for rows in (
        read(handle),
        by_spark(spark, lake, raw_transactions),
        by_duckdb(lake, raw_transactions),
    ):
        assert as_set(rows, raw_transactions) == twice
    assert committed_offset(handle, STREAM) == ROWS - 1
    # Landing continues after it.
    assert append_landed(lake, raw_transactions, rows_of(raw_transactions), {STREAM: ROWS}) == ROWS
    maintain_table(lake, raw_transactions, settings)
    assert len(as_set(read(lake.open(raw_transactions)), raw_transactions)) == 3 * ROWS
    # Neither deletion vectors nor renamed columns: anything that reads Delta reads it.
    for table in TABLES:
        protocol = lake.open(table).protocol()
        assert (protocol.min_reader_version, protocol.min_writer_version) == (1, 2)
        assert not protocol.reader_features
