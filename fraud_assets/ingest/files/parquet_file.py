"""Reads a dropped Parquet file by row groups, in parts of limited size, with times that do not overflow."""

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
"""Size of the largest row or line of JSON that is read, in bytes. A larger one could fill the memory."""

_LARGEST_UNPACKED = 1_000_000_000
_MOST_GROWTH = 1_000
"""A column of a row group is refused if it unpacks to more than `_LARGEST_UNPACKED` bytes and to more than
`_MOST_GROWTH` times its packed size."""


@contextmanager
def open_parquet(path: Path, dictionaries: tuple[str, ...] = ()) -> Iterator[pyarrow.parquet.ParquetFile]:
    """Opens a file for reading, with one page in memory at a time.

    Args:
        path: the file.
        dictionaries: names of columns whose values stay dictionary-encoded.

    Raises:
        pa.ArrowException, OSError: the file is not a Parquet file, or it cannot be read.
    """
    import pyarrow.parquet

    # INT96 counts nanoseconds, which in 64 bits reach only to the year 2262.
    with pyarrow.parquet.ParquetFile(
        path,
        coerce_int96_timestamp_unit="us",
        read_dictionary=list(dictionaries),
        pre_buffer=False,
        buffer_size=1 << 20,
    ) as file:
        yield file


def read_parquet_parts(path: Path, max_rows: int, max_bytes: int) -> Iterator[pa.Table]:
    """Yields the rows in order, in parts of at most `max_rows` rows and about `max_bytes` bytes.

    Raises:
        ValueError: a row or a column is too large to be read.
        pa.ArrowException, OSError: the file is not a Parquet file, or it cannot be read.
    """
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    with open_parquet(path, _text_columns(metadata)) as file:
        for group in range(metadata.num_row_groups):
            rows = _rows_at_a_time(metadata.row_group(group), group, max_rows, max_bytes)
            for batch in file.iter_batches(rows, row_groups=[group], use_threads=False):
                # DuckDB cannot make a body from text that is not UTF-8.
                batch.validate(full=True)
                for part in _split_batch(batch, max_bytes):
                    yield _decode_dictionaries(pa.Table.from_batches([part]))


def list_paths(fields: Iterable[pa.Field]) -> list[str]:
    """Returns the dotted names of the fields within struct columns."""
    found = []
    for field in fields:
        if pa.types.is_struct(field.type):
            inner = list(field.type)
            found += [f"{field.name}.{path}" for path in (*(part.name for part in inner), *list_paths(inner))]
    return found


def get_column(batch: pa.RecordBatch | pa.Table, path: str) -> Any:
    """Returns the column with a name, or the field within a column with a dotted name as in `list_paths`.

    Raises:
        KeyError: no column or field has the name.
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
    """Returns the columns of text or bytes, whose data can repeat a long dictionary value many times in a few bytes."""
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
                "bytes, which is too much to read; write the file with smaller row groups"
            )
    width = group.total_byte_size / max(1, group.num_rows)
    return max(1, min(max_rows, int(max_bytes / max(1.0, width))))


def _split_batch(batch: pa.RecordBatch, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """Yields slices of the batch whose texts have about `max_bytes` bytes after decoding."""
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
    """Returns the number of bytes of the texts of each row, shape (rows,), int64."""
    sizes = np.zeros(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and _is_text(column.type.value_type):
            lengths = pc.fill_null(pc.binary_length(column.dictionary).cast(pa.int64()), 0).to_numpy()
            if len(lengths):
                indices = pc.fill_null(column.indices.cast(pa.int64()), 0).to_numpy()
                sizes += np.where(column.is_valid().to_numpy(zero_copy_only=False), lengths[indices], 0)
        elif _is_text(column.type):
            sizes += pc.fill_null(pc.binary_length(column).cast(pa.int64()), 0).to_numpy()
    return sizes


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    )


def _decode_dictionaries(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            values = table.column(index).cast(field.type.value_type)
            table = table.set_column(index, field.with_type(field.type.value_type), values)
    return table
