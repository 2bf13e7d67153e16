"""What a dropped file holds: read to its end before anything of it lands, and again while it lands.

A file gives one message body per row. JSON lines are bodies already; a row of a CSV or Parquet file becomes a JSON
object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from fraud_assets.core.schema import MESSAGES
from fraud_assets.errors import SettingError
from fraud_assets.lake.positions import NOTHING, Stream
from fraud_assets.settings import Settings

JSON_LINES = (".jsonl", ".ndjson", ".json")
FORMATS = (*JSON_LINES, ".csv", ".parquet")
LABEL_NAMES = ("is_fraud", "tx_fraud")

_SNIFFED_LINES = 100
_LONGEST_LINE = 100_000_000  # bytes; a file without line ends must not fill the memory


class UnusableFile(Exception):
    """A file cannot be landed; the message says why, `plain` says it without quoting the file."""

    def __init__(self, reason: str, plain: str = "") -> None:
        super().__init__(reason)
        self.plain = plain or reason


@dataclass(frozen=True)
class Contents:
    """A file that was read to its end: how to read it again, and what it holds."""

    chunks: Callable[[], Iterator[tuple[pa.Array, pa.Array]]]
    rows: int
    last: int
    label_field: str | None
    labelled_at_field: str | None
    has_transactions: bool


def examine(path: Path, settings: Settings) -> Contents:
    """Reads the whole file once.

    Raises:
        UnusableFile: it cannot be read, or has not the columns that it needs.
        SettingError: DuckDB has too little memory for it.
    """
    import duckdb

    from fraud_assets.pipeline.file_columns import examine_csv, examine_parquet

    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UnusableFile(f"The suffix {path.suffix!r} is unknown; known are {', '.join(FORMATS)}.")
    try:
        if suffix in JSON_LINES:
            return _examine_json_lines(path, settings)
        if name_of(path) != path.name:
            raise UnusableFile("Its name is not UTF-8 text; give it another.")
        return (examine_csv if suffix == ".csv" else examine_parquet)(path, settings)
    except (duckdb.Error, pa.ArrowException, UnicodeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, not the content's
        if "Out of Memory" in str(error):
            raise SettingError(
                f"Setting FRAUD_DUCKDB_MEMORY_LIMIT is {settings.duckdb_memory_limit!r}: too little to read "
                f"{path}. Raise it."
            ) from error
        kind = suffix[1:].upper()
        raise UnusableFile(
            f"It cannot be read as {kind}: {_in_short(error)}.", f"It cannot be read as {kind}."
        ) from error


def _in_short(error: Exception) -> str:
    """The words of a reader, without what one cannot do here and without all of a long line."""
    text = str(error).split("Possible fixes")[0].split("Stack Trace:")[0]
    if "state machine" in text:
        return "its lines do not all end alike, or a quoted value does not end"
    text = re.sub(r"Possible Solution:.*", "", text)
    text = re.sub(r"(Original Line: .{80}).*", r"\1…", text)
    return " ".join(text.split())[:500].rstrip(".")


def batches(contents: Contents, stream: Stream, known: int, settings: Settings) -> Iterator[pa.Table]:
    """The rows beyond `known` as messages of the stream, in landing batches."""
    waiting: list[pa.Table] = []
    rows = size = 0
    for offsets, values in contents.chunks():
        if len(offsets) == 0 or offsets[-1].as_py() <= known:
            continue
        count = len(offsets)
        chunk = pa.table(
            {
                "topic": pa.repeat(pa.scalar(stream.topic), count),
                "lineage": pa.repeat(pa.scalar(stream.lineage), count),
                "partition": pa.repeat(pa.scalar(stream.partition, pa.int32()), count),
                "offset": offsets,
                **{name: pa.nulls(count, MESSAGES.field(name).type) for name in ("timestamp", "key", "headers")},
                "value": values,
            }
        ).select(MESSAGES.names)
        waiting.append(chunk.cast(MESSAGES))
        rows, size = rows + count, size + values.nbytes
        if rows >= settings.land_batch_rows or size >= settings.land_batch_bytes:
            yield pa.concat_tables(waiting)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield pa.concat_tables(waiting)


def chunk_rows(settings: Settings) -> int:
    """Rows that are converted at a time: small against a landing batch where rows are large."""
    return max(1, min(settings.land_batch_rows, settings.land_batch_bytes // 1_000))


def name_of(path: Path) -> str:
    """Its name for tables, reports and people; one that is not UTF-8 has question marks."""
    return path.name.encode("utf-8", "replace").decode()


# ---------------------------------------------------------------------------------------------------------
# JSON lines: the bytes of a line are the body.


def _examine_json_lines(path: Path, settings: Settings) -> Contents:
    wanted, label_key = label_keys(settings)
    contract = settings.payload_field("labelled_at")
    time_key = json.dumps(contract).encode()
    rows, last, objects = 0, NOTHING, 0
    spellings: set[str] = set()
    has_time = False
    for number, line in _lines(path):
        rows, last = rows + 1, number
        if rows <= _SNIFFED_LINES:
            objects += line.lstrip().startswith(b"{")
            if rows == 1 and line.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
                raise UnusableFile("It is a JSON array; write one JSON object per line.")
        found = label_key.search(line)
        if found is not None:
            spellings.add(found[1].decode())
            has_time = has_time or time_key in line
    if rows == 0:
        raise UnusableFile("It holds no row.")
    if objects == 0:
        raise UnusableFile("None of its first lines is a JSON object; write one JSON object per line.")
    label_field = min(spellings, key=lambda name: (wanted.index(name.lower()), name), default=None)
    return Contents(lambda: _json_chunks(path, settings), rows, last, label_field, contract if has_time else None, True)


def label_keys(settings: Settings) -> tuple[list[str], re.Pattern[bytes]]:
    """The names under which a body may have its label, the preferred first, and what finds them as keys."""
    wanted = list(dict.fromkeys([settings.payload_field("is_fraud").lower(), *LABEL_NAMES]))
    names = b"|".join(re.escape(name).encode() for name in wanted)
    return wanted, re.compile(rb'"(' + names + rb')"\s*:', re.IGNORECASE)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Row numbers and bytes of the lines that are not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, _LONGEST_LINE + 1), b"")):
            if len(line) > _LONGEST_LINE:
                raise UnusableFile(f"Line {number + 1:,} is longer than {_LONGEST_LINE:,} bytes.")
            body = line.rstrip(b"\r\n")
            if body.strip():
                yield number, body


def _json_chunks(path: Path, settings: Settings) -> Iterator[tuple[pa.Array, pa.Array]]:
    limit_rows, limit_bytes = settings.land_batch_rows, settings.land_batch_bytes
    offsets: list[int] = []
    values: list[bytes] = []
    size = 0
    for number, line in _lines(path):
        offsets.append(number)
        values.append(line)
        size += len(line)
        if len(values) >= limit_rows or size >= limit_bytes:
            yield pa.array(offsets, pa.int64()), pa.array(values, pa.binary())
            offsets, values, size = [], [], 0
    if values:
        yield pa.array(offsets, pa.int64()), pa.array(values, pa.binary())
