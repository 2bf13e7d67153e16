"""Reads and writes data files of the tables, for engines that run on other machines.

Files are written before they are committed: until `lake.append` names them in the log, readers do not see them.
Maintenance's vacuum removes the files that a killed or repeated task leaves behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import Table
from fraud_assets.errors import DamagedFileError
from fraud_assets.lake.data_file_damage import describe_damaged_file
from fraud_assets.lake.file_state import describe_parquet_fault
from fraud_assets.lake.location import TableLocation
from fraud_assets.lake.log import add_actions

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction
    from pyarrow.dataset import Expression
    from pyarrow.fs import FileSystem
    from pyarrow.parquet import ParquetWriter


READ_ROWS = 65_536
BODY_ROWS = 1_024
"""Number of rows that are read at a time if they contain message bodies. A body can have 100 kB."""
_READ_BYTES = 33_554_432
GROUP_ROWS = 131_072
"""Number of rows in a Parquet row group. A reader holds one group in memory, and large files are split by groups."""
_GROUP_BYTES = 134_217_728
"""A row group is written earlier, with fewer rows, if it reaches this size in the writer's memory."""
_SLICE_BYTES = 8_388_608
_SLICE_ROWS = 2 * GROUP_ROWS


@dataclass(frozen=True)
class Slice:
    """Part `number` (from 0) of `count` parts of a data file; `partition` is its partition value in the log."""

    path: str
    size: int
    partition: date | None = None
    number: int = 0
    count: int = 1


@dataclass(frozen=True)
class DataFile:
    """A data file that is written but not committed, with the facts for its entry in the log.

    Attributes:
        path: Path below the table's folder.
        size: Size in bytes.
        rows: Number of rows.
        partition: Partition value as text; None if the table has no partition column.
        statistics: Delta's statistics as JSON.
    """

    path: str
    size: int
    rows: int
    partition: str | None
    statistics: str

    def action(self, table: Table) -> AddAction:
        """Returns the file's entry for the log."""
        from deltalake.transaction import AddAction

        values = {} if table.partition_by is None else {table.partition_by: self.partition}
        now = int(datetime.now(UTC).timestamp() * 1000)
        return AddAction(self.path, self.size, values, now, True, self.statistics)


Rows: TypeAlias = pa.Table | Sequence[DataFile]
"""Rows to commit: in memory or in written data files."""


def list_slices(handle: DeltaTable, files: Sequence[str], table: Table) -> list[Slice]:
    """Returns the files as parts of at most about 8 MB and 260,000 rows, each for a task.

    Args:
        handle: The version of the files.
        files: Paths of the files, as named by `add_actions`.
        table: The table of the handle.
    """
    wanted = set(files)
    actions = add_actions(handle)
    names = ["path", "size_bytes", "num_records", *([f"partition.{table.partition_by}"] if table.partition_by else [])]
    slices = []
    for path, size, rows, *partition in zip(*(actions[name].to_pylist() for name in names), strict=True):
        if path in wanted:
            count = max(1, round(size / _SLICE_BYTES), round((rows or 0) / _SLICE_ROWS))
            slices += [Slice(path, size, *partition, number=n, count=count) for n in range(count)]  # type: ignore[misc]
    return slices


