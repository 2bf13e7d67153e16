"""Finds the entries of the drop folder `incoming` that are ready to be landed.

An entry is anything in the folder: a file, a link, a folder, a pipe. The functions here use only names and file system
metadata. They never open an entry for reading, so none of them can block.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fraud_assets.errors import is_temporary
from fraud_assets.printable import escape_unprintable
from fraud_assets.settings import Settings

REASON = ".reason.txt"
"""Suffix of the file in `failed/` that gives the reason."""
RECEIPT = ".receipt.json"
"""Suffix of the receipt in `processed/` that replaces a removed file."""

_UNFINISHED_SUFFIXES = (
    ".part", ".partial", ".filepart", ".tmp", ".temp", ".crdownload", ".download", ".opdownload", ".inprogress",
    "._copying_", ".swp",
)  # fmt: skip
"""Suffixes that programs give to a file while they write it: copy tools, browsers, editors, Flink, Hadoop."""

_UNFINISHED_PREFIXES = (".", "_started_", "_committed_")
_UNFINISHED_NAMES = ("_temporary", "_success", "_spark_metadata", "_metadata", "_common_metadata")
"""Names of the work folder and the marker files of a Spark job that writes into the drop folder."""

_POLL_SECONDS = 0.05
_REPORTED_WAIT_SECONDS = 5
"""Waits from this length on are logged."""

logger = logging.getLogger(__name__)

_KINDS = {
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


@dataclass(frozen=True)
class WaitingEntries:
    """Entries of the drop folder, each sorted by name. Unfinished files are not among them.

    Attributes:
        files: files to land or to refuse.
        folders: folders, which are never landed.
        changing: entries that have changed within FRAUD_FILE_QUIET_SECONDS.
    """

    files: list[Path]
    folders: list[Path]
    changing: list[Path]


def find_waiting_entries(settings: Settings) -> WaitingEntries:
    """Returns the entries of the drop folder, except unfinished files.

    Broken links and pipes count as files: landing refuses them like a file that cannot be read.

    Raises:
        OSError: the drop folder cannot be read.
    """
    waiting = WaitingEntries([], [], [])
    try:
        entries = sorted(settings.incoming.iterdir())
    except FileNotFoundError:
        return waiting
    for path in entries:
        if _is_unfinished(path.name):
            continue
        try:
            status = _read_status(path)
        except FileNotFoundError:
            continue
        # A file dated in the future (a copied time, another clock) must not wait until that day.
        if abs(time.time() - status.st_mtime) >= settings.file_quiet_seconds:
            (waiting.folders if stat.S_ISDIR(status.st_mode) else waiting.files).append(path)
        else:
            waiting.changing.append(path)
    return waiting


def wait_for_changing_entries(settings: Settings, stop: Callable[[], bool]) -> None:
    """Waits until a file that was just dropped is ready, at most FRAUD_FILE_QUIET_SECONDS.

    Args:
        settings: define the drop folder.
        stop: called several times a second; once it returns true, the wait ends.

    Raises:
        OSError: the drop folder cannot be read.
    """
    deadline = time.monotonic() + settings.file_quiet_seconds
    changing = find_waiting_entries(settings).changing
    if changing and settings.file_quiet_seconds >= _REPORTED_WAIT_SECONDS:
        logger.info(
            f"Waiting at most {settings.file_quiet_seconds:g} s (FRAUD_FILE_QUIET_SECONDS) for "
            f"{escape_name(changing[0])}, which has just changed."
        )
    while changing and not stop():
        if (remaining := deadline - time.monotonic()) <= 0:
            logger.warning(f"{escape_name(changing[0])} is still being written. It lands with the next call.")
            return
        time.sleep(min(remaining, _POLL_SECONDS))
        changing = find_waiting_entries(settings).changing


def _is_unfinished(name: str) -> bool:
    lowered = name.lower()
    return (
        lowered.startswith(_UNFINISHED_PREFIXES)
        or lowered.endswith(_UNFINISHED_SUFFIXES)
        or lowered in _UNFINISHED_NAMES
    )


def _read_status(path: Path) -> os.stat_result:
    """Returns the status of the target of a path, or of the link itself if the link is broken."""
    try:
        return path.stat()
    except OSError:
        return path.lstat()


def read_state(path: Path) -> tuple[int, ...]:
    """Returns a value that changes when the content, permissions or location of an entry change.

    Raises:
        OSError: the entry is gone, or the drop folder cannot be read.
    """
    itself, target = path.lstat(), _read_status(path)
    times = (itself.st_ctime_ns, itself.st_mtime_ns, itself.st_size, itself.st_ino)
    return (*times, target.st_mtime_ns, target.st_size, target.st_ino)


def describe_obstacle(path: Path) -> str:
    """Returns why an entry is not a readable file, with the fix, or an empty string for a readable file.

    Raises:
        FileNotFoundError: the entry is gone.
        OSError: a temporary fault prevents the check.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if is_temporary(error) or not path.is_symlink():
            raise
        return (
            f"It is a symbolic link to {escape_unprintable(path.readlink())}, which cannot be read ({error.strerror}). "
            "Drop the file itself."
        )
    kind = next((name for is_kind, name in _KINDS.items() if is_kind(mode)), "")
    return f"It is {kind}, not a file. Drop a file." if kind else ""


def describe_folder(path: Path) -> str:
    """Returns the message and the fix for a folder in the drop folder."""
    return (
        f"{escape_name(path)} is a folder, and only files are landed. Move the files out of the folder into "
        f"{escape_unprintable(path.parent)}, then remove the folder."
    )


def escape_name(path: Path) -> str:
    """Returns the name of an entry for tables, reports, logs and messages, with unprintable characters escaped."""
    return escape_unprintable(path.name)
