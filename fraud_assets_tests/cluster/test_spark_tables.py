"""Delta tables on Spark: rows that executors write are committed once, and every reader reads the same rows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable

from fraud_assets.core.schema import HEADERS, MESSAGES, RAW_TRANSACTIONS, TIME, raw_transactions
from fraud_assets.engines.spark.tables import scan, write
from fraud_assets.errors import CommitConflictError
from fraud_assets.lake.append import append_landed, commit_append
from fraud_assets.lake.data_files import DataFile, list_slices, remove_files
from fraud_assets.lake.log import add_actions, read_row_count
from fraud_assets.lake.positions import SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake, read
from fraud_assets.operations.maintenance import maintain_table
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.xdist_group("spark")

COPY = SourcePartition("copy", "topic-id", 0)


def messages(count: int, topic: str = "transactions") -> pa.Table:
    return pa.table(
        {
            "topic": pa.repeat(topic, count),
            "topic_id": pa.repeat("topic-id", count),
            "partition": pa.array([0] * count, pa.int32()),
            "offset": range(count),
            "timestamp": pa.array([datetime(2026, 1, 1, 12, 0, 0, 123456, UTC)] * count, TIME),
            "key": pa.array([None if n % 2 else b"\x00key" for n in range(count)], pa.binary()),
            "value": pa.array([None if n == 3 else b"%d\xff" % n for n in range(count)], pa.binary()),
            "headers": pa.array([[{"key": "trace", "value": b"1"}], None] * (count // 2), HEADERS),
        }
    ).cast(MESSAGES)


def scan_table(spark: SparkSession, lake: Lake) -> DataFrame:
    handle = lake.open(raw_transactions)
    return scan(spark, lake, raw_transactions, handle, add_actions(handle)["path"].to_pylist())


def test_every_reader_reads_the_same_bytes_that_were_written(
    spark: SparkSession, lake: Lake, settings: Settings
) -> None:
    append_landed(lake, raw_transactions, messages(1000))
    original = read(lake.open(raw_transactions))
    handle = lake.open(raw_transactions)
    files = write(scan_table(spark, lake), lake, raw_transactions)
    assert read_row_count(lake.open(raw_transactions)) == 1000  # no new row is visible before the commit
    commit_append(handle, raw_transactions, files, {COPY: 999}, {"engine": "spark"})
    table = lake.open(raw_transactions)
    assert committed_offset(table, COPY) == 999
    paths = [file.path for file in files]
    by_delta = table.to_pyarrow_dataset().to_table(filter=ds.field("partition") == 0)
    assert by_delta.num_rows == 2000
    assert scan_table(spark, lake).count() == 2000
    copied = scan(spark, lake, raw_transactions, table, paths).toArrow().cast(RAW_TRANSACTIONS)
    assert copied.sort_by("offset").equals(original.cast(RAW_TRANSACTIONS).sort_by("offset"))
    connection = duckdb.connect()
    connection.register("lake", table.to_pyarrow_dataset())
    assert connection.sql('select count(*), count(value), max("offset") from lake').fetchall() == [(2000, 1998, 999)]
    connection.close()
    # Without deletion vectors and renamed columns, every reader of Delta can read the table.
    assert (table.protocol().min_reader_version, table.protocol().min_writer_version) == (1, 2)
    assert maintain_table(lake, raw_transactions, settings).files_after == 1
    assert read_row_count(lake.open(raw_transactions)) == 2000


def test_file_statistics_equal_those_of_delta_rs(spark: SparkSession, lake: Lake) -> None:
    append_landed(lake, raw_transactions, messages(10, topic="t" * 100))
    handle = lake.open(raw_transactions)
    commit_append(handle, raw_transactions, write(scan_table(spark, lake), lake, raw_transactions), {COPY: 9})
    copied, original = (
        {name: value for name, value in action.items() if name.split(".")[0] in ("min", "null_count", "num_records")}
        for action in add_actions(lake.open(raw_transactions)).to_pylist()
    )
    assert copied == original


def test_a_commit_through_a_stale_handle_is_refused(spark: SparkSession, lake: Lake) -> None:
    append_landed(lake, raw_transactions, messages(10))
    first, second = lake.open(raw_transactions), lake.open(raw_transactions)
    files = write(scan_table(spark, lake), lake, raw_transactions)
    commit_append(first, raw_transactions, files, {COPY: 9})
    second_files = write(scan_table(spark, lake), lake, raw_transactions)
    with pytest.raises(CommitConflictError):
        commit_append(second, raw_transactions, second_files, {COPY: 9})
    remove_files(lake.location(raw_transactions), second_files)
    assert read_row_count(lake.open(raw_transactions)) == 20
    committed_names = {path.rsplit("/", 1)[-1] for path in DeltaTable(lake.uri(raw_transactions)).file_uris()}
    assert not any(file.path.rsplit("/", 1)[-1] in committed_names for file in second_files)


def test_a_large_file_is_read_by_many_tasks(spark: SparkSession, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fraud_assets.lake.data_files.GROUP_ROWS", 100)
    append_landed(lake, raw_transactions, messages(1000))
    handle = lake.open(raw_transactions)
    commit_append(handle, raw_transactions, _write_locally(lake, messages(1000)), {COPY: 999})
    handle = lake.open(raw_transactions)
    monkeypatch.setattr("fraud_assets.lake.data_files._SLICE_BYTES", 2_000)
    paths = add_actions(handle)["path"].to_pylist()
    assert len(list_slices(handle, paths, raw_transactions)) > len(paths)
    offsets = scan(spark, lake, raw_transactions, handle, paths, ["offset"]).toArrow()["offset"].to_pylist()
    assert sorted(offsets) == sorted([*range(1000), *range(1000)])


def _write_locally(lake: Lake, rows: pa.Table) -> list[DataFile]:
    from fraud_assets.lake.append import stamp_ingest
    from fraud_assets.lake.data_files import write_data_files

    batches = stamp_ingest(rows, raw_transactions).to_batches()
    return list(write_data_files(lake.location(raw_transactions), raw_transactions, batches))


def test_files_of_a_failed_task_are_removed(lake: Lake) -> None:
    from fraud_assets.lake.append import stamp_ingest
    from fraud_assets.lake.data_files import write_data_files

    lake.open(raw_transactions)

    def batches() -> Any:
        yield from stamp_ingest(messages(10), raw_transactions).to_batches()
        raise RuntimeError("the task ends here")

    with pytest.raises(RuntimeError):
        list(write_data_files(lake.location(raw_transactions), raw_transactions, batches()))
    folder = lake.location(raw_transactions).filesystem()
    from pyarrow.fs import FileSelector

    assert [info.path for info in folder.get_file_info(FileSelector("", recursive=True)) if "part-" in info.path] == []


@pytest.mark.usefixtures("s3_settings")
def test_spark_reads_and_writes_a_table_on_an_object_store(spark: SparkSession, s3_settings: Settings) -> None:
    lake = Lake.of(s3_settings)
    append_landed(lake, raw_transactions, messages(100))
    handle = lake.open(raw_transactions)
    commit_append(handle, raw_transactions, write(scan_table(spark, lake), lake, raw_transactions), {COPY: 99})
    assert read_row_count(lake.open(raw_transactions)) == 200
    assert scan_table(spark, lake).count() == 200
