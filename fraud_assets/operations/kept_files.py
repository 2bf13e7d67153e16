"""Dropped files that are kept after their landing: which hold a customer's rows, and those files without them."""

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
from fraud_assets.ingest.files.csv_file import CsvFile, csv_file
from fraud_assets.ingest.files.parquet_file import column_at, open_parquet, paths_within
from fraud_assets.ingest.files.plain_columns import is_bytes, text_column
from fraud_assets.lake.duckdb_session import connect
from fraud_assets.printable import printable
from fraud_assets.settings import Settings

_BATCH_ROWS = 50_000


@dataclass(frozen=True)
class FileRows:
    """A kept file: `rows` of the customer, and lines that cannot be read but mention the id.

    `by_lines` says that it was looked at line by line, `closed` that nobody can look into it, as into a damaged
    Parquet file.
    """

    path: Path
    rows: int = 0
    unreadable: int = 0
    by_lines: bool = False
    closed: bool = False


def rows_in_files(settings: Settings, folder: Path, ids: Collection[str]) -> list[FileRows]:
    """The files of a folder that hold the customer, mention the id, or cannot be looked into."""
    found = [_look(path, settings, ids) for path in _files(folder)]
    return [file for file in found if file.rows or file.unreadable or file.closed]


def strip(file: FileRows, settings: Settings, ids: Collection[str], *, unreadable: bool) -> FileRows:
    """Writes the file anew without the customer's rows, with `table_error` also without lines that mention the id.

    The new one takes the old one's place in one step. Gives what was removed.

    Raises:
        LakeError: the folder cannot be written; the file is as it was.
    """
    part = file.path.with_name(f".{file.path.name}.erase.part")
    try:
        removed = _without(file, part, settings, ids, unreadable=unreadable)
        shutil.copystat(file.path, part)
        part.replace(file.path)
    except OSError as error:
        raise LakeError(
            f"{printable(file.path)} cannot be written anew ({error.strerror or error}): check its folder and the free "
            "space there, then run the command again."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return removed


def _files(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError):
        return sorted(path for path in folder.iterdir() if _may_hold_rows(path) and not path.name.startswith("."))
    return []


def _may_hold_rows(path: Path) -> bool:
    """Whether it is a file; one behind a closed folder may be one. A link that leads nowhere holds nothing."""
    try:
        return path.is_file()
    except OSError:
        return True


def _look(path: Path, settings: Settings, ids: Collection[str]) -> FileRows:
    try:
        return _looked_into(path, settings, ids)
    except FileNotFoundError:
        return FileRows(path)
    except OSError:
        return FileRows(path, closed=True)


def _looked_into(path: Path, settings: Settings, ids: Collection[str]) -> FileRows:
    suffix = path.suffix.lower()
    with suppress(*_unusable()):
        if suffix == ".parquet":
            return FileRows(path, sum(_is_customers(batch, settings, ids).true_count for batch in _batches(path)))
        if suffix == ".csv":
            return FileRows(path, _csv_rows(path, settings, ids))
    if suffix == ".parquet":
        return FileRows(path, closed=True)
    rows = unreadable = 0
    for _, kind in _lines(path, settings, ids):
        rows += kind == "customer"
        unreadable += kind == "mention"
    return FileRows(path, rows, unreadable, by_lines=True)


def _without(file: FileRows, part: Path, settings: Settings, ids: Collection[str], *, unreadable: bool) -> FileRows:
    path = file.path
    if not file.by_lines and path.suffix.lower() == ".parquet":
        return FileRows(path, _parquet_without(path, part, settings, ids))
    if not file.by_lines:
        csv = csv_file(path)
        others = f"select * from {csv.scan} where not ({_csv_match(csv, settings)})"
        with connect(settings) as connection:
            values = {**csv.params, "part": str(part), "ids": list(ids)}
            # In quotes NULL and the like stay text, and a missing value stays empty.
            connection.execute(f"copy ({others}) to $part (header, format csv, force_quote *)", values)
        return file
    rows = mentioned = 0
    with part.open("wb") as output:
        for line, kind in _lines(path, settings, ids):
            if kind == "customer":
                rows += 1
            elif kind == "mention" and unreadable:
                mentioned += 1
            else:
                output.write(line)
    return FileRows(path, rows, mentioned, by_lines=True)


def _unusable() -> tuple[type[BaseException], ...]:
    """What readers raise for a file that is not what its suffix says."""
    import duckdb

    return (duckdb.Error, pa.ArrowException, ValueError, LookupError, LakeError)


# ---------------------------------------------------------------------------------------------------------
# Lines: JSON lines, and whatever else can only be looked at line by line.


def _lines(path: Path, settings: Settings, ids: Collection[str]) -> Iterator[tuple[bytes, str]]:
    names = {settings.contract.payload_field("customer_id"), "customer_id"}
    mention = compile_id_pattern(ids)
    # An id may be written with escapes.
    quick = [name.encode() for name in ids] + [b"\\"]
    with path.open("rb") as file:
        for line in file:
            kind = ""
            if any(part in line for part in quick):
                found = find_ids(line, names)
                if found is not None:
                    kind = "customer" if found & set(ids) else ""
                elif mention.search(line):
                    kind = "mention"
            yield line, kind


# ---------------------------------------------------------------------------------------------------------
# CSV and Parquet: the customer's column, by its name.


def _customer_column(columns: Collection[str], settings: Settings) -> str:
    """The column that lands as customer_id. Raises `LookupError` where there is none."""
    for wanted in (settings.contract.payload_field("customer_id"), "customer_id"):
        for match in (str.__eq__, lambda column, name: column.lower() == name.lower()):
            for column in columns:
                if match(column, wanted):
                    return column
    raise LookupError("no column customer_id")


def _csv_match(csv: CsvFile, settings: Settings) -> str:
    quoted = _customer_column(csv.columns, settings).replace('"', '""')
    return f"""coalesce(list_contains($ids, "{quoted}"), false)"""


def _csv_rows(path: Path, settings: Settings, ids: Collection[str]) -> int:
    csv = csv_file(path)
    with connect(settings) as connection:
        query = f"select count(*) from {csv.scan} where {_csv_match(csv, settings)}"
        return connection.execute(query, {**csv.params, "ids": list(ids)}).fetchall()[0][0]


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with open_parquet(path) as file:
        yield from file.iter_batches(_BATCH_ROWS, use_threads=False)


def _customers(batch: pa.RecordBatch, settings: Settings) -> pa.Array:
    """The column that lands as customer_id, also where it is within others. Raises `LookupError` without one."""
    path = settings.contract.payload_field("customer_id")
    if path in paths_within(batch.schema):
        return column_at(batch, path)
    return batch.column(_customer_column(batch.schema.names, settings))


def _is_customers(batch: pa.RecordBatch, settings: Settings, ids: Collection[str]) -> pa.BooleanArray:
    column = _customers(batch, settings)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        # As pandas writes integers beside missing values.
        column = pc.if_else(pc.equal(column, pc.floor(column)), column, None).cast(pa.int64(), safe=False)
    texts = text_column(column) if is_bytes(column.type) else column.cast(pa.string())
    return pc.fill_null(pc.is_in(texts, pa.array(sorted(ids), pa.string())), False)


def _parquet_without(path: Path, part: Path, settings: Settings, ids: Collection[str]) -> int:
    import pyarrow.parquet

    removed = 0
    with open_parquet(path) as file:
        schema = _filterable(file.schema_arrow)
        with pyarrow.parquet.ParquetWriter(part, schema) as writer:
            for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                mine = _is_customers(batch, settings, ids)
                removed += mine.true_count
                writer.write_batch(batch.cast(schema).filter(pc.invert(mine)))
    return removed


def _filterable(schema: pa.Schema) -> pa.Schema:
    """The schema without views, which Arrow does not filter; in Parquet they are the same."""
    plain = {pa.binary_view(): pa.binary(), pa.string_view(): pa.string()}
    fields = [field.with_type(plain.get(field.type, field.type)) for field in schema]
    return pa.schema(fields, schema.metadata)
