"""The drop folder `incoming`: which of its entries are files to land, and how a file leaves it.

An entry is anything that lies in the folder: a file, a link, a folder, a pipe. The functions here decide by names and
by what the file system says; they never open an entry for reading, so that none of them can block.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fraud_assets.errors import is_temporary
from fraud_assets.printable import printable
from fraud_assets.settings import Settings

REASON = ".reason.txt"
RECEIPT = ".receipt.json"

_UNFINISHED_SUFFIXES = (
    ".part", ".partial", ".filepart", ".tmp", ".temp", ".crdownload", ".download", ".opdownload", ".inprogress",
    "._copying_", ".swp",
)  # fmt: skip
"""Names that programs give to a file while they write it: copy tools, browsers, editors, Flink, Hadoop."""

_UNFINISHED_PREFIXES = (".", "_started_", "_committed_")
_UNFINISHED_NAMES = ("_temporary", "_success", "_spark_metadata", "_metadata", "_common_metadata")
"""What a Spark job that writes into the drop folder keeps beside its files: its work folder and its marks."""

_LONGEST_NAME = 255 - len(RECEIPT) - len(".999999")  # bytes that a file system takes, less what is put behind
_LONGEST_SUFFIX = 20  # bytes

_KINDS = {
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}

_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0


@dataclass(frozen=True)
class Waiting:
    """Entries of the drop folder that are ready: files to land (or to refuse), and folders, both by name."""

    files: list[Path]
    folders: list[Path]


def waiting_entries(settings: Settings) -> Waiting:
    """Entries that have been unchanged for FRAUD_FILE_QUIET_SECONDS and are not still being written.

    Links that lead nowhere and pipes are among the files: they are refused like a file that cannot be read.

    Raises:
        OSError: the drop folder itself cannot be read.
    """
    waiting = Waiting([], [])
    try:
        entries = sorted(settings.incoming.iterdir())
    except FileNotFoundError:
        return waiting
    for path in entries:
        if _is_unfinished(path.name):
            continue
        try:
            status = _status(path)
        except FileNotFoundError:
            continue
        # A file of the future (a copied time, another clock) would otherwise wait for that day.
        if abs(time.time() - status.st_mtime) >= settings.file_quiet_seconds:
            (waiting.folders if stat.S_ISDIR(status.st_mode) else waiting.files).append(path)
    return waiting


def _is_unfinished(name: str) -> bool:
    lowered = name.lower()
    return (
        lowered.startswith(_UNFINISHED_PREFIXES)
        or lowered.endswith(_UNFINISHED_SUFFIXES)
        or lowered in _UNFINISHED_NAMES
    )


def _status(path: Path) -> os.stat_result:
    """What a path leads to; where a link leads nowhere, the link itself."""
    try:
        return path.stat()
    except OSError:
        return path.lstat()


def state_of(path: Path) -> tuple[int, ...]:
    """Changes when an entry changes: its content, its permissions, its place.

    Raises:
        OSError: it is gone, or the drop folder cannot be read.
    """
    itself, target = path.lstat(), _status(path)
    times = (itself.st_ctime_ns, itself.st_mtime_ns, itself.st_size, itself.st_ino)
    return (*times, target.st_mtime_ns, target.st_size, target.st_ino)


def obstacle(path: Path) -> str:
    """Why an entry is not a file that can be read, in one sentence; empty where it is one.

    Raises:
        FileNotFoundError: it is gone.
        OSError: it cannot be said now, because of a fault that passes.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if is_temporary(error) or not path.is_symlink():
            raise
        return (
            f"It is a symbolic link to {printable(path.readlink())}, which cannot be read ({error.strerror}). Drop the "
            "file itself."
        )
    kind = next((name for is_kind, name in _KINDS.items() if is_kind(mode)), "")
    return f"It is {kind}, not a file. Drop a file." if kind else ""


def folder_remedy(path: Path) -> str:
    """What to say about a folder in the drop folder."""
    return (
        f"{name_of(path)} is a folder, and only files are landed. Move the files out of the folder into "
        f"{printable(path.parent)}, then remove the folder."
    )


