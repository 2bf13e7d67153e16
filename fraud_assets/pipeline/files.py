"""The drop folder: JSON lines, CSV and Parquet files to the landing tables, exactly once by content.

A file is a stream of its own: its lineage is the SHA-256 of its content, the offset is the row number. It is
read to its end before anything of it lands, so that a file that cannot be read lands nothing. Then its labels
land, where it has any, then its transactions, and the file moves to `processed/`.

With FRAUD_PSEUDONYMISE no file is kept: a receipt takes its place, and its lineage is a keyed HMAC, so that nobody
can try out what it may have held.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fraud_assets.core.pseudonyms import keyed_hmac, pseudonymise
from fraud_assets.core.schema import fraud_labels, raw_transactions
from fraud_assets.errors import LakeError
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.positions import FILE_LABELS_TOPIC, FILE_TOPIC, Stream, stored
from fraud_assets.lake.tables import Lake
from fraud_assets.pipeline.file_contents import FORMATS, Contents, UnusableFile, batches, examine, name_of
from fraud_assets.pipeline.file_labels import labels_of_file
from fraud_assets.pipeline.landing import Progress, append_labels, never
from fraud_assets.settings import Settings

_PART = ".part"
_REASON = ".reason.txt"
_RECEIPT = ".receipt.json"
_LOCK_PAUSE_SECONDS = 0.1
_LONGEST_NAME = 255 - len(_RECEIPT) - len(".999999")  # bytes that a file system takes, less what is put behind


@dataclass(frozen=True)
class FileReport:
    """What became of one file: rows and labels that landed now, and why it failed if it did."""

    name: str
    rows: int = 0
    labels: int = 0
    quarantined_labels: int = 0
    bytes: int = 0
    seconds: float = 0.0
    moved_to: Path | None = None
    reason: str = ""


def waiting_files(settings: Settings) -> list[Path]:
    """Files of the drop folder that have been unchanged for FRAUD_FILE_QUIET_SECONDS, by name."""
    try:
        entries = sorted(settings.incoming.iterdir())
    except FileNotFoundError:
        return []
    ready = []
    for path in entries:
        if path.name.startswith(".") or path.name.lower().endswith(_PART):
            continue
        try:
            changed = path.stat().st_mtime
            # A file of the future (a copied time, another clock) would otherwise wait for that day.
            quiet = abs(time.time() - changed) >= settings.file_quiet_seconds
        except FileNotFoundError:
            continue
        if quiet and path.is_file():
            ready.append(path)
    return ready


def land_files(
    lake: Lake, settings: Settings, progress: Progress, stop: Callable[[], bool] = never
) -> list[FileReport]:
    """Lands every waiting file, each exactly once by content, and moves it to `processed/` or `failed/`.

    `stop` is asked between commits; a file that is stopped or killed half-way stays and goes on next time.

    Raises:
        LakeError: a table cannot be written; the file stays where it is.
    """
    if not waiting_files(settings):
        return []
    reports = []
    with _alone(settings, stop):
        for path in waiting_files(settings):
            if stop():
                break
            report = _land_file(path, lake, settings, progress, stop)
            if report is not None:
                reports.append(report)
    return reports


@contextmanager
def _alone(settings: Settings, stop: Callable[[], bool]) -> Iterator[None]:
    """One lander of files at a time: positions guard the tables, but a file moves under another's reading."""
    settings.home_path.mkdir(parents=True, exist_ok=True)
    with (settings.home_path / "files.lock").open("a") as lock:
        while not stop():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_LOCK_PAUSE_SECONDS)
        yield


def _land_file(
    path: Path, lake: Lake, settings: Settings, progress: Progress, stop: Callable[[], bool]
) -> FileReport | None:
    begun = time.monotonic()
    try:
        before = _state(path)
        content = _lineage(path, settings)
        contents = examine(path, settings)
        if _state(path) != before:
            progress(f"{name_of(path)} changed while it was read; it waits.")
            return None
    except FileNotFoundError:
        return None
    except (UnusableFile, OSError) as error:
        if not settings.pseudonymise:
            moved, reason = _refuse(path, settings, error, progress)
        elif isinstance(error, OSError):
            raise  # of what cannot be read nothing can be kept, so nothing is removed
        elif _state(path) != before:
            progress(f"{name_of(path)} changed while it was read; it waits.")
            return None
        else:
            moved, reason = _refuse_withheld(path, settings, error, content, progress)
        return FileReport(name_of(path), seconds=time.monotonic() - begun, moved_to=moved, reason=reason)
    landed = _land_contents(path, contents, content, lake, settings, stop)
    if landed is None:
        return None
    if _state(path) != before:
        # What was examined has landed; what the file became since is another content, for the next look.
        progress(f"{name_of(path)} changed while it landed; it waits.")
        return None
    if settings.pseudonymise:
        moved = _leave_receipt(path, settings, landed, content)
        removed = "; the file was removed, as FRAUD_PSEUDONYMISE says"
    else:
        moved, removed = _move(path, settings.processed), ""
    seconds = time.monotonic() - begun
    again = " (its content had landed before)" if contents.rows and not landed.rows and not landed.labels else ""
    progress(
        f"{name_of(path)}: {landed.rows:,} rows, {landed.labels:,} labels landed in {seconds:.1f} s{again}{removed}"
    )
    return replace(landed, seconds=seconds, moved_to=moved)


