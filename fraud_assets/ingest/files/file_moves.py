"""Moves entries out of the drop folder without overwriting anything."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from fraud_assets.ingest.files.drop_folder import REASON, RECEIPT

_LONGEST_NAME = 255 - len(RECEIPT) - len(".999999")
"""Maximum bytes of a name: the limit of file systems minus the space for a suffix and a number."""
_LONGEST_SUFFIX = 20
"""Maximum bytes of the suffix that a shortened name keeps."""


def move_entry(path: Path, folder: Path, reason: str = "") -> Path:
    """Moves an entry into a folder and writes the reason, if any, to a file beside it.

    The name gets a number if another entry already has that name. For a link, the link is moved and not its target. If
    the move fails, nothing is left in the folder.

    Returns:
        The new path of the entry.

    Raises:
        OSError: the entry was not moved.
    """
    target = _find_free_name(path, folder)
    reason_file = target.with_name(target.name + REASON)
    try:
        if reason:
            reason_file.write_text(reason + "\n", "utf-8", "backslashreplace")
        _rename(path, target)
    except OSError:
        with suppress(OSError):
            reason_file.unlink(missing_ok=True)
        raise
    return target


def replace_by_note(path: Path, folder: Path, suffix: str, note: str) -> Path:
    """Removes an entry and writes a note to a folder, under the name of the entry plus a suffix.

    Returns:
        The path of the note.

    Raises:
        OSError: the entry was not removed, and there is no note.
    """
    target = _find_free_name(path, folder)
    note_file = target.with_name(target.name + suffix)
    try:
        note_file.write_text(note, "utf-8")
        path.unlink()
    except OSError:
        with suppress(OSError):
            note_file.unlink(missing_ok=True)
        raise
    return note_file


def _rename(path: Path, target: Path) -> None:
    try:
        path.rename(target)
    except OSError as error:
        mode = path.lstat().st_mode
        # A pipe or a device has no content to copy to another file system.
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
        for leftover in (part, target):
            with suppress(OSError):
                leftover.unlink(missing_ok=True)
        raise


def _find_free_name(path: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = path.name if len(os.fsencode(path.name)) <= _LONGEST_NAME else _shorten_name(path)
    target, number = folder / name, 0
    # `exists` misses a broken link, which a move would overwrite; `lexists` finds it.
    while any(os.path.lexists(target.with_name(target.name + suffix)) for suffix in ("", REASON, RECEIPT)):
        number += 1
        target = folder / f"{Path(name).stem}.{number}{Path(name).suffix}"
    return target


def _shorten_name(path: Path) -> str:
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= _LONGEST_SUFFIX else ""
    return os.fsencode(path.name)[: _LONGEST_NAME - len(os.fsencode(suffix))].decode(errors="ignore") + suffix
