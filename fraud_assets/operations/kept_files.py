"""Finds and removes a customer's rows in dropped files that are kept after they landed or failed."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.subjects import compile_id_pattern, find_ids
from fraud_assets.errors import LakeError
from fraud_assets.ingest.files.csv_file import CsvFile, read_csv_description
from fraud_assets.ingest.files.parquet_file import get_column, list_paths, open_parquet
from fraud_assets.ingest.files.plain_columns import is_bytes, to_text_column
from fraud_assets.lake.duckdb_session import connect
from fraud_assets.printable import escape_unprintable
from fraud_assets.settings import Settings

_BATCH_ROWS = 50_000


@dataclass(frozen=True)
class FileRows:
    """The customer's rows in a kept file.

    Attributes:
        path: path of the file.
        rows: number of the customer's rows.
        unreadable: number of lines that cannot be parsed but mention the id.
        by_lines: whether the file was searched line by line instead of by column.
        closed: whether the file cannot be searched, such as a damaged Parquet file.
    """

    path: Path
    rows: int = 0
    unreadable: int = 0
    by_lines: bool = False
    closed: bool = False


def find_customer_files(settings: Settings, folder: Path, ids: Collection[str]) -> list[FileRows]:
    """Returns the files of a folder that hold the customer, mention the id or cannot be searched."""
    found = [_search(path, settings, ids) for path in _files(folder)]
    return [file for file in found if file.rows or file.unreadable or file.closed]


def remove_from_file(file: FileRows, settings: Settings, ids: Collection[str], *, unreadable: bool) -> FileRows:
    """Rewrites a file without the customer's rows and replaces the old file in one step.

    Args:
        file: a result of `find_customer_files`.
        settings: define the contract, and the DuckDB session that reads CSV.
        ids: the forms in which the customer's id is stored.
        unreadable: also remove lines that cannot be parsed but mention the id.

    Returns:
        The number of removed rows and lines.

    Raises:
        LakeError: the file cannot be rewritten. It is unchanged.
    """
    part = file.path.with_name(f".{file.path.name}.erase.part")
    try:
        removed = _write_without(file, part, settings, ids, unreadable=unreadable)
        shutil.copystat(file.path, part)
        part.replace(file.path)
    except OSError as error:
        raise LakeError(
            f"{escape_unprintable(file.path)} cannot be rewritten ({error.strerror or error}). Check its folder and "
            "the free space there, then run the command again."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return removed


def _files(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError):
        return sorted(path for path in folder.iterdir() if _may_hold_rows(path) and not path.name.startswith("."))
    return []


def _may_hold_rows(path: Path) -> bool:
    """Whether the path is a file, or may be one in a folder that cannot be opened. A broken link holds no rows."""
    try:
        return path.is_file()
    except OSError:
        return True


def _search(path: Path, settings: Settings, ids: Collection[str]) -> FileRows:
    try:
        return _count_rows(path, settings, ids)
    except FileNotFoundError:
        return FileRows(path)
    except OSError:
        return FileRows(path, closed=True)


def _count_rows(path: Path, settings: Settings, ids: Collection[str]) -> FileRows:
    suffix = path.suffix.lower()
    with suppress(*_format_errors()):
        if suffix == ".parquet":
            return FileRows(path, sum(_is_customers(batch, settings, ids).true_count for batch in _batches(path)))
        if suffix == ".csv":
            return FileRows(path, _count_csv_rows(path, settings, ids))
    if suffix == ".parquet":
        return FileRows(path, closed=True)
    rows = unreadable = 0
    for _, kind in _classify_lines(path, settings, ids):
        rows += kind == "customer"
        unreadable += kind == "mention"
    return FileRows(path, rows, unreadable, by_lines=True)


def _write_without(
    file: FileRows, part: Path, settings: Settings, ids: Collection[str], *, unreadable: bool
) -> FileRows:
    path = file.path
    if not file.by_lines and path.suffix.lower() == ".parquet":
        return FileRows(path, _write_parquet_without(path, part, settings, ids))
    if not file.by_lines:
        csv = read_csv_description(path)
        others = f"select * from {csv.scan} where not ({_csv_condition(csv, settings)})"
        with connect(settings) as connection:
            values = {**csv.params, "part": str(part), "ids": list(ids)}
            # With all values in quotes, a text such as NULL stays text and a missing value stays empty.
            connection.execute(f"copy ({others}) to $part (header, format csv, force_quote *)", values)
        return file
    rows = mentioned = 0
    with part.open("wb") as output:
        for line, kind in _classify_lines(path, settings, ids):
            if kind == "customer":
                rows += 1
            elif kind == "mention" and unreadable:
                mentioned += 1
            else:
                output.write(line)
    return FileRows(path, rows, mentioned, by_lines=True)


def _format_errors() -> tuple[type[BaseException], ...]:
    """Returns the exceptions that readers raise for a file that does not have the format of its suffix."""
    import duckdb

    return (duckdb.Error, pa.ArrowException, ValueError, LookupError, LakeError)


# ---------------------------------------------------------------------------------------------------------
# Lines: JSON lines, and any other file that can only be searched line by line.


def _classify_lines(path: Path, settings: Settings, ids: Collection[str]) -> Iterator[tuple[bytes, str]]:
    """Yields each line with "customer" if it is the customer's, "mention" if it only mentions the id, else ""."""
    names = {settings.contract.payload_field("customer_id"), "customer_id"}
    mention = compile_id_pattern(ids)
    # The id may be written with escaped characters, so a line with a backslash is parsed too.
    needles = [name.encode() for name in ids] + [b"\\"]
    with path.open("rb") as file:
        for line in file:
            kind = ""
            if any(needle in line for needle in needles):
                found = find_ids(line, names)
                if found is not None:
                    kind = "customer" if found & set(ids) else ""
                elif mention.search(line):
                    kind = "mention"
            yield line, kind


