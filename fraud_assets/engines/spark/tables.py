"""Delta tables as DataFrames: executors read and write their data files; the log is the driver's alone.

No Delta jar takes part, and the executors reach an object store with the same options as everybody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from fraud_assets.core.schema import Table
from fraud_assets.engines.spark.headers import with_headers
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
    """What `work` gives for every part, a task for each; `schema` is that of its batches."""
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
    """Rows of these files of the handle's version: `columns` (all) of those that meet `where` (all)."""
    schema = table.schema if columns is None else pa.schema([table.schema.field(name) for name in columns])
    place, partition_by = lake.location(table), table.partition_by

    def read(slices: Sequence[Slice]) -> Iterator[pa.RecordBatch]:
        return read_slices(place, slices, schema, partition_by, where)

    return run_tasks(spark, group_slices(spark, list_slices(handle, files, table)), read, schema)


def group_slices(spark: SparkSession, slices: Sequence[Slice]) -> list[list[Slice]]:
    """The slices as the work of so many tasks as keep the cores busy, each with about the same bytes."""
    tasks = min(len(slices), _TASKS_PER_CORE * spark.sparkContext.defaultParallelism)
    groups: list[list[Slice]] = [[] for _ in range(tasks)]
    loads = [0] * tasks
    for part in sorted(slices, key=lambda part: part.size / part.count, reverse=True):
        lightest = loads.index(min(loads))
        groups[lightest].append(part)
        # Opening a file costs about as much as reading a megabyte.
        loads[lightest] += part.size // part.count + 1_000_000
    return groups


def write(frame: DataFrame, lake: Lake, table: Table) -> list[DataFile]:
    """Writes the rows (columns of the table, by name; headers also as text) into data files, on the executors.

    They are not committed.
    """
    from pyspark.sql.pandas.types import from_arrow_schema

    place = lake.location(table)

    def written(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield as_batch(list(write_data_files(place, table, map(with_headers, batches))))

    return data_files(frame.mapInArrow(written, from_arrow_schema(DATA_FILE)))


def as_batch(files: Sequence[DataFile]) -> pa.RecordBatch:
    """Data files as a task hands them to the driver."""
    return pa.RecordBatch.from_pylist([vars(file) for file in files], schema=DATA_FILE)


def data_files(frame: DataFrame) -> list[DataFile]:
    """The data files that tasks wrote. Runs them."""
    return [DataFile(**row) for row in frame.toArrow().to_pylist()]


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])
