"""Damaged tables: which file of the log or of the data is missing, cut or empty, and how to get the table back.

A disk that loses power can keep the name of a file that was just written, and lose its content. delta-rs takes an
empty log entry for a commit that changed nothing, so that rows would be gone without a word.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from fraud_assets.core.schema import (
    alert_thresholds,
    fraud_labels,
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.errors import DamagedFileError
from fraud_assets.system.paths import plain_path

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyarrow.fs import FileSystem

    from fraud_assets.lake.location import TableLocation

_LOG = "_delta_log"
_LAST_CHECKPOINT = "_last_checkpoint"
_ENTRY = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(\.[^/]+)?\.parquet")
_CUT = "is cut off or damaged"
TRANSACTIONS = "app_transactions"
"""Key in the metadata of a commit: how many application transactions its log entry holds.

Without it, an entry that is cut off after a whole line would be read as one that changed less.
"""
_SAID_TRANSACTIONS = re.compile(rb'"%s":"(\d+)"' % TRANSACTIONS.encode())
_LOOKED_BACK = 100
"""Log entries that are looked at on opening; delta-rs writes a checkpoint after as many."""
_LANDS_AGAIN = (
    "What the lost commits held then lands again from Kafka; a dropped file has to be moved from processed/ back to "
    "incoming/ (docs/restore.md)"
)
_COMPUTED_AGAIN = "The next run computes again what the lost commits held (docs/restore.md)"
_AGAIN = {
    raw_transactions.name: _LANDS_AGAIN,
    fraud_labels.name: _LANDS_AGAIN,
    transaction_features.name: _COMPUTED_AGAIN,
    fraud_predictions.name: _COMPUTED_AGAIN,
    quarantined_transactions.name: (
        "Features and labels do not take again what it lost: build it again together with them (docs/restore.md)"
    ),
    alert_thresholds.name: "Train again, which writes a new threshold (docs/restore.md)",
}
"""What follows after a table was set back to an older version."""
_COPIES = "/cache/lake/"
_SECONDS = 20.0
"""After an error, the damaged file is looked for so long."""
_WHOLE_ROWS = 1_024
_BACKUP = "Put it back from a backup of the lake, or rebuild the table as docs/restore.md says"


# ---------------------------------------------------------------------------------------------------------
# The log.


def refuse_incomplete_entries(uri: str, version: int) -> None:
    """Looks at the log entries that a table in a folder has just been opened from: the newest, and the sizes of others.

    Raises:
        DamagedFileError: an entry is empty, or the newest ends before its last line.
    """
    log = f"{plain_path(uri).rstrip('/')}/{_LOG}"
    # Not pathlib's: it would take longer than the look itself.
    for number in range(version, max(_last_checkpoint(log), version - _LOOKED_BACK), -1):
        path = f"{log}/{number:020}.json"
        try:
            state = _newest_state(path) if number == version else _size_state(path)
        except FileNotFoundError:
            return  # it went when the log was shortened, and so did those before it
        if state is not None:
            raise DamagedFileError(_of_entry(path, state, number, version, has_base=number > 0))


def _size_state(path: str) -> str | None:
    return None if os.stat(path).st_size else "is empty"  # noqa: PTH116


def _newest_state(path: str) -> str | None:
    with open(path, "rb") as file:  # noqa: PTH123
        content = file.read()
    if not content:
        return "is empty"
    return _CUT if _lacks_transactions(content) else None


def _lacks_transactions(content: bytes) -> bool:
    """Whether an entry has fewer application transactions than its first line says. They are its last lines."""
    said = _SAID_TRANSACTIONS.search(content.split(b"\n", 1)[0])
    return said is not None and content.count(b'\n{"txn":') < int(said[1])


def _last_checkpoint(log: str) -> int:
    try:
        return int(json.loads(Path(log, _LAST_CHECKPOINT).read_bytes())["version"])
    # Without it, or with a damaged one, delta-rs looks for itself.
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def log_damage(place: TableLocation) -> str | None:
    """The first damage of the files that the newest version is read from, and the way back; None if there is none.

    Raises:
        OSError: the folder cannot be read.
    """
    filesystem = place.filesystem()
    sizes = _sizes(filesystem, _LOG)
    entries = {int(found[1]): name for name in sizes if (found := _ENTRY.fullmatch(name))}
    checkpoints: dict[int, list[str]] = {}
    for name in sizes:
        if found := _CHECKPOINT.fullmatch(name):
            checkpoints.setdefault(int(found[1]), []).append(name)
    if not entries and not checkpoints:
        return None
    root = f"{_path(place)}/{_LOG}"
    base = max(checkpoints, default=-1)
    for name in checkpoints.get(base, ()):
        if (state := parquet_state(filesystem, f"{_LOG}/{name}", sizes[name], whole=True)) is not None:
            return _of_checkpoint(f"{root}/{name}", state, _is_whole(entries, checkpoints, base))
    hinted = _hinted(filesystem) if _LAST_CHECKPOINT in sizes else -1
    if hinted > base:
        state = f"names checkpoint {hinted}, which is missing"
        return _of_checkpoint(f"{root}/{_LAST_CHECKPOINT}", state, _is_whole(entries, checkpoints, hinted))
    newest = max([*entries, base])
    for number in range(base + 1, newest + 1):
        entry_state = _entry_state(filesystem, entries, sizes, number)
        if entry_state is not None:
            has_base = base >= 0 or number > 0
            return _of_entry(f"{root}/{number:020}.json", entry_state, number, newest, has_base=has_base)
    return None


def lost_log(place: TableLocation) -> str | None:
    """The sentence for a table without a log whose folder holds data files; None if it holds none.

    Raises:
        OSError: the folder cannot be read.
    """
    sizes = _sizes(place.filesystem(), "", recursive=True)
    count = sum(path.endswith(".parquet") and not path.startswith(_LOG) for path in sizes)
    if not count:
        return None
    return (
        f"{_path(place)} holds {count:,} data files, but no log ({_LOG}). {_BACKUP}; it begins empty once its folder "
        "is moved away."
    )


def _hinted(filesystem: FileSystem) -> int:
    try:
        return int(json.loads(_content(filesystem, f"{_LOG}/{_LAST_CHECKPOINT}"))["version"])
    except (ValueError, KeyError, TypeError):
        return -1


def _entry_state(
    filesystem: FileSystem, entries: Mapping[int, str], sizes: Mapping[str, int], number: int
) -> str | None:
    if number not in entries:
        return "is missing"
    if not sizes[entries[number]]:
        return "is empty"
    content = _content(filesystem, f"{_LOG}/{entries[number]}")
    try:
        for line in content.splitlines():
            json.loads(line)
    except ValueError:
        return _CUT
    return _CUT if _lacks_transactions(content) else None


def _is_whole(entries: Mapping[int, str], checkpoints: Mapping[int, list[str]], version: int) -> bool:
    """Whether the table can be read up to `version` without the checkpoint of that version."""
    start = max((number for number in checkpoints if number < version), default=-1) + 1
    return all(number in entries for number in range(start, version + 1))


def _of_entry(path: str, state: str, number: int, newest: int, *, has_base: bool) -> str:
    """The sentence for entry `number`; with `has_base` the table can be read up to the version before it."""
    later = newest - number
    again = _AGAIN.get(path.split("/")[-3], "Only a backup holds the lost commits (docs/restore.md)")
    text = f"Log entry {path} {state}, as happens after a power cut"
    if number == 0 and not later:
        return f"{text}. Move the table's folder away: the table is created again. {again}."
    if later:
        text += f", and {later} later {'entry builds' if later == 1 else 'entries build'} on it"
    if not has_base:
        return f"{text}. {_BACKUP}."
    if not later:
        remedy = "Move it"
    elif state == "is missing":
        remedy = "Put it back from a backup of the lake, or move the later entries"
    else:
        remedy = "Put it back from a backup of the lake, or move it and the later entries"
    return f"{text}. {remedy} out of that folder: the table is at version {number - 1} again. {again}."


def _of_checkpoint(path: str, state: str, is_whole: bool) -> str:
    if path.endswith(_LAST_CHECKPOINT):
        text = f"{path} {state}"
        return f"{text}. {'Move it away: the log entries hold the same' if is_whole else _BACKUP}."
    text = f"Checkpoint {path} {state}"
    if not is_whole:
        return f"{text}, and log entries before it are gone. {_BACKUP}."
    return f"{text}. Move it and {_LAST_CHECKPOINT} out of that folder: the log entries hold the same."


# ---------------------------------------------------------------------------------------------------------
# Data files.


@dataclass(frozen=True)
class Examined:
    """What an examination of a table's data files found: `damage` is the first, `footers` is how many were read."""

    files: int = 0
    footers: int = 0
    damage: str | None = None


