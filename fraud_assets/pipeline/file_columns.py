"""Dropped CSV and Parquet files: a row becomes a JSON object, with the names of the contract's fields put right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.pipeline.csv_file import csv_file
from fraud_assets.pipeline.file_contents import LABEL_NAMES, Contents, UnusableFile, chunk_rows
from fraud_assets.settings import CONTRACT_FIELDS, Settings

_KEPT_BATCHES = 2
"""A file of so many landing batches' bytes is converted once and kept; a larger one is converted in each pass."""


@dataclass(frozen=True)
class _Source:
    """Column names of a file, and its rows in their order as Arrow tables; times are ISO text by then."""

    columns: Sequence[str]
    chunks: Callable[[], Iterator[pa.Table]]


def _csv_source(path: Path, settings: Settings) -> _Source:
    from fraud_assets.engines.duckdb import connect

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

    columns = pyarrow.parquet.read_schema(path).names

    def chunks() -> Iterator[pa.Table]:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(chunk_rows(settings), use_threads=False):
                # Of text that is not UTF-8 DuckDB would make no body at all.
                batch.validate(full=True)
                yield pa.Table.from_batches([batch])

    return _Source(columns, chunks)


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
    names = _payload_names(source.columns, settings)
    payloads = {settings.payload_field(field): field for field in CONTRACT_FIELDS}
    missing = [shown for shown in payloads if shown not in names.values()]
    label_field = _first(names, [settings.payload_field("is_fraud"), *LABEL_NAMES])
    labelled_at = _first(names, [settings.payload_field("labelled_at"), "labelled_at"])
    labels_alone = bool(
        label_field and labelled_at and settings.payload_field("transaction_id") in names.values() and missing
    )
    if missing and not labels_alone:
        remedy = "FRAUD_FIELD_MAPPING maps other names."
        raise UnusableFile(
            f"It has no column {', '.join(missing)}; its columns are {', '.join(source.columns)[:300]}. {remedy}",
            # Of a CSV file without a header the columns are its first row.
            f"It has no column {', '.join(missing)}. {remedy}",
        )

    def chunks() -> Iterator[tuple[pa.Array, pa.Array]]:
        return _column_chunks(source, names, label_field, settings)

    rows = size = 0
    kept: list[tuple[pa.Array, pa.Array]] = []
    for chunk in chunks():
        rows, size = rows + len(chunk[0]), size + chunk[1].nbytes
        if size <= _KEPT_BATCHES * settings.land_batch_bytes:
            kept.append(chunk)
        else:
            kept.clear()
    if sum(len(offsets) for offsets, _ in kept) == rows:
        return Contents(lambda: iter(kept), rows, rows - 1, label_field, labelled_at, not labels_alone)
    return Contents(chunks, rows, rows - 1, label_field, labelled_at, not labels_alone)


def _first(names: dict[str, str], wanted: Sequence[str]) -> str | None:
    """The name (as the JSON has it) of the first wanted column that is there, whatever its case."""
    by_case = {name.lower(): name for name in reversed(names.values())}
    return next((by_case[name.lower()] for name in wanted if name.lower() in by_case), None)


def _payload_names(columns: Sequence[str], settings: Settings) -> dict[str, str]:
    """Name in the JSON of each column: the payload's for a contract field, else its own."""
    names = {column: column for column in columns}
    for field in CONTRACT_FIELDS:
        payload = settings.payload_field(field)
        if payload in columns:
            continue
        for wanted in (payload, field):
            found = next((column for column in columns if column.lower() == wanted.lower()), None)
            if found is not None:
                names[found] = payload
                break
    return names


def _column_chunks(
    source: _Source, names: dict[str, str], label_field: str | None, settings: Settings
) -> Iterator[tuple[pa.Array, pa.Array]]:
    from fraud_assets.engines.duckdb import connect

    start = 0
    with connect(settings, spill=not settings.pseudonymise) as connection:
        query = ""
        for chunk in source.chunks():
            table = _plain_columns(chunk)
            query = query or _json_query(table.schema, names, label_field)
            connection.register("chunk", table)
            bodies = connection.sql(query).to_arrow_table().column("body").combine_chunks()
            connection.unregister("chunk")
            yield pa.array(range(start, start + len(bodies)), pa.int64()), bodies.cast(pa.binary())
            start += len(bodies)


def _json_query(schema: pa.Schema, names: dict[str, str], label_field: str | None) -> str:
    """SQL that makes one JSON object of each row of `chunk`, in order."""
    fields = []
    for column in schema:
        value = quoted(column.name)
        if pa.types.is_decimal(column.type):
            # Narrow ones would pass through a float, and 7 come out as 7.0.
            value = f"{value}::decimal(38, {column.type.scale})"
        if names[column.name] == label_field and (
            pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)
        ):
            # Files written by pandas have 0.0 and 1.0 where labels are missing elsewhere.
            value = f"case when {value} in (0, 1) then to_json({value}::int) else to_json({value}) end"
        fields.append(f"{quoted(names[column.name])} := {value}")
    return f"select to_json(struct_pack({', '.join(fields)}))::varchar as body from chunk"


def quoted(name: str) -> str:
    """A name as SQL's identifier."""
    return '"' + name.replace('"', '""') + '"'


def _plain_columns(table: pa.Table) -> pa.Table:
    """Timestamps as ISO 8601 text, in UTC with a Z where they have a zone, cut to microseconds.

    And what DuckDB does not take in a form that it does.
    """
    for index, column in enumerate(table.schema):
        values = table.column(index)
        if pa.types.is_timestamp(column.type):
            zone = "UTC" if column.type.tz else None
            text = values.cast(pa.timestamp("us", zone), safe=False).cast(pa.string())
            # Not in the words that Arrow has for a time beyond the calendar.
            values = pc.replace_substring_regex(text, r"^(-?\d+-\d+-\d+) ", r"\1T")
        elif isinstance(column.type, pa.JsonType):
            values = values.cast(column.type.storage_type)
        elif pa.types.is_decimal256(column.type):
            values = values.cast(pa.string())
        elif pa.types.is_float16(column.type):
            values = values.cast(pa.float32())
        table = table.set_column(index, column.name, values)
    return table
