"""Reads dropped CSV and Parquet files: each row becomes a JSON object whose keys are the contract's field names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from fraud_assets.ingest.files.contents import Contents, UnusableFileError, count_chunk_rows
from fraud_assets.ingest.files.csv_file import read_csv_description
from fraud_assets.ingest.files.field_names import (
    find_first,
    find_label_names,
    find_labelled_at_names,
    map_payload_names,
)
from fraud_assets.ingest.files.parquet_file import get_column, list_paths, read_parquet_parts
from fraud_assets.ingest.files.plain_columns import holds_json, to_plain_columns
from fraud_assets.lake.duckdb_session import connect, quote_name
from fraud_assets.settings import CONTRACT_FIELDS, LABEL_FIELDS, Settings

_CACHED_BATCHES = 2
"""A file of at most this many landing batches, in bytes, is converted once and cached. A larger one is converted in
each pass."""


@dataclass(frozen=True)
class _Source:
    """An open file.

    Attributes:
        columns: column names.
        chunks: reads the rows in order as Arrow tables.
        paths: dotted names of the fields within columns.
    """

    columns: Sequence[str]
    chunks: Callable[[], Iterator[pa.Table]]
    paths: frozenset[str] = frozenset()


def _open_csv(path: Path, settings: Settings) -> _Source:
    # All columns are text, so that no integer that looks like a card number passes through a float. Empty means null.
    csv = read_csv_description(path)

    def chunks() -> Iterator[pa.Table]:
        with connect(settings, spill=not settings.pseudonymise) as connection:
            rows = connection.sql(f"select * from {csv.scan}", params=csv.params)
            for batch in rows.to_arrow_reader(count_chunk_rows(settings)):
                yield pa.Table.from_batches([batch])

    return _Source(csv.columns, chunks)


def _open_parquet(path: Path, settings: Settings) -> _Source:
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(path)
    return _Source(
        schema.names,
        lambda: read_parquet_parts(path, count_chunk_rows(settings), settings.land_batch_bytes),
        frozenset(list_paths(schema)),
    )


def examine_csv(path: Path, settings: Settings) -> Contents:
    """Reads a whole CSV file. Raises the same errors as `examine`."""
    return _examine_columns(_open_csv(path, settings), settings)


def examine_parquet(path: Path, settings: Settings) -> Contents:
    """Reads a whole Parquet file. Raises the same errors as `examine`."""
    return _examine_columns(_open_parquet(path, settings), settings)


def _examine_columns(source: _Source, settings: Settings) -> Contents:
    _check_column_names(source)
    names = map_payload_names(source.columns, settings, source.paths)
    has_labels, labels_only = _find_content(source, names, settings)
    mapped = dict.fromkeys(settings.contract.payload_field(field) for field in (*CONTRACT_FIELDS, *LABEL_FIELDS))
    nested = [path for path in mapped if path in source.paths and path not in names.values()]

    def chunks() -> Iterator[tuple[pa.Array, pa.Array]]:
        return _convert_chunks(source, names, nested, settings)

    rows = size = 0
    cached: list[tuple[pa.Array, pa.Array]] = []
    for chunk in chunks():
        rows, size = rows + len(chunk[0]), size + chunk[1].nbytes
        if size <= _CACHED_BATCHES * settings.land_batch_bytes:
            cached.append(chunk)
        else:
            cached.clear()
    if sum(len(offsets) for offsets, _ in cached) == rows:
        return Contents(lambda: iter(cached), rows, rows - 1, has_labels, not labels_only)
    return Contents(chunks, rows, rows - 1, has_labels, not labels_only)


def _check_column_names(source: _Source) -> None:
    if len({column.lower() for column in source.columns}) < len(source.columns):
        raise UnusableFileError("Two of its columns have the same name, ignoring case. Rename one of them.")
    if any(not column or "\0" in column for column in source.columns):
        raise UnusableFileError(
            "One of its columns has an empty name or a NUL character in its name. Rename that column."
        )


def _find_content(source: _Source, names: dict[str, str], settings: Settings) -> tuple[bool, bool]:
    """Returns whether the file has labels, and whether it has only labels.

    Raises:
        UnusableFileError: columns are missing.
    """
    payloads = [settings.contract.payload_field(field) for field in CONTRACT_FIELDS]
    present = {*names.values(), *source.paths}
    missing = [payload for payload in payloads if payload not in present]
    has_labels = find_first(present, find_label_names(settings)) is not None
    has_label_times = find_first(present, find_labelled_at_names(settings)) is not None
    has_ids = settings.contract.payload_field("transaction_id") in present
    labels_only = bool(missing) and has_labels and has_label_times and has_ids
    if missing and not labels_only:
        fix = "Add the column, or map another name to the field with FRAUD_FIELD_MAPPING."
        raise UnusableFileError(
            f"It has no column {', '.join(missing)}; its columns are {', '.join(source.columns)[:300]}. {fix}",
            # The columns of a CSV file without a header are its first row, so they may hold customer data.
            f"It has no column {', '.join(missing)}. {fix}",
        )
    return has_labels, labels_only


def _convert_chunks(
    source: _Source, names: dict[str, str], nested: Sequence[str], settings: Settings
) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Yields row numbers and bodies. Each path in `nested` also gets a key of its own, which comes first.

    The times and bytes of these fields are then written like those of other columns.
    """
    start = 0
    with connect(settings, spill=not settings.pseudonymise) as connection:
        for chunk in source.chunks():
            table = chunk
            for path in nested:
                table = table.append_column(path, get_column(chunk, path))
            table = to_plain_columns(table)
            # The query depends on the chunk: a column of bytes can hold text in one part and JSON in another.
            query = _json_query(table.schema, {**names, **{path: path for path in nested}})
            connection.register("chunk", table)
            bodies = connection.sql(query).to_arrow_table().column("body").combine_chunks()
            connection.unregister("chunk")
            yield pa.array(range(start, start + len(bodies)), pa.int64()), bodies.cast(pa.binary())
            start += len(bodies)


def _json_query(schema: pa.Schema, names: dict[str, str]) -> str:
    """Returns SQL that makes one JSON object of each row of `chunk`, in order."""
    fields = []
    for column in schema:
        value = quote_name(column.name)
        if pa.types.is_decimal(column.type):
            # DuckDB writes a narrow decimal through a float, so that 7 becomes 7.0.
            value = f"{value}::decimal(38, {column.type.scale})"
        elif holds_json(column):
            value = f"{value}::json"
        fields.append(f"{quote_name(names[column.name])} := {value}")
    return f"select to_json(struct_pack({', '.join(fields)}))::varchar as body from chunk"
