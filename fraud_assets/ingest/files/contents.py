"""What a dropped file holds: read to its end before anything of it lands, and again while it lands.

A file gives one message body per row. JSON lines are bodies already; a row of a CSV or Parquet file becomes a JSON
object.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from fraud_assets.core.schema import MESSAGES
from fraud_assets.errors import LakeError
from fraud_assets.ingest.files.other_formats import other_format
from fraud_assets.lake.positions import SourcePartition
from fraud_assets.settings import Settings

JSON_LINES = (".jsonl", ".ndjson", ".json")
FORMATS = (*JSON_LINES, ".csv", ".parquet")


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
    has_labels: bool
    has_transactions: bool


def examine(path: Path, settings: Settings) -> Contents:
    """Reads the whole file once.

    Raises:
        UnusableFile: it cannot be read, takes more memory than the settings allow, or lacks the columns that it needs.
        LakeError: the disk is full.
        OSError: the system cannot read it.
    """
    import duckdb

    from fraud_assets.ingest.files.columns import examine_csv, examine_parquet
    from fraud_assets.ingest.files.json_lines import examine_json_lines

    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UnusableFile(f"The suffix {path.suffix!r} is unknown; known are {', '.join(FORMATS)}.")
    other = other_format(path)
    if other is not None:
        raise UnusableFile(other)
    try:
        if suffix in JSON_LINES:
            return examine_json_lines(path, settings)
        if not _is_utf8(path.name):
            raise UnusableFile("Its name is not UTF-8 text; give it another.")
        return (examine_csv if suffix == ".csv" else examine_parquet)(path, settings)
    except (duckdb.Error, pa.ArrowException, UnicodeError, ValueError, OSError, MemoryError, LakeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, not the content's
        if _lacks_memory(error):
            raise UnusableFile(
                f"It takes more memory than FRAUD_DUCKDB_MEMORY_LIMIT allows ({settings.duckdb_memory_limit}). Raise "
                "that, or write the file with smaller rows."
            ) from error
        if isinstance(error, LakeError):
            raise
        kind = suffix[1:].upper()
        raise UnusableFile(
            f"It cannot be read as {kind}: {_in_short(error)}.", f"It cannot be read as {kind}."
        ) from error


def _lacks_memory(error: BaseException) -> bool:
    import duckdb

    cause = error.__cause__ if isinstance(error, LakeError) else error
    return isinstance(cause, MemoryError | duckdb.OutOfMemoryException)


def _in_short(error: Exception) -> str:
    """The words of a reader, without what one cannot do here and without all of a long line."""
    text = str(error).split("Possible fixes")[0].split("Stack Trace:")[0]
    if "state machine" in text:
        return "its lines do not all end alike, or a quoted value does not end"
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"byte 0x{byte:02x} is not UTF-8 text; save the file as UTF-8"
    if "not utf-8 encoded" in text:
        text = re.sub(r"Invalid Input Error: ", "", text.splitlines()[0]) + " Save the file as UTF-8"
    text = re.sub(r"Possible Solution:.*", "", text)
    text = re.sub(r"(Original Line: .{80}).*", r"\1…", text)
    return " ".join(text.split())[:500].rstrip(".")


def batches(contents: Contents, stream: SourcePartition, known: int, settings: Settings) -> Iterator[pa.Table]:
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
                "topic_id": pa.repeat(pa.scalar(stream.topic_id), count),
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


def _is_utf8(name: str) -> bool:
    return name.isascii() or name.encode("utf-8", "replace").decode() == name
