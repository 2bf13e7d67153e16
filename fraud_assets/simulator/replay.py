"""Reads files of transactions or labels in batches of rows with the contract's column names, and replays them."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from fraud_assets.core.bodies import strip_byte_order_mark
from fraud_assets.core.field_paths import MISSING, get_value
from fraud_assets.errors import FraudAssetsError, SettingError
from fraud_assets.ingest.files.csv_file import MISSING_VALUES
from fraud_assets.ingest.files.parquet_file import get_column, list_paths, open_parquet
from fraud_assets.ingest.files.plain_columns import is_bytes, to_text_column
from fraud_assets.kafka.producer import Message
from fraud_assets.settings import CONTRACT_FIELDS, LABEL_FIELDS, Settings
from fraud_assets.simulator.event_order import RAW, EventOrder, make_label_messages

BATCH_ROWS = 20_000
FIELDS = (*CONTRACT_FIELDS, "is_fraud", "labelled_at")
ALSO_KNOWN_AS = {"is_fraud": ("tx_fraud",)}
FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}


@dataclass(frozen=True)
class Source:
    """A file to replay.

    Attributes:
        path: path of the file.
        format: `parquet`, `csv` or `jsonl`.
        columns: the file's column of each contract field.
        rows: number of rows; None if the format does not record it.
    """

    path: Path
    format: str
    columns: Mapping[str, str]
    rows: int | None

    @property
    def has_transactions(self) -> bool:
        """Whether its rows are transactions, with or without labels; if not, they are labels."""
        return set(CONTRACT_FIELDS) <= set(self.columns)


def open_source(path: Path, settings: Settings, mapping: Mapping[str, str] | None = None) -> Source:
    """Reads a file's column names and matches them with the contract's, ignoring case.

    Args:
        path: path of the file.
        settings: define the contract.
        mapping: columns of contract fields whose names differ from the contract's.

    Raises:
        FraudAssetsError: the file cannot be read.
        SettingError: a field has no column, or the mapping names a column that does not exist.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise FraudAssetsError(f"File {path} has no known format. Replay reads {', '.join(FORMATS)}.")
    try:
        names, rows = _columns_of(path, kind)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    columns = _match(path, names, settings, mapping or {})
    if not (set(CONTRACT_FIELDS) <= set(columns) or set(LABEL_FIELDS) <= set(columns)):
        missing = ", ".join(field for field in CONTRACT_FIELDS if field not in columns)
        raise SettingError(
            f"File {path} has no column for {missing}. It has {', '.join(names) or 'none'}. "
            f"Map a column to each field, such as --map {missing.split(', ')[0]}=column."
        )
    return Source(path, kind, columns, rows)


def read(source: Source) -> Iterator[pa.Table]:
    """Yields the rows of a file in bounded batches, with the contract's column names. Integers never become floats.

    Raises:
        FraudAssetsError: the file is truncated or does not have the format of its suffix.
    """
    readers = {"parquet": _read_parquet, "csv": _read_csv, "jsonl": _read_jsonl}
    try:
        yield from readers[source.format](source)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(source.path, error) from error


def replay_messages(sources: Iterable[Source], order: EventOrder, limit: int | None = None) -> Iterator[Message]:
    """Yields the messages of the files in the given order, with at most `limit` transactions.

    Labels in files of transactions are sent in event time (see `EventOrder`). The labels of files with only labels are
    sent in the order of the file, after all transactions.
    """
    sources = list(sources)
    batches = itertools.chain.from_iterable(read(source) for source in sources if source.has_transactions)
    yield from order.messages(batches if limit is None else _limit_rows(batches, limit))
    for source in sources:
        if not source.has_transactions:
            for batch in read(source):
                for message in make_label_messages(batch, order.settings):
                    order.labels += 1
                    yield message


def _columns_of(path: Path, kind: str) -> tuple[list[str], int | None]:
    if kind == "parquet":
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            return [*schema.names, *list_paths(schema)], file.metadata.num_rows
    if kind == "csv":
        with path.open(newline="", encoding="utf-8-sig") as text:
            return next(csv.reader(text), []), None
    with path.open("rb") as lines:
        first = next((row for line in lines if (row := _object(line)) is not None), {})
    return [*first, *_paths_of(first)], None


def _paths_of(row: Mapping[str, Any]) -> Iterator[str]:
    """Yields the dotted names of the fields within the objects of a row."""
    for key, value in row.items():
        if isinstance(value, dict):
            yield from (f"{key}.{name}" for name in (*value, *_paths_of(value)))


