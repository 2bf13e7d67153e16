"""Reads and writes Delta tables as DataFrames: executors process the data files, and only the driver uses the log.

No Delta jar is needed. Executors access an object store with the same options as the other processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from fraud_assets.core.schema import Table
from fraud_assets.engines.spark.headers import convert_headers_from_text
from fraud_assets.lake.data_files import DataFile, Slice, list_slices, read_slices, write_data_files
from fraud_assets.lake.tables import Lake

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyarrow.dataset import Expression
    from pyspark.sql import DataFrame, SparkSession

Part = TypeVar("Part")

_TASKS_PER_CORE = 4
DATA_FILE = pa.schema(
    [
        pa.field("path", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("rows", pa.int64()),
        pa.field("partition", pa.string()),
        pa.field("statistics", pa.string()),
    ]
)


def run_tasks(
    spark: SparkSession,
    parts: Sequence[Part],
    work: Callable[[Part], Iterator[pa.RecordBatch]],
    schema: pa.Schema,
) -> DataFrame:
    """Runs a function on every part, each in a separate task.

    Args:
        spark: The Spark session.
        parts: The inputs of the tasks.
        work: The function; it can be pickled.
        schema: The schema of the batches that it yields.

    Returns:
        The rows of all batches. Nothing runs until the DataFrame is used.
    """
    from pyspark.sql.pandas.types import from_arrow_schema

    def run(numbers: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in numbers:
            for number in batch.column(0).to_pylist():
                yield from work(parts[number])

    return spark.range(0, len(parts), 1, max(1, len(parts))).mapInArrow(run, from_arrow_schema(_nullable(schema)))


def scan(
    spark: SparkSession,
    lake: Lake,
    table: Table,
    handle: DeltaTable,
    files: Sequence[str],
    columns: Sequence[str] | None = None,
    where: Expression | None = None,
) -> DataFrame:
    """Reads rows of a table.

    Args:
        spark: The Spark session.
        lake: The lake of the table.
        table: The table.
        handle: The version of the table.
        files: The files to read.
        columns: The columns to read; default: all.
        where: The condition that the rows meet; default: none.
    """
    schema = table.schema if columns is None else pa.schema([table.schema.field(name) for name in columns])
    location, partition_by = lake.location(table), table.partition_by

    def read(slices: Sequence[Slice]) -> Iterator[pa.RecordBatch]:
        return read_slices(location, slices, schema, partition_by, where)

    return run_tasks(spark, group_slices(spark, list_slices(handle, files, table)), read, schema)


def group_slices(spark: SparkSession, slices: Sequence[Slice]) -> list[list[Slice]]:
    """Groups slices into tasks with about the same bytes, and into enough tasks to keep all cores busy."""
    tasks = min(len(slices), _TASKS_PER_CORE * spark.sparkContext.defaultParallelism)
    groups: list[list[Slice]] = [[] for _ in range(tasks)]
    loads = [0] * tasks
    for part in sorted(slices, key=lambda part: part.size / part.count, reverse=True):
        lightest = loads.index(min(loads))
        groups[lightest].append(part)
        # Opening a file takes about as long as reading a megabyte.
        loads[lightest] += part.size // part.count + 1_000_000
    return groups


def write(frame: DataFrame, lake: Lake, table: Table) -> list[DataFile]:
    """Writes rows to data files on the executors, without committing them.

    Args:
        frame: Rows with the columns of the table, by name. Headers may be text.
        lake: The lake of the table.
        table: The table.

    Returns:
        The data files.
    """
    from pyspark.sql.pandas.types import from_arrow_schema

    location = lake.location(table)

    def write_part(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        files = write_data_files(location, table, map(convert_headers_from_text, batches))
        yield pa.RecordBatch.from_pylist([vars(file) for file in files], schema=DATA_FILE)

    written = frame.mapInArrow(write_part, from_arrow_schema(DATA_FILE))
    return [DataFile(**row) for row in written.toArrow().to_pylist()]


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])
