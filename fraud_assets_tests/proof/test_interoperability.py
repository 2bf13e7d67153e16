"""The tables are standard Delta tables: both engines and Delta's own Spark connector read and write them."""

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
SOURCE_PARTITION = SourcePartition("transactions", "topic-id", 0)
FIRST = datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC)


def value(field: pa.Field, row: int) -> Any:
    """A value of the column's type that differs between rows; every third value is null if the column allows it."""
    if field.nullable and row % 3 == 0:
        return None
    if field.type == HEADERS:
        return [] if row % 3 == 1 else [{"key": "trace", "value": b"\x00\xff"}, {"key": None, "value": None}]
    values_by_type: dict[pa.DataType, Any] = {
        pa.string(): "" if row % 5 == 1 else f"{field.name} {row} – ü/%20={row}",
        pa.binary(): b"" if row % 5 == 1 else b"%d\x00\xff" % row,
        TIME: FIRST + timedelta(days=7 * row, microseconds=row),
        pa.date32(): date(2026, 1, 1 + row % 3),
        pa.bool_(): row % 2 == 0,
        pa.float64(): row / 7,
        pa.int32(): row,
        pa.int64(): row,
    }
    return values_by_type[field.type]


def rows_of(table: Table) -> pa.Table:
    columns = [pa.array([value(field, row) for row in range(ROWS)], field.type) for field in table.schema]
    return pa.table(columns, schema=table.schema)


def sorted_rows(rows: pa.Table, table: Table) -> list[str]:
    """The rows in a fixed order, for comparison."""
    return sorted(map(repr, rows.select(table.schema.names).cast(table.schema).to_pylist()))


@pytest.fixture(scope="module")
def delta_conf() -> str:
    """FRAUD_SPARK_CONF for a session with Delta's own connector."""
    try:
        jars = resolve_jars("fraud_assets_tests.support", "delta-spark.pom.xml", "Delta's Spark connector")
    except JarsError as error:
        pytest.skip(str(error))
    conf = {
        "spark.jars": ",".join(map(str, sorted(jars.glob("*.jar")))),
        # By default, the connector reads the log of a table with 50 tasks.
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    }
    return ";".join(f"{name}={value}" for name, value in conf.items())


def read_with_duckdb(lake: Lake, table: Table) -> pa.Table:
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        connection.register("rows", lake.open(table).to_pyarrow_dataset())
        return connection.sql("select * from rows").to_arrow_table()


def read_with_spark(spark: SparkSession, lake: Lake, table: Table) -> pa.Table:
    handle = lake.open(table)
    return scan(spark, lake, table, handle, add_actions(handle)["path"].to_pylist()).toArrow()


@pytest.fixture(scope="module")
def lakes(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Lake]:
    """Two lakes with every table and every column type: the local engine writes one, Spark the other."""
    folder = tmp_path_factory.mktemp("lakes")
    written = {engine: Lake(str(folder / engine)) for engine in ("process", "spark")}
    for table in TABLES:
        rows = rows_of(table)
        commit_append(written["process"].open(table), table, rows, {SOURCE_PARTITION: ROWS - 1})
        frame = spark.createDataFrame(rows).repartition(2)
        commit_append(
            written["spark"].open(table), table, write(frame, written["spark"], table), {SOURCE_PARTITION: ROWS - 1}
        )
    return written


@pytest.mark.parametrize("engine", ["process", "spark"])
def test_delta_spark_and_the_platform_read_and_append_to_the_same_tables(
    engine: str, lakes: dict[str, Lake], delta_conf: str, spark: SparkSession, settings: Settings, tmp_path: Path
) -> None:
    lake = lakes[engine]
    driver = Path(__file__).parents[1] / "support" / "delta_spark_driver.py"
    completed = subprocess.run(
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
    assert completed.returncode == 0, completed.stderr
    for number, table in enumerate(TABLES):
        expected = sorted_rows(rows_of(table), table)
        assert sorted_rows(pq.read_table(tmp_path / f"{number}.parquet"), table) == expected
        if table is not raw_transactions:
            assert sorted_rows(read(lake.open(table)), table) == expected
            assert sorted_rows(read_with_spark(spark, lake, table), table) == expected
            assert sorted_rows(read_with_duckdb(lake, table), table) == expected
    # The connector has appended the rows of this table to it once more.
    expected_twice = sorted(sorted_rows(rows_of(raw_transactions), raw_transactions) * 2)
    handle = lake.open(raw_transactions)
    assert any(commit.get("engineInfo", "").startswith("Apache-Spark") for commit in handle.history())
    for rows in (
        read(handle),
        read_with_spark(spark, lake, raw_transactions),
        read_with_duckdb(lake, raw_transactions),
    ):
        assert sorted_rows(rows, raw_transactions) == expected_twice
    assert committed_offset(handle, SOURCE_PARTITION) == ROWS - 1
    # Landing continues after the commit of the connector.
    assert append_landed(lake, raw_transactions, rows_of(raw_transactions), {SOURCE_PARTITION: ROWS}) == ROWS
    maintain_table(lake, raw_transactions, settings)
    assert len(sorted_rows(read(lake.open(raw_transactions)), raw_transactions)) == 3 * ROWS
    # Without deletion vectors and renamed columns, every reader of Delta can read the table.
    for table in TABLES:
        protocol = lake.open(table).protocol()
        assert (protocol.min_reader_version, protocol.min_writer_version) == (1, 2)
        assert not protocol.reader_features