def examine_data_files(
    place: TableLocation, handle: DeltaTable, footers: int, seconds: float, *, whole: bool = False
) -> Examined:
    """Compares the size of every live file with the log, by one listing, and reads the newest files' Parquet footers.

    Args:
        place: the table's folder.
        handle: the version whose files count.
        footers: how many footers are read at most.
        seconds: no further footer is read after so long.
        whole: read whole files and not only their footers.

    Raises:
        OSError: the folder cannot be listed.
    """
    deadline = time.monotonic() + seconds
    actions = pa.table(handle.get_add_actions(flatten=True))
    if not actions.num_rows:
        return Examined()
    found = _sizes(place.filesystem(), "", recursive=True)
    live = sorted(
        zip(*(actions[name].to_pylist() for name in ("modification_time", "path", "size_bytes")), strict=True),
        reverse=True,
    )
    if (entry := _empty_entry(found)) is not None:
        return Examined(len(live), 0, _of_entry(f"{_path(place)}/{entry[0]}", "is empty", *entry[1:], has_base=True))
    for _, path, size in live:
        if (state := size_state(found.get(path), size)) is not None:
            return Examined(len(live), 0, of_data_file(f"{_path(place)}/{path}", state))
    filesystem = place.filesystem({path: size for _, path, size in live})
    read = 0
    for _, path, size in live[:footers]:
        if time.monotonic() > deadline:
            break
        if (state := parquet_state(filesystem, path, size, whole=whole)) is not None:
            return Examined(len(live), read, of_data_file(f"{_path(place)}/{path}", state))
        read += 1
    return Examined(len(live), read)


