"""Finds missing, truncated or unreadable data files of a table and describes how to restore them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from fraud_assets.errors import DamagedFileError
from fraud_assets.lake.file_state import describe_parquet_fault, describe_size_fault, list_sizes
from fraud_assets.lake.log_damage import LOG_FOLDER, RESTORE_REMEDY, describe_empty_entry

if TYPE_CHECKING:
    from deltalake import DeltaTable

    from fraud_assets.lake.location import TableLocation

_CACHE_FOLDER = "/cache/lake/"
_SEARCH_SECONDS = 20.0
"""Maximum seconds to search for the damaged file after an error."""


@dataclass(frozen=True)
class Examined:
    """The result of an examination of a table's data files.

    Attributes:
        files: Number of live files.
        footers: Number of files that were read.
        damage: The error message for the first damaged file; None if there is none.
    """

    files: int = 0
    footers: int = 0
    damage: str | None = None


def examine_data_files(
    location: TableLocation, handle: DeltaTable, footers: int, seconds: float, *, whole: bool = False
) -> Examined:
    """Compares the size of every live file with the log, and reads the Parquet footers of the newest files.

    The sizes cost one listing of the folder.

    Args:
        location: The table's folder.
        handle: The version whose files are live.
        footers: Maximum number of footers to read.
        seconds: Time after which no further footer is read.
        whole: Whether to read whole files, not only their footers.

    Raises:
        OSError: The folder cannot be listed.
    """
    deadline = time.monotonic() + seconds
    actions = pa.table(handle.get_add_actions(flatten=True))
    if not actions.num_rows:
        return Examined()
    sizes = list_sizes(location.filesystem(), "", recursive=True)
    live = sorted(
        zip(*(actions[name].to_pylist() for name in ("modification_time", "path", "size_bytes")), strict=True),
        reverse=True,
    )
    log_sizes = {
        path.removeprefix(f"{LOG_FOLDER}/"): size for path, size in sizes.items() if path.startswith(f"{LOG_FOLDER}/")
    }
    if (damage := describe_empty_entry(location.path, log_sizes)) is not None:
        return Examined(len(live), 0, damage)
    for _, path, size in live:
        if (fault := describe_size_fault(sizes.get(path), size)) is not None:
            return Examined(len(live), 0, describe_damaged_file(f"{location.path}/{path}", fault))
    filesystem = location.filesystem({path: size for _, path, size in live})
    read = 0
    for _, path, size in live[:footers]:
        if time.monotonic() > deadline:
            break
        if (fault := describe_parquet_fault(filesystem, path, size, whole=whole)) is not None:
            return Examined(len(live), read, describe_damaged_file(f"{location.path}/{path}", fault))
        read += 1
    return Examined(len(live), read)


def describe_damaged_file(path: str, fault: str) -> str:
    """Returns the error message for a damaged data file, with its table and the way to restore it."""
    table = next((part for part in reversed(path.split("/")[:-1]) if "=" not in part), "")
    return f"Data file {path} of table {table} {fault}. {RESTORE_REMEDY}."


def find_named_damage(text: str) -> DamagedFileError | None:
    """Returns the error for a data file that an engine's message names, if that local file is missing or damaged."""
    return find_damage(_list_named_files(text))


def find_damage(paths: Iterable[str]) -> DamagedFileError | None:
    """Returns the error for the first data file that cannot be read; None if none is found within 20 s.

    Args:
        paths: Absolute paths of local files.
    """
    from pyarrow.fs import LocalFileSystem

    deadline = time.monotonic() + _SEARCH_SECONDS
    for path in paths:
        if time.monotonic() > deadline:
            break
        fault = "is missing"
        if Path(path).exists():
            fault = describe_parquet_fault(LocalFileSystem(), path, Path(path).stat().st_size, whole=True) or ""
        if fault and _CACHE_FOLDER in path:
            return DamagedFileError(
                f"Local copy {path} of a data file {fault}. Remove it; the platform fetches it again."
            )
        if fault:
            return DamagedFileError(describe_damaged_file(path, fault))
    return None


def _list_named_files(text: str) -> Iterator[str]:
    for path in re.findall(r"(?<![^\s\"'])(?:file://)?(/[^\"'\n]*?\.parquet)", text):
        if LOG_FOLDER not in path:
            yield path