def _land_contents(
    path: Path, contents: Contents, content: str, lake: Lake, settings: Settings, stop: Callable[[], bool]
) -> FileReport | None:
    """Lands the labels of an examined file, then its transactions; None where it was stopped in between."""
    name = name_of(path)
    labels = quarantined = rows = size = 0
    if contents.has_labels:
        stream = Stream(FILE_LABELS_TOPIC + name, content, 0)
        known = stored(lake.open(fraud_labels), stream)
        for messages in batches(contents, stream, known, settings):
            batch = pseudonymise(messages, settings)
            parsed = labels_of_file(batch, settings)
            landed, refused = append_labels(lake, settings, batch, parsed)
            labels, quarantined = labels + landed, quarantined + refused
            if stop():
                return None
    if contents.has_transactions:
        stream = Stream(FILE_TOPIC + name, content, 0)
        known = stored(lake.open(raw_transactions), stream)
        for messages in batches(contents, stream, known, settings):
            batch = pseudonymise(messages, settings)
            rows += append_landed(lake, raw_transactions, batch, metadata={"file": name})
            size += batch["value"].nbytes
            if stop():
                return None
    return FileReport(name, rows, labels, quarantined, size)


def _refuse(path: Path, settings: Settings, error: Exception, progress: Progress) -> tuple[Path, str]:
    """Moves a file that cannot be landed to `failed/`, its reason beside it; gives where it is, and the reason."""
    reason = str(error)
    moved = _move(path, settings.failed)
    moved.with_name(f"{moved.name}{_REASON}").write_text(reason + "\n", "utf-8", "backslashreplace")
    progress(f"{name_of(path)} cannot be landed: {reason} It is in {moved.parent}.")
    return moved, reason


def _refuse_withheld(
    path: Path, settings: Settings, error: UnusableFile, content: str, progress: Progress
) -> tuple[Path, str]:
    """The same without the file and without a word of it."""
    kept = f"{error.plain}\n{path.stat().st_size} bytes, HMAC-SHA-256 {content}\n"
    moved = _withhold(path, settings.failed, _REASON, kept)
    progress(
        f"{name_of(path)} cannot be landed: {error.plain} It was removed, as FRAUD_PSEUDONYMISE says; reason and HMAC "
        f"are in {moved.parent}."
    )
    return moved, error.plain


def _leave_receipt(path: Path, settings: Settings, landed: FileReport, content: str) -> Path:
    """Removes a landed file and leaves a receipt in `processed/`; gives where that is."""
    receipt = {
        "file": name_of(path),
        "bytes": path.stat().st_size,
        "hmac_sha256": content,
        "rows": landed.rows,
        "labels": landed.labels,
        "landed_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return _withhold(path, settings.processed, _RECEIPT, json.dumps(receipt) + "\n")


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _lineage(path: Path, settings: Settings) -> str:
    """What a file is known by: the SHA-256 of its content, or a keyed HMAC of that with FRAUD_PSEUDONYMISE."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256")
    return keyed_hmac(content.digest(), settings) if settings.pseudonymise else content.hexdigest()


def _move(path: Path, folder: Path) -> Path:
    """Moves a file without overwriting another; gives where it is."""
    with _folder_faults(path, folder):
        target = _free_name(path, folder)
        shutil.move(path, target)
    return target


def _withhold(path: Path, folder: Path, suffix: str, receipt: str) -> Path:
    """Removes a file and leaves a receipt under its name and a suffix; gives where that is."""
    with _folder_faults(path, folder):
        target = _free_name(path, folder)
        written = target.with_name(target.name + suffix)
        written.write_text(receipt, "utf-8")
        path.unlink()
    return written


def _free_name(path: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = path.name if len(os.fsencode(path.name)) <= _LONGEST_NAME else _shortened(path)
    target, number = folder / name, 0
    while any(target.with_name(target.name + suffix).exists() for suffix in ("", _REASON, _RECEIPT)):
        number += 1
        target = folder / f"{Path(name).stem}.{number}{Path(name).suffix}"
    return target


def _shortened(path: Path) -> str:
    suffix = path.suffix if path.suffix.lower() in FORMATS else ""
    return os.fsencode(path.name)[: _LONGEST_NAME - len(suffix)].decode(errors="ignore") + suffix


@contextmanager
def _folder_faults(path: Path, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LakeError(
            f"{path} cannot be moved to {folder} ({error.strerror or error}). Check that both folders are writable; "
            "what landed of it is kept and will not land again."
        ) from error
