"""Dropped CSV and Parquet files: a row becomes a JSON object, with the names of the contract's fields put right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from fraud_assets.ingest.files.contents import Contents, UnusableFile, chunk_rows
from fraud_assets.ingest.files.csv_file import csv_file
from fraud_assets.ingest.files.field_names import first_of, label_names, labelled_at_names, payload_names
from fraud_assets.ingest.files.parquet_file import column_at, parquet_parts, paths_within
from fraud_assets.ingest.files.plain_columns import holds_json, plain_columns
from fraud_assets.lake.duckdb_session import connect, quoted_name
from fraud_assets.settings import CONTRACT_FIELDS, LABEL_FIELDS, Settings

_KEPT_BATCHES = 2
"""A file of so many landing batches' bytes is converted once and kept; a larger one is converted in each pass."""


@dataclass(frozen=True)
class _Source:
    """Column names of a file, its rows in their order as Arrow tables, and `paths` of fields within its columns."""

    columns: Sequence[str]
    chunks: Callable[[], Iterator[pa.Table]]
    paths: frozenset[str] = frozenset()


def _csv_source(path: Path, settings: Settings) -> _Source:
    # Everything is text, so that no card-number-like integer passes through a float; empty means null.
    csv = csv_file(path)

    def chunks() -> Iterator[pa.Table]:
        with connect(settings, spill=not settings.pseudonymise) as connection:
            rows = connection.sql(f"select * from {csv.scan}", params=csv.params)
            for batch in rows.to_arrow_reader(chunk_rows(settings)):
                yield pa.Table.from_batches([batch])

    return _Source(csv.columns, chunks)


def _parquet_source(path: Path, settings: Settings) -> _Source:
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(path)
    return _Source(
        schema.names,
        lambda: parquet_parts(path, chunk_rows(settings), settings.land_batch_bytes),
        frozenset(paths_within(schema)),
    )


def examine_csv(path: Path, settings: Settings) -> Contents:
    """Reads a CSV file; raises as `examine`."""
    return _examine_columns(path, settings, _csv_source)


def examine_parquet(path: Path, settings: Settings) -> Contents:
    """Reads a Parquet file; raises as `examine`."""
    return _examine_columns(path, settings, _parquet_source)


def _examine_columns(path: Path, settings: Settings, open_source: Callable[[Path, Settings], _Source]) -> Contents:
    source = open_source(path, settings)
    if len({column.lower() for column in source.columns}) < len(source.columns):
        raise UnusableFile("Two of its columns have the same name, but for capital letters.")
    if any(not column or "\0" in column for column in source.columns):
        raise UnusableFile("One of its columns has an empty name, or one with a NUL character.")
    names = payload_names(source.columns, settings, source.paths)
    payloads = [settings.contract.payload_field(field) for field in CONTRACT_FIELDS]
    present = {*names.values(), *source.paths}
    missing = [payload for payload in payloads if payload not in present]
    has_labels = first_of(present, label_names(settings)) is not None
    timed = first_of(present, labelled_at_names(settings)) is not None
    labels_alone = (
        bool(missing) and has_labels and timed and settings.contract.payload_field("transaction_id") in present
    )
    if missing and not labels_alone:
        remedy = "FRAUD_FIELD_MAPPING maps other names."
        raise UnusableFile(
            f"It has no column {', '.join(missing)}; its columns are {', '.join(source.columns)[:300]}. {remedy}",
            # Of a CSV file without a header the columns are its first row.
            f"It has no column {', '.join(missing)}. {remedy}",
        )

    mapped = dict.fromkeys(settings.contract.payload_field(field) for field in (*CONTRACT_FIELDS, *LABEL_FIELDS))
    nested = [path for path in mapped if path in source.paths and path not in names.values()]

    def chunks() -> Iterator[tuple[pa.Array, pa.Array]]:
        return _column_chunks(source, names, nested, settings)

    rows = size = 0
    kept: list[tuple[pa.Array, pa.Array]] = []
    for chunk in chunks():
        rows, size = rows + len(chunk[0]), size + chunk[1].nbytes
        if size <= _KEPT_BATCHES * settings.land_batch_bytes:
            kept.append(chunk)
        else:
            kept.clear()
    if sum(len(offsets) for offsets, _ in kept) == rows:
        return Contents(lambda: iter(kept), rows, rows - 1, has_labels, not labels_alone)
    return Contents(chunks, rows, rows - 1, has_labels, not labels_alone)


def _column_chunks(
    source: _Source, names: dict[str, str], nested: Sequence[str], settings: Settings
) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Row numbers and bodies. A field of the contract within a column also gets a key of its own, which comes first.

    So its times and bytes are written as those of other columns.
    """
    start = 0
    with connect(settings, spill=not settings.pseudonymise) as connection:
        for chunk in source.chunks():
            table = chunk
            for path in nested:
                table = table.append_column(path, column_at(chunk, path))
            table = plain_columns(table)
            # A column of bytes holds text in one part and JSON in another.
            query = _json_query(table.schema, {**names, **{path: path for path in nested}})
            connection.register("chunk", table)
            bodies = connection.sql(query).to_arrow_table().column("body").combine_chunks()
            connection.unregister("chunk")
            yield pa.array(range(start, start + len(bodies)), pa.int64()), bodies.cast(pa.binary())
            start += len(bodies)


def _json_query(schema: pa.Schema, names: dict[str, str]) -> str:
    """SQL that makes one JSON object of each row of `chunk`, in order."""
    fields = []
    for column in schema:
        value = quoted_name(column.name)
        if pa.types.is_decimal(column.type):
            # Narrow ones would pass through a float, and 7 come out as 7.0.
            value = f"{value}::decimal(38, {column.type.scale})"
        elif holds_json(column):
            value = f"{value}::json"
        fields.append(f"{quoted_name(names[column.name])} := {value}")
    return f"select to_json(struct_pack({', '.join(fields)}))::varchar as body from chunk"
