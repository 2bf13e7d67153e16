"""How a dropped Parquet file is read: by row groups, in parts of a bounded size, with times that no unit overflows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.field_paths import resolve

if TYPE_CHECKING:
    import pyarrow.parquet

LARGEST_ROW = 100_000_000
"""Bytes of a row, or of a line of JSON, that is read. A file with a larger one must not fill the memory."""

_LARGEST_UNPACKED = 1_000_000_000
_MOST_GROWTH = 1_000
"""A column of a row group that unpacks to more than so many bytes, and grows more than so many times, is refused."""


@contextmanager
def open_parquet(path: Path, dictionaries: tuple[str, ...] = ()) -> Iterator[pyarrow.parquet.ParquetFile]:
    """The file for reading; one page is in memory at a time.

    Args:
        path: the file.
        dictionaries: names of columns whose values stay encoded by a dictionary.

    Raises:
        pa.ArrowException, OSError: it is no Parquet file, or it cannot be read.
    """
    import pyarrow.parquet

    # INT96 counts nanoseconds, of which 64 bits end in the year 2262.
    with pyarrow.parquet.ParquetFile(
        path,
        coerce_int96_timestamp_unit="us",
        read_dictionary=list(dictionaries),
        pre_buffer=False,
        buffer_size=1 << 20,
    ) as file:
        yield file


def parquet_parts(path: Path, max_rows: int, max_bytes: int) -> Iterator[pa.Table]:
    """The rows in their order, in parts of at most so many rows and about so many bytes.

    Raises:
        ValueError: a row or a column is too large to be read.
        pa.ArrowException, OSError: it is no Parquet file, or it cannot be read.
    """
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    with open_parquet(path, _text_columns(metadata)) as file:
        for group in range(metadata.num_row_groups):
            rows = _rows_at_a_time(metadata.row_group(group), group, max_rows, max_bytes)
            for batch in file.iter_batches(rows, row_groups=[group], use_threads=False):
                # Of text that is not UTF-8 DuckDB would make no body at all.
                batch.validate(full=True)
                for part in _parts(batch, max_bytes):
                    yield _decoded(pa.Table.from_batches([part]))


def paths_within(fields: Iterable[pa.Field]) -> list[str]:
    """Dotted names of the fields within columns of structures."""
    found = []
    for field in fields:
        if pa.types.is_struct(field.type):
            inner = list(field.type)
            found += [f"{field.name}.{path}" for path in (*(part.name for part in inner), *paths_within(inner))]
    return found


def column_at(batch: pa.RecordBatch | pa.Table, path: str) -> Any:
    """The column of a name, or the field within a column that a dotted name of `paths_within` names.

    Raises:
        KeyError: there is none.
    """
    found = resolve(batch.schema.names, path)
    if found is None:
        raise KeyError(path)
    column, below = batch.column(found[0]), found[1]
    while below:
        found = resolve([field.name for field in column.type], below)
        if found is None:
            raise KeyError(path)
        column, below = pc.struct_field(column, found[0]), found[1]
    return column


def _text_columns(metadata: Any) -> tuple[str, ...]:
    """Columns of text or bytes. A few bytes of them may repeat a long value of a dictionary many times."""
    columns = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    return tuple(
        column.path
        for column in columns
        if column.physical_type == "BYTE_ARRAY"
        and column.logical_type.type in ("STRING", "NONE", "ENUM")
        and column.max_repetition_level == 0
        and column.path == column.name
    )


def _rows_at_a_time(group: Any, number: int, max_rows: int, max_bytes: int) -> int:
    for index in range(group.num_columns):
        column = group.column(index)
        packed, unpacked = column.total_compressed_size, column.total_uncompressed_size
        if unpacked > max(_LARGEST_UNPACKED, packed * _MOST_GROWTH):
            raise ValueError(
                f"column {column.path_in_schema} of row group {number + 1:,} unpacks from {packed:,} to {unpacked:,} "
                "bytes, which is too much to be read; write it with smaller row groups"
            )
    width = group.total_byte_size / max(1, group.num_rows)
    return max(1, min(max_rows, int(max_bytes / max(1.0, width))))


def _parts(batch: pa.RecordBatch, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """The batch in slices whose texts, decoded, have about so many bytes."""
    ends = np.cumsum(_text_sizes(batch))
    start = 0
    while start < batch.num_rows:
        before = int(ends[start - 1]) if start else 0
        if ends[start] - before > LARGEST_ROW:
            raise ValueError(f"one of its rows is larger than {LARGEST_ROW:,} bytes")
        stop = max(start + 1, int(np.searchsorted(ends, before + max_bytes, side="right")))
        yield batch.slice(start, stop - start)
        start = stop


def _text_sizes(batch: pa.RecordBatch) -> np.ndarray:
    """Bytes of the texts of each row."""
    sizes = np.zeros(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and _is_text(column.type.value_type):
            lengths = pc.fill_null(pc.binary_length(column.dictionary).cast(pa.int64()), 0).to_numpy()
            if len(lengths):
                places = pc.fill_null(column.indices.cast(pa.int64()), 0).to_numpy()
                sizes += np.where(column.is_valid().to_numpy(zero_copy_only=False), lengths[places], 0)
        elif _is_text(column.type):
            sizes += pc.fill_null(pc.binary_length(column).cast(pa.int64()), 0).to_numpy()
    return sizes


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    )


def _decoded(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            values = table.column(index).cast(field.type.value_type)
            table = table.set_column(index, field.with_type(field.type.value_type), values)
    return table
