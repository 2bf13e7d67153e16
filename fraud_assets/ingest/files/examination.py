"""Reads a dropped file completely before any of it lands, and reports why it cannot be landed."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa

from fraud_assets.errors import LakeError
from fraud_assets.ingest.files.columns import examine_csv, examine_parquet
from fraud_assets.ingest.files.contents import Contents, UnusableFileError
from fraud_assets.ingest.files.json_lines import examine_json_lines
from fraud_assets.ingest.files.other_formats import describe_other_format
from fraud_assets.settings import Settings

JSON_LINES = (".jsonl", ".ndjson", ".json")
FORMATS = (*JSON_LINES, ".csv", ".parquet")


def examine(path: Path, settings: Settings) -> Contents:
    """Reads the whole file once and returns its contents.

    Raises:
        UnusableFileError: the file cannot be read, needs more memory than the settings allow, or lacks columns.
        LakeError: the disk is full.
        OSError: the operating system cannot read the file.
    """
    import duckdb

    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UnusableFileError(f"The suffix {path.suffix!r} is unknown; use one of {', '.join(FORMATS)}.")
    other = describe_other_format(path)
    if other is not None:
        raise UnusableFileError(other)
    try:
        if suffix in JSON_LINES:
            return examine_json_lines(path, settings)
        if not _is_utf8(path.name):
            raise UnusableFileError("Its name is not UTF-8 text. Rename the file.")
        return (examine_csv if suffix == ".csv" else examine_parquet)(path, settings)
    except (duckdb.Error, pa.ArrowException, UnicodeError, ValueError, OSError, MemoryError, LakeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # An error number comes from the operating system, not from the content.
        if _is_out_of_memory(error):
            raise UnusableFileError(
                f"It needs more memory than FRAUD_DUCKDB_MEMORY_LIMIT allows ({settings.duckdb_memory_limit}). Raise "
                "that limit, or write the file with smaller rows."
            ) from error
        if isinstance(error, LakeError):
            raise
        kind = suffix[1:].upper()
        raise UnusableFileError(
            f"It cannot be read as {kind}: {_shorten_message(error)}.", f"It cannot be read as {kind}."
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    import duckdb

    cause = error.__cause__ if isinstance(error, LakeError) else error
    return isinstance(cause, MemoryError | duckdb.OutOfMemoryException)


def _shorten_message(error: Exception) -> str:
    """Returns a reader's message without fixes that do not apply here and without most of a long line."""
    text = str(error).split("Possible fixes")[0].split("Stack Trace:")[0]
    if "state machine" in text:
        return "its lines have different line endings, or a quoted value is not closed"
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"byte 0x{byte:02x} is not UTF-8 text; save the file as UTF-8"
    if "not utf-8 encoded" in text:
        text = re.sub(r"Invalid Input Error: ", "", text.splitlines()[0]) + " Save the file as UTF-8"
    text = re.sub(r"Possible Solution:.*", "", text)
    text = re.sub(r"(Original Line: .{80}).*", r"\1…", text)
    return " ".join(text.split())[:500].rstrip(".")


def _is_utf8(name: str) -> bool:
    return name.isascii() or name.encode("utf-8", "replace").decode() == name