# ---------------------------------------------------------------------------------------------------------
# CSV and Parquet: the customer's column, by its name.


def _customer_column(columns: Collection[str], settings: Settings) -> str:
    """Returns the name of the column that lands as customer_id. Raises `LookupError` if there is none."""
    for wanted in (settings.contract.payload_field("customer_id"), "customer_id"):
        for match in (str.__eq__, lambda column, name: column.lower() == name.lower()):
            for column in columns:
                if match(column, wanted):
                    return column
    raise LookupError("no column customer_id")


def _csv_condition(csv: CsvFile, settings: Settings) -> str:
    quoted = _customer_column(csv.columns, settings).replace('"', '""')
    return f"""coalesce(list_contains($ids, "{quoted}"), false)"""


def _count_csv_rows(path: Path, settings: Settings, ids: Collection[str]) -> int:
    csv = read_csv_description(path)
    with connect(settings) as connection:
        query = f"select count(*) from {csv.scan} where {_csv_condition(csv, settings)}"
        return connection.execute(query, {**csv.params, "ids": list(ids)}).fetchall()[0][0]


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with open_parquet(path) as file:
        yield from file.iter_batches(_BATCH_ROWS, use_threads=False)


def _customer_values(batch: pa.RecordBatch, settings: Settings) -> pa.Array:
    """Returns the values that land as customer_id, even if they are nested. Raises `LookupError` if there are none."""
    path = settings.contract.payload_field("customer_id")
    if path in list_paths(batch.schema):
        return get_column(batch, path)
    return batch.column(_customer_column(batch.schema.names, settings))


def _is_customers(batch: pa.RecordBatch, settings: Settings, ids: Collection[str]) -> pa.BooleanArray:
    """Returns for each row whether it is the customer's (bool, no nulls)."""
    column = _customer_values(batch, settings)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        # pandas stores integers as floats if some values are missing.
        column = pc.if_else(pc.equal(column, pc.floor(column)), column, None).cast(pa.int64(), safe=False)
    texts = to_text_column(column) if is_bytes(column.type) else column.cast(pa.string())
    return pc.fill_null(pc.is_in(texts, pa.array(sorted(ids), pa.string())), False)


def _write_parquet_without(path: Path, part: Path, settings: Settings, ids: Collection[str]) -> int:
    """Writes the file without the customer's rows to `part`; returns the number of the customer's rows."""
    import pyarrow.parquet

    removed = 0
    with open_parquet(path) as file:
        schema = _without_views(file.schema_arrow)
        with pyarrow.parquet.ParquetWriter(part, schema) as writer:
            for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                matching = _is_customers(batch, settings, ids)
                removed += matching.true_count
                writer.write_batch(batch.cast(schema).filter(pc.invert(matching)))
    return removed


def _without_views(schema: pa.Schema) -> pa.Schema:
    """Replaces view types, which Arrow cannot filter, by the plain types that have the same Parquet form."""
    plain = {pa.binary_view(): pa.binary(), pa.string_view(): pa.string()}
    fields = [field.with_type(plain.get(field.type, field.type)) for field in schema]
    return pa.schema(fields, schema.metadata)
