"""Finds missing, truncated or empty files in a table's log and describes how to restore the table.

A disk that loses power can keep the name of a new file and lose its content. delta-rs reads an empty log entry as a
commit that changed nothing, so rows would disappear without an error.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fraud_assets.core.schema import (
    alert_thresholds,
    fraud_labels,
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.errors import DamagedFileError
from fraud_assets.lake.file_state import describe_parquet_fault, list_sizes, read_bytes
from fraud_assets.lake.log import TRANSACTIONS
from fraud_assets.system.paths import strip_file_scheme

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

    from fraud_assets.lake.location import TableLocation

LOG_FOLDER = "_delta_log"
_LAST_CHECKPOINT = "_last_checkpoint"
_ENTRY = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(\.[^/]+)?\.parquet")
_CUT = "is cut off or damaged"
_RECORDED_TRANSACTIONS = re.compile(rb'"%s":"(\d+)"' % TRANSACTIONS.encode())
_CHECKED_ENTRIES = 100
"""Log entries that are checked on opening; delta-rs writes a checkpoint after this many."""
_LANDS_AGAIN = (
    "The rows of the lost commits then land again from Kafka; move dropped files from processed/ back to incoming/ "
    "(docs/restore.md)"
)
_COMPUTED_AGAIN = "The next run computes the rows of the lost commits again (docs/restore.md)"
_RECOVERY = {
    raw_transactions.name: _LANDS_AGAIN,
    fraud_labels.name: _LANDS_AGAIN,
    transaction_features.name: _COMPUTED_AGAIN,
    fraud_predictions.name: _COMPUTED_AGAIN,
    quarantined_transactions.name: (
        "Features and labels do not process the lost rows again: rebuild all three tables together (docs/restore.md)"
    ),
    alert_thresholds.name: "Train again; this writes a new threshold (docs/restore.md)",
}
"""The way to recover the rows of a table after it was reset to an older version."""
RESTORE_REMEDY = "Restore it from a backup of the lake, or rebuild the table as described in docs/restore.md"


def refuse_incomplete_entries(uri: str, version: int) -> None:
    """Checks the log entries of a table in a folder that was just opened: the newest one, and the sizes of the others.

    Args:
        uri: The table's folder.
        version: The version that was opened.

    Raises:
        DamagedFileError: An entry is empty, or the newest ends before its last line.
    """
    log = f"{strip_file_scheme(uri).rstrip('/')}/{LOG_FOLDER}"
    # pathlib would take longer than the check itself.
    for number in range(version, max(_last_checkpoint(log), version - _CHECKED_ENTRIES), -1):
        path = f"{log}/{number:020}.json"
        try:
            fault = _describe_entry_fault(path) if number == version else _describe_empty_file(path)
        except FileNotFoundError:
            # Maintenance shortened the log meanwhile; it removed all earlier entries too.
            return
        if fault is not None:
            raise DamagedFileError(_entry_message(path, fault, number, version, has_base=number > 0))


def _describe_empty_file(path: str) -> str | None:
    return None if os.stat(path).st_size else "is empty"  # noqa: PTH116


def _describe_entry_fault(path: str) -> str | None:
    with open(path, "rb") as file:  # noqa: PTH123
        content = file.read()
    if not content:
        return "is empty"
    return _CUT if _lacks_transactions(content) else None


def _lacks_transactions(content: bytes) -> bool:
    """Returns whether an entry has fewer application transactions than its first line records.

    Transactions are the last lines of an entry.
    """
    recorded = _RECORDED_TRANSACTIONS.search(content.split(b"\n", 1)[0])
    return recorded is not None and content.count(b'\n{"txn":') < int(recorded[1])


def _last_checkpoint(log: str) -> int:
    try:
        return int(json.loads(Path(log, _LAST_CHECKPOINT).read_bytes())["version"])
    # If the file is missing or damaged, delta-rs lists the log instead.
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def find_log_damage(location: TableLocation) -> str | None:
    """Returns the error message for the first damaged file in the log of the newest version; None if none is damaged.

    Raises:
        OSError: The folder cannot be read.
    """
    filesystem = location.filesystem()
    sizes = list_sizes(filesystem, LOG_FOLDER)
    entries = {int(found[1]): name for name in sizes if (found := _ENTRY.fullmatch(name))}
    checkpoints: dict[int, list[str]] = {}
    for name in sizes:
        if found := _CHECKPOINT.fullmatch(name):
            checkpoints.setdefault(int(found[1]), []).append(name)
    if not entries and not checkpoints:
        return None
    root = f"{location.path}/{LOG_FOLDER}"
    base = max(checkpoints, default=-1)
    for name in checkpoints.get(base, ()):
        fault = describe_parquet_fault(filesystem, f"{LOG_FOLDER}/{name}", sizes[name], whole=True)
        if fault is not None:
            return _checkpoint_message(f"{root}/{name}", fault, _is_readable_without(entries, checkpoints, base))
    hinted = _read_checkpoint_hint(filesystem) if _LAST_CHECKPOINT in sizes else -1
    if hinted > base:
        fault = f"names checkpoint {hinted}, which is missing"
        is_readable = _is_readable_without(entries, checkpoints, hinted)
        return _checkpoint_message(f"{root}/{_LAST_CHECKPOINT}", fault, is_readable)
    newest = max([*entries, base])
    for number in range(base + 1, newest + 1):
        fault = _find_entry_fault(filesystem, entries, sizes, number)
        if fault is not None:
            has_base = base >= 0 or number > 0
            return _entry_message(f"{root}/{number:020}.json", fault, number, newest, has_base=has_base)
    return None


def find_lost_log(location: TableLocation) -> str | None:
    """Returns the error message for a folder with data files but without a log; None if it has no data files.

    Raises:
        OSError: The folder cannot be read.
    """
    sizes = list_sizes(location.filesystem(), "", recursive=True)
    count = sum(path.endswith(".parquet") and not path.startswith(LOG_FOLDER) for path in sizes)
    if not count:
        return None
    return (
        f"{location.path} holds {count:,} data files, but no log ({LOG_FOLDER}). {RESTORE_REMEDY}; to start with an "
        "empty table, move the folder away."
    )


def _read_checkpoint_hint(filesystem: FileSystem) -> int:
    try:
        return int(json.loads(read_bytes(filesystem, f"{LOG_FOLDER}/{_LAST_CHECKPOINT}"))["version"])
    except (ValueError, KeyError, TypeError):
        return -1


def _find_entry_fault(
    filesystem: FileSystem, entries: Mapping[int, str], sizes: Mapping[str, int], number: int
) -> str | None:
    if number not in entries:
        return "is missing"
    if not sizes[entries[number]]:
        return "is empty"
    content = read_bytes(filesystem, f"{LOG_FOLDER}/{entries[number]}")
    try:
        for line in content.splitlines():
            json.loads(line)
    except ValueError:
        return _CUT
    return _CUT if _lacks_transactions(content) else None


def _is_readable_without(entries: Mapping[int, str], checkpoints: Mapping[int, list[str]], version: int) -> bool:
    """Returns whether the table can be read up to `version` without the checkpoint of that version."""
    start = max((number for number in checkpoints if number < version), default=-1) + 1
    return all(number in entries for number in range(start, version + 1))


def _entry_message(path: str, fault: str, number: int, newest: int, *, has_base: bool) -> str:
    """Returns the error message for a damaged log entry.

    Args:
        path: The entry.
        fault: Its fault, such as "is empty".
        number: Its version.
        newest: The newest version in the log.
        has_base: Whether the table can be read up to the version before the entry.
    """
    later = newest - number
    recovery = _RECOVERY.get(path.split("/")[-3], "Only a backup holds the lost commits (docs/restore.md)")
    text = f"Log entry {path} {fault}, as can happen after a power failure"
    if number == 0 and not later:
        return f"{text}. Move the table's folder away; the next run creates the table again. {recovery}."
    if later:
        text += f", and {later} later {'entry builds' if later == 1 else 'entries build'} on it"
    if not has_base:
        return f"{text}. {RESTORE_REMEDY}."
    if not later:
        remedy = "Move it"
    elif fault == "is missing":
        remedy = "Restore it from a backup of the lake, or move the later entries"
    else:
        remedy = "Restore it from a backup of the lake, or move it and the later entries"
    return f"{text}. {remedy} out of that folder: the table is then at version {number - 1} again. {recovery}."


def _checkpoint_message(path: str, fault: str, is_readable: bool) -> str:
    if path.endswith(_LAST_CHECKPOINT):
        text = f"{path} {fault}"
        return f"{text}. {'Move it away: the log entries hold the same data' if is_readable else RESTORE_REMEDY}."
    text = f"Checkpoint {path} {fault}"
    if not is_readable:
        return f"{text}, and log entries before it are missing. {RESTORE_REMEDY}."
    return f"{text}. Move it and {_LAST_CHECKPOINT} out of that folder: the log entries hold the same data."


def describe_empty_entry(table: str, sizes: Mapping[str, int]) -> str | None:
    """Returns the error message for an empty log entry after the last checkpoint; None if none is empty.

    Args:
        table: Path of the table's folder.
        sizes: Sizes of the log's files in bytes, by name.
    """
    entries = {int(found[1]): name for name in sizes if (found := _ENTRY.fullmatch(name))}
    base = max((int(found[1]) for name in sizes if (found := _CHECKPOINT.fullmatch(name))), default=-1)
    for number in sorted(entries):
        if number > base and not sizes[entries[number]]:
            path = f"{table}/{LOG_FOLDER}/{entries[number]}"
            return _entry_message(path, "is empty", number, max(entries), has_base=True)
    return None