def name_of(path: Path) -> str:
    """The name of an entry for tables, reports, logs and people, with everything escaped that does not print."""
    return printable(path.name)


# ---------------------------------------------------------------------------------------------------------
# How a file leaves the drop folder.


def move(path: Path, folder: Path, reason: str = "") -> Path:
    """Moves an entry into a folder without overwriting another, and writes the reason beside it, if one is given.

    A link is moved, not what it leads to. Where the move fails, nothing is left in the folder.

    Returns:
        Where the entry is.

    Raises:
        OSError: the entry is where it was.
    """
    target = _free_name(path, folder)
    beside = target.with_name(target.name + REASON)
    try:
        if reason:
            beside.write_text(reason + "\n", "utf-8", "backslashreplace")
        _rename(path, target)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    return target


def withhold(path: Path, folder: Path, suffix: str, receipt: str) -> Path:
    """Removes an entry and leaves a receipt in a folder, under the entry's name and a suffix.

    Returns:
        Where the receipt is.

    Raises:
        OSError: the entry is where it was, and there is no receipt.
    """
    target = _free_name(path, folder)
    written = target.with_name(target.name + suffix)
    try:
        written.write_text(receipt, "utf-8")
        path.unlink()
    except OSError:
        with suppress(OSError):
            written.unlink(missing_ok=True)
        raise
    return written


def _rename(path: Path, target: Path) -> None:
    try:
        path.rename(target)
    except OSError as error:
        mode = path.lstat().st_mode
        # A pipe or a device has no content that could be copied to another file system.
        if error.errno != errno.EXDEV or not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise
    else:
        return
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.copy2(path, part, follow_symlinks=False)
        part.rename(target)
        path.unlink()
    except OSError:
        for left in (part, target):
            with suppress(OSError):
                left.unlink(missing_ok=True)
        raise


def _free_name(path: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = path.name if len(os.fsencode(path.name)) <= _LONGEST_NAME else _shortened(path)
    target, number = folder / name, 0
    # `lexists` sees a link that leads nowhere, which a move would overwrite.
    while any(os.path.lexists(target.with_name(target.name + suffix)) for suffix in ("", REASON, RECEIPT)):
        number += 1
        target = folder / f"{Path(name).stem}.{number}{Path(name).suffix}"
    return target


def _shortened(path: Path) -> str:
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= _LONGEST_SUFFIX else ""
    return os.fsencode(path.name)[: _LONGEST_NAME - len(os.fsencode(suffix))].decode(errors="ignore") + suffix


# ---------------------------------------------------------------------------------------------------------
# Entries that stay.


@dataclass
class _Stuck:
    reason: str
    state: tuple[int, ...]
    again: float
    pause: float


@dataclass
class StuckEntries:
    """Entries that cannot be taken and stay in the drop folder: why, and when the next try is due.

    A lander keeps one for its life, so that it does not try the same file in every look and says each reason once.
    """

    now: Callable[[], float] = time.monotonic
    _by_path: dict[Path, _Stuck] = field(default_factory=dict)

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why each entry stays, by its name."""
        return {name_of(path): entry.reason for path, entry in self._by_path.items()}

    def add(self, path: Path, reason: str) -> bool:
        """Notes that an entry stays. Returns whether that was not known yet."""
        known = self._by_path.get(path)
        pause = min(known.pause * 2, _LONGEST_PAUSE_SECONDS) if known else _FIRST_PAUSE_SECONDS
        try:
            state = state_of(path)
        except OSError:
            state = ()
        self._by_path[path] = _Stuck(reason, state, self.now() + pause, pause)
        return known is None or known.reason != reason

    def is_due(self, path: Path) -> bool:
        """Whether to try an entry: it is new, it has changed, or its pause is over."""
        known = self._by_path.get(path)
        if known is None or self.now() >= known.again:
            return True
        try:
            return state_of(path) != known.state
        except OSError:
            return True

    def taken(self, path: Path) -> None:
        """Forgets an entry that was taken."""
        self._by_path.pop(path, None)

    def keep(self, present: Iterable[Path]) -> None:
        """Forgets all entries but those that are still there."""
        there = set(present)
        for path in [path for path in self._by_path if path not in there]:
            del self._by_path[path]
