"""Data files of the tables, for engines that read and write them on other machines.

They are written before they are committed: until `lake.append.commit` names them in the log no reader knows of
them, and what a killed or repeated task leaves behind, maintenance's vacuum removes.
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
from fraud_assets.lake.damage import of_data_file, parquet_state
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
"""Rows that are read at a time where they hold message bodies, of which one may have some 100 kB."""
_READ_BYTES = 33_554_432
GROUP_ROWS = 131_072
"""Rows of a Parquet row group: what a reader holds at a time, and what a large file is split by."""
_GROUP_BYTES = 134_217_728
"""Of fewer rows, where they are large: what a writer holds at a time."""
_SLICE_BYTES = 8_388_608
_SLICE_ROWS = 2 * GROUP_ROWS


@dataclass(frozen=True)
class Slice:
    """The `number`-th of `count` parts of a data file; `partition` is its value in the log."""

    path: str
    size: int
    partition: date | None = None
    number: int = 0
    count: int = 1


@dataclass(frozen=True)
class DataFile:
    """A data file that is written and not committed: what the log says of it, and `facts` for the writer's caller."""

    path: str
    size: int
    rows: int
    partition: str | None
    statistics: str

    def action(self, table: Table) -> AddAction:
        """Its entry in the log."""
        from deltalake.transaction import AddAction

        values = {} if table.partition_by is None else {table.partition_by: self.partition}
        now = int(datetime.now(UTC).timestamp() * 1000)
        return AddAction(self.path, self.size, values, now, True, self.statistics)


Rows: TypeAlias = pa.Table | Sequence[DataFile]
"""Rows that are to be committed: in memory, or in data files already."""


def list_slices(handle: DeltaTable, files: Sequence[str], table: Table) -> list[Slice]:
    """The files of the handle's version as parts of at most about 8 MB and 260,000 rows, for as many tasks."""
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
    """Rows of the slices that meet `where`, in `schema` (columns of the table, its partition column among them)."""
    physical = pa.schema([column for column in schema if column.name != partition_by])
    filesystem = location.filesystem({part.path: part.size for part in slices})
    for part in slices:
        for batch in _gathered(_batches(location, filesystem, part, physical.names, where)):
            columns = [
                pa.repeat(pa.scalar(part.partition, column.type), batch.num_rows)
                if column.name == partition_by
                else _column(batch, column)
                for column in schema
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(batch: pa.RecordBatch, column: pa.Field) -> pa.Array:
    """Returns the values of a column, null where the data file was written before the column was added."""
    if column.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, column.type)
    return batch.column(column.name).cast(column.type)


def _batches(
    location: TableLocation, filesystem: FileSystem, part: Slice, columns: Sequence[str], where: Expression | None
) -> Iterator[pa.RecordBatch]:
    """Rows of a slice, a few at a time where they hold message bodies."""
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
        state = parquet_state(filesystem, part.path, part.size, whole=True)
        if state is None:
            raise
        raise DamagedFileError(of_data_file(f"{location.uri.rstrip('/')}/{part.path}", state)) from error


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows in batches of about READ_ROWS rows or _READ_BYTES bytes; none is empty."""
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
    """Writes the rows into new files of the table's folder, one for each partition value; gives them when all are done.

    Where it fails, what it wrote is removed as far as that is possible.
    """
    filesystem = location.filesystem()
    writers: dict[str | None, _Writer] = {}
    try:
        for batch in batches:
            rows = pa.Table.from_batches([batch]).select(table.schema.names).cast(table.schema)
            for value, part in _by_partition(rows, table.partition_by):
                if value not in writers:
                    writers[value] = _Writer(filesystem, table, value)
                writers[value].add(part)
        files = [writer.finished() for writer in writers.values()]
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    yield from files


def remove(location: TableLocation, files: Iterable[DataFile]) -> None:
    """Removes files that were never committed."""
    filesystem = location.filesystem()
    for file in files:
        filesystem.delete_file(file.path)


def count_rows(rows: Rows) -> int:
    """How many rows these are."""
    return rows.num_rows if isinstance(rows, pa.Table) else sum(file.rows for file in rows)


def _by_partition(rows: pa.Table, column: str | None) -> Iterator[tuple[str | None, pa.Table]]:
    if column is None:
        yield None, rows
        return
    values = pc.unique(rows[column]).to_pylist()
    bare = rows.drop_columns([column])
    for value in values:
        part = bare if len(values) == 1 else bare.filter(pc.equal(rows[column], pa.scalar(value, rows[column].type)))
        yield str(value), part


class _Writer:
    """One file: rows are gathered to whole row groups."""

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

    def finished(self) -> DataFile:
        self._flush()
        self._writer.close()
        size = self._sink.tell()
        self._sink.close()
        metadata = self._metadata[0]
        return DataFile(self._path, size, metadata.num_rows, self._partition, _statistics(metadata, self._table))

    def abandon(self) -> None:
        self._waiting = []
        self._writer.close()
        self._sink.close()
        self._filesystem.delete_file(self._path)

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=GROUP_ROWS)
        self._waiting, self._rows, self._bytes = [], 0, 0


def _statistics(metadata: Any, table: Table) -> str:
    """Delta's statistics of the table's columns that have them, from the Parquet footer."""
    least: dict[str, Any] = {}
    most: dict[str, Any] = {}
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
                least[name] = min(least.get(name, found.min), found.min)
                most[name] = max(most.get(name, found.max), found.max)
    return json.dumps(
        {
            "numRecords": metadata.num_rows,
            "minValues": {name: _json(value) for name, value in least.items()},
            "maxValues": {name: _json(value) for name, value in most.items()},
            "nullCount": nulls,
        }
    )


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        # The protocol cuts times to milliseconds; readers know.
        return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{value.microsecond // 1000:03d}Z"
    return value