def read_slices(
    location: TableLocation,
    slices: Sequence[Slice],
    schema: pa.Schema,
    partition_by: str | None,
    where: Expression | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of slices.

    Args:
        location: The table's folder.
        slices: The parts of files to read.
        schema: Columns to read, which may include the partition column.
        partition_by: The table's partition column.
        where: Condition of the rows; all rows if None.

    Raises:
        DamagedFileError: A file is missing or damaged.
    """
    physical = pa.schema([column for column in schema if column.name != partition_by])
    filesystem = location.filesystem({part.path: part.size for part in slices})
    for part in slices:
        for batch in _merge_batches(_read_slice(location, filesystem, part, physical.names, where)):
            columns = [
                pa.repeat(pa.scalar(part.partition, column.type), batch.num_rows)
                if column.name == partition_by
                else _column(batch, column)
                for column in schema
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(batch: pa.RecordBatch, column: pa.Field) -> pa.Array:
    """Returns the values of a column, null if the data file was written before the column was added."""
    if column.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, column.type)
    return batch.column(column.name).cast(column.type)


def _read_slice(
    location: TableLocation, filesystem: FileSystem, part: Slice, columns: Sequence[str], where: Expression | None
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a slice, in small batches if they contain message bodies."""
    from pyarrow.dataset import ParquetFileFormat

    fragment = ParquetFileFormat().make_fragment(part.path, filesystem)
    try:
        if part.count > 1:
            groups = [group.id for group in fragment.row_groups][part.number :: part.count]
            if not groups:
                return
            fragment = fragment.subset(row_group_ids=groups)
        yield from fragment.to_batches(
            schema=fragment.physical_schema,
            columns=[name for name in columns if name in fragment.physical_schema.names],
            filter=where,
            batch_size=BODY_ROWS if "value" in columns else READ_ROWS,
        )
    except (OSError, pa.ArrowInvalid) as error:
        fault = describe_parquet_fault(filesystem, part.path, part.size, whole=True)
        if fault is None:
            raise
        path = f"{location.uri.rstrip('/')}/{part.path}"
        raise DamagedFileError(describe_damaged_file(path, fault)) from error


def _merge_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yields the rows in non-empty batches of about READ_ROWS rows or _READ_BYTES bytes."""
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        waiting.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= READ_ROWS or size >= _READ_BYTES:
            yield pa.concat_batches(waiting)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield pa.concat_batches(waiting)


def write_data_files(location: TableLocation, table: Table, batches: Iterable[pa.RecordBatch]) -> Iterator[DataFile]:
    """Writes rows to new files in the table's folder, one per partition value, and yields the files at the end.

    If writing fails, the new files are removed as far as possible.
    """
    filesystem = location.filesystem()
    writers: dict[str | None, _Writer] = {}
    try:
        for batch in batches:
            rows = pa.Table.from_batches([batch]).select(table.schema.names).cast(table.schema)
            for value, part in _split_by_partition(rows, table.partition_by):
                if value not in writers:
                    writers[value] = _Writer(filesystem, table, value)
                writers[value].add(part)
        files = [writer.finish() for writer in writers.values()]
    except BaseException:
        for writer in writers.values():
            writer.discard()
        raise
    yield from files


def remove_files(location: TableLocation, files: Iterable[DataFile]) -> None:
    """Removes files that were never committed."""
    filesystem = location.filesystem()
    for file in files:
        filesystem.delete_file(file.path)


def count_rows(rows: Rows) -> int:
    """Returns the number of rows."""
    return rows.num_rows if isinstance(rows, pa.Table) else sum(file.rows for file in rows)


def _split_by_partition(rows: pa.Table, column: str | None) -> Iterator[tuple[str | None, pa.Table]]:
    if column is None:
        yield None, rows
        return
    values = pc.unique(rows[column]).to_pylist()
    bare = rows.drop_columns([column])
    for value in values:
        part = bare if len(values) == 1 else bare.filter(pc.equal(rows[column], pa.scalar(value, rows[column].type)))
        yield str(value), part


class _Writer:
    """Writes one file in whole row groups."""

    def __init__(self, filesystem: FileSystem, table: Table, partition: str | None) -> None:
        from pyarrow.parquet import ParquetWriter

        self._filesystem = filesystem
        self._table = table
        self._partition = partition
        name = f"part-{uuid4()}.zstd.parquet"
        self._path = name if partition is None else f"{table.partition_by}={partition}/{name}"
        if partition is not None:
            filesystem.create_dir(f"{table.partition_by}={partition}", recursive=True)
        schema = pa.schema([column for column in table.schema if column.name != table.partition_by])
        self._metadata: list[Any] = []
        self._sink = filesystem.open_output_stream(self._path)
        self._writer: ParquetWriter = ParquetWriter(
            self._sink, schema, compression="zstd", compression_level=1, metadata_collector=self._metadata
        )
        self._waiting: list[pa.Table] = []
        self._rows = self._bytes = 0

    def add(self, rows: pa.Table) -> None:
        self._waiting.append(rows)
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._flush()

    def finish(self) -> DataFile:
        self._flush()
        self._writer.close()
        size = self._sink.tell()
        self._sink.close()
        metadata = self._metadata[0]
        return DataFile(self._path, size, metadata.num_rows, self._partition, _statistics(metadata, self._table))

    def discard(self) -> None:
        self._waiting = []
        self._writer.close()
        self._sink.close()
        self._filesystem.delete_file(self._path)

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=GROUP_ROWS)
        self._waiting, self._rows, self._bytes = [], 0, 0


def _statistics(metadata: Any, table: Table) -> str:
    """Returns Delta's statistics as JSON, from the Parquet footer, for the columns in `table.statistics`."""
    minima: dict[str, Any] = {}
    maxima: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            name = column.path_in_schema
            if name not in table.statistics or not column.is_stats_set:
                continue
            found = column.statistics
            nulls[name] = nulls.get(name, 0) + (found.null_count or 0)
            if found.has_min_max:
                minima[name] = min(minima.get(name, found.min), found.min)
                maxima[name] = max(maxima.get(name, found.max), found.max)
    return json.dumps(
        {
            "numRecords": metadata.num_rows,
            "minValues": {name: _json_value(value) for name, value in minima.items()},
            "maxValues": {name: _json_value(value) for name, value in maxima.items()},
            "nullCount": nulls,
        }
    )


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        # Delta's protocol truncates times to milliseconds; readers expect that.
        return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{value.microsecond // 1000:03d}Z"
    return value