def _match(path: Path, names: list[str], settings: Settings, mapping: Mapping[str, str]) -> dict[str, str]:
    exact = set(names)
    in_any_case = {name.lower(): name for name in reversed(names)}

    def find(name: str) -> str | None:
        return name if name in exact else in_any_case.get(name.lower())

    columns = {}
    for field in FIELDS:
        if field in mapping:
            if (found := find(mapping[field])) is None:
                raise SettingError(f"File {path} has no column {mapping[field]}; it has {', '.join(names)}.")
            columns[field] = found
            continue
        for name in (settings.contract.payload_field(field), field, *ALSO_KNOWN_AS.get(field, ())):
            if (found := find(name)) is not None:
                columns[field] = found
                break
    return columns


def _read_parquet(source: Source) -> Iterator[pa.Table]:
    with open_parquet(source.path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=list(set(source.columns.values()))):
            yield pa.table(
                {field: _as_plain_type(field, get_column(batch, name)) for field, name in source.columns.items()}
            )


def _read_csv(source: Source) -> Iterator[pa.Table]:
    names = list(dict.fromkeys(source.columns.values()))
    with pyarrow.csv.open_csv(
        source.path,
        read_options=pyarrow.csv.ReadOptions(block_size=4_000_000),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        # All columns are read as text: type inference would turn long card numbers and columns with gaps into floats.
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=names,
            column_types=dict.fromkeys(names, pa.string()),
            null_values=["", *MISSING_VALUES],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    ) as reader:
        for batch in reader:
            columns = {field: _empty_as_null(batch.column(name)) for field, name in source.columns.items()}
            if "tx_amount" in columns:
                columns["tx_amount"] = _as_numbers(columns["tx_amount"])
            yield pa.table(columns)


def _read_jsonl(source: Source) -> Iterator[pa.Table]:
    with source.path.open("rb") as lines:
        while part := list(itertools.islice(_lines(lines), BATCH_ROWS)):
            yield _rows_of_lines(part, source.columns)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    return (line for line in (line.rstrip(b"\r\n") for line in file) if line)


def _rows_of_lines(lines: list[bytes], columns: Mapping[str, str]) -> pa.Table:
    """Returns the rows of JSON lines. A line whose fields do not fit typed columns goes unchanged to column `raw`."""
    values: dict[str, list[Any]] = {field: [] for field in columns}
    raw: list[bytes | None] = []
    for line in lines:
        row = _object(line)
        fields = None if row is None else {field: _value(row, name) for field, name in columns.items()}
        typed = fields is not None and all(_fits(field, value) for field, value in fields.items())
        raw.append(None if typed else line)
        for field in columns:
            value = fields[field] if typed and fields is not None else None
            values[field].append(value if value is None or field == "tx_amount" else _text(value))
    arrays: dict[str, pa.Array] = {
        field: pa.array([None if v is None else float(v) for v in found], pa.float64())
        if field == "tx_amount"
        else pa.array(found, pa.string())
        for field, found in values.items()
    }
    return pa.table({**arrays, RAW: pa.array(raw, pa.binary())})


def _value(row: dict[str, Any], name: str) -> Any:
    value = get_value(row, name)
    return None if value is MISSING else value


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(strip_byte_order_mark(line))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _fits(field: str, value: Any) -> bool:
    if field == "is_fraud":
        return value is None or isinstance(value, bool | int | str) or value in (0.0, 1.0)
    if field == "tx_amount":
        return type(value) in (int, float) and abs(value) < 1e300
    if field in ("tx_datetime", "labelled_at"):
        return isinstance(value, str) or (value is None and field == "labelled_at")
    return type(value) in (int, str)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_plain_type(field: str, column: pa.Array) -> pa.Array:
    """Converts dictionaries and large strings to strings, and ids that pandas stored as floats to integers."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if is_bytes(column.type):
        return to_text_column(column)
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        return pc.cast(column, pa.string())
    if field.endswith("_id") and pa.types.is_floating(column.type):
        return pc.cast(column, pa.int64())
    return column


def _empty_as_null(texts: pa.Array) -> pa.Array:
    """Replaces empty texts by null: a writer that quotes all values writes a missing value as an empty text."""
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _as_numbers(texts: pa.Array) -> pa.Array:
    """Returns amounts as float64. If one is not a number, all stay text, and landing validates them."""
    try:
        return pc.cast(texts, pa.float64())
    except pa.ArrowInvalid:
        return texts


def _limit_rows(batches: Iterable[pa.Table], limit: int) -> Iterator[pa.Table]:
    for batch in batches:
        yield batch.slice(0, limit)
        limit -= batch.num_rows
        if limit <= 0:
            return


def _unreadable(path: Path, error: Exception) -> FraudAssetsError:
    cause = " ".join(str(error).split())
    return FraudAssetsError(
        f"File {path} cannot be read: {cause[:300]}. Check that it is complete and has the format of its suffix."
    )