def _empty_entry(sizes: Mapping[str, int]) -> tuple[str, int, int] | None:
    """Path and number of an empty log entry after the last checkpoint, and the newest version."""
    paths = [path.split("/", 1) for path in sizes if path.startswith(f"{_LOG}/")]
    entries = {int(found[1]): f"{_LOG}/{name}" for _, name in paths if (found := _ENTRY.fullmatch(name))}
    base = max((int(found[1]) for _, name in paths if (found := _CHECKPOINT.fullmatch(name))), default=-1)
    for number in sorted(entries):
        if number > base and not sizes[entries[number]]:
            return entries[number], number, max(entries)
    return None


def of_data_file(path: str, state: str) -> str:
    """The sentence for a damaged data file, with its table and the way back."""
    table = next((part for part in reversed(path.split("/")[:-1]) if "=" not in part), "")
    return f"Data file {path} of table {table} {state}. {_BACKUP}."


def named_data_file(text: str) -> DamagedFileError | None:
    """The error for a data file in a folder that an engine's message names, if that file is missing or damaged."""
    return damaged_among(_named(text))


def damaged_among(paths: Iterable[str]) -> DamagedFileError | None:
    """The error for the first of these data files that cannot be read; None if all can, or those of the first 20 s.

    Args:
        paths: absolute paths in a folder.
    """
    from pyarrow.fs import LocalFileSystem

    deadline = time.monotonic() + _SECONDS
    for path in paths:
        if time.monotonic() > deadline:
            break
        state = "is missing"
        if Path(path).exists():
            state = parquet_state(LocalFileSystem(), path, Path(path).stat().st_size, whole=True) or ""
        if state and _COPIES in path:
            return DamagedFileError(f"Local copy {path} of a data file {state}. Remove it: it is fetched again.")
        if state:
            return DamagedFileError(of_data_file(path, state))
    return None


def _named(text: str) -> Iterator[str]:
    for path in re.findall(r"(?<![^\s\"'])(?:file://)?(/[^\"'\n]*?\.parquet)", text):
        if _LOG not in path:
            yield path


def size_state(found: int | None, logged: int) -> str | None:
    """What is wrong with a file of `found` bytes (None: there is none); None if nothing is."""
    if found is None:
        return "is missing"
    return None if found == logged else f"has {found:,} bytes, but {logged:,} by the log"


def parquet_state(filesystem: FileSystem, path: str, size: int, *, whole: bool = False) -> str | None:
    """What keeps a Parquet file's footer, or with `whole` all of it, from being read; None if nothing does."""
    from pyarrow.parquet import ParquetFile

    if not size:
        return "is empty"
    try:
        with filesystem.open_input_file(path) as file:
            parquet = ParquetFile(file)
            for _ in parquet.iter_batches(_WHOLE_ROWS) if whole else ():
                pass
            parquet.close()
    except FileNotFoundError:
        return "is missing"
    except (pa.ArrowInvalid, OSError) as error:
        cause = " ".join(str(error).split()).split(". ")[0]
        return f"cannot be read ({cause[:120].rstrip('.')})"
    return None


# ---------------------------------------------------------------------------------------------------------
# Files.


def _sizes(filesystem: FileSystem, folder: str, *, recursive: bool = False) -> dict[str, int]:
    from pyarrow.fs import FileSelector

    prefix = f"{folder}/" if folder else ""
    found = filesystem.get_file_info(FileSelector(folder, allow_not_found=True, recursive=recursive))
    return {info.path.removeprefix(prefix).lstrip("/"): info.size for info in found if info.is_file}


def _content(filesystem: FileSystem, path: str) -> bytes:
    with filesystem.open_input_file(path) as file:
        return file.read()


def _path(place: TableLocation) -> str:
    return place.uri.removeprefix("file://").rstrip("/")
