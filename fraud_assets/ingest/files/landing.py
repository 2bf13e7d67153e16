"""The drop folder: JSON lines, CSV and Parquet files to the landing tables, exactly once by content.

A file is a stream of its own: its topic_id is the SHA-256 of its content, the offset is the row number. It is
read to its end before anything of it lands, so that a file that cannot be read lands nothing. Then its labels
land, where it has any, then its transactions, and the file moves to `processed/`.

With FRAUD_PSEUDONYMISE no file is kept: a receipt takes its place, and its topic_id is a keyed HMAC, so that nobody
can try out what it may have held.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fraud_assets.core.pseudonyms import keyed_hmac, pseudonymise
from fraud_assets.core.schema import fraud_labels, raw_transactions
from fraud_assets.engines.landing_report import LandingReport, merge_reports
from fraud_assets.engines.landing_tables import append_labels
from fraud_assets.engines.local.landing import never
from fraud_assets.errors import FraudAssetsError, disk_fault, is_temporary
from fraud_assets.ingest.files.contents import Contents, UnusableFile, batches
from fraud_assets.ingest.files.drop_folder import (
    REASON,
    RECEIPT,
    StuckEntries,
    folder_remedy,
    move,
    name_of,
    obstacle,
    state_of,
    waiting_entries,
    withhold,
)
from fraud_assets.ingest.files.examination import examine
from fraud_assets.ingest.files.labels import labels_of_file
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.positions import FILE_LABELS_TOPIC, FILE_TOPIC, SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake
from fraud_assets.printable import printable
from fraud_assets.settings import Settings

_LOCK_SECONDS = 0.1
"""How long to wait for the lock before asking again whether to stop."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileReport:
    """What became of one file: rows and labels that landed now, and why it failed if it did.

    A file that failed is where `moved_to` says; one with a reason that was not moved is still in the drop folder.
    """

    name: str
    rows: int = 0
    labels: int = 0
    quarantined_labels: int = 0
    bytes: int = 0
    seconds: float = 0.0
    moved_to: Path | None = None
    reason: str = ""


class _StaysError(Exception):
    """A file can neither land nor be moved now and stays in the drop folder; the message says why.

    Attributes:
        landed: what had landed of it before, where that is all.
    """

    def __init__(self, reason: str, landed: FileReport | None = None) -> None:
        super().__init__(reason)
        self.landed = landed


def waiting_files(settings: Settings) -> list[Path]:
    """Files of the drop folder that have been unchanged for FRAUD_FILE_QUIET_SECONDS, by name.

    Raises:
        OSError: the drop folder cannot be read.
    """
    return waiting_entries(settings).files


def land_files(
    lake: Lake,
    settings: Settings,
    stop: Callable[[], bool] = never,
    stuck: StuckEntries | None = None,
) -> list[FileReport]:
    """Lands every waiting file, each exactly once by content, and moves it to `processed/` or `failed/`.

    A file that can neither land nor be moved stays, and so does a folder: its report has a reason and no place that it
    was moved to. The others go on.

    Args:
        lake: where to land.
        settings: the drop folder, and how to read the files.
        stop: asked between commits; a file that is stopped or killed half-way stays and goes on next time.
        stuck: what earlier calls could not take, which is tried again after a pause only; this call adds to it.

    Returns:
        What became of each file. An entry that stays is reported when its reason is new.

    Raises:
        LakeError: a table cannot be written; the files stay where they are.
        OSError: the drop folder cannot be read.
    """
    stuck = StuckEntries() if stuck is None else stuck
    waiting = waiting_entries(settings)
    stuck.keep([*waiting.files, *waiting.folders])
    reports = [_stays(folder, folder_remedy(folder), stuck) for folder in waiting.folders]
    if any(stuck.is_due(path) for path in waiting.files):
        with _alone(settings, stop):
            for path in filter(stuck.is_due, waiting_files(settings)):
                if stop():
                    break
                reports.append(_land_or_leave(path, lake, settings, stop, stuck))
    return [report for report in reports if report is not None]


@contextmanager
def _alone(settings: Settings, stop: Callable[[], bool]) -> Iterator[None]:
    """One lander of files at a time: positions guard the tables, but a file moves under another's reading."""
    settings.home_path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(settings.home_path / "files.lock")
    while not stop():
        with suppress(Timeout):
            lock.acquire(timeout=_LOCK_SECONDS)
            break
    try:
        yield
    finally:
        lock.release()


def _land_or_leave(
    path: Path, lake: Lake, settings: Settings, stop: Callable[[], bool], stuck: StuckEntries
) -> FileReport | None:
    """Lands or refuses one file; where neither is possible now, notes why and leaves it for a later try."""
    try:
        report = _land_file(path, lake, settings, stop)
    except FileNotFoundError as error:
        if os.path.lexists(path):
            return _stays(path, f"{name_of(path)} stays where it is: {error}", stuck)
        report = None  # somebody took it away meanwhile
    except _StaysError as error:
        return _stays(path, str(error), stuck, error.landed)
    stuck.taken(path)
    return report


def _stays(path: Path, reason: str, stuck: StuckEntries, landed: FileReport | None = None) -> FileReport | None:
    """Notes that an entry stays; gives its report where that is news."""
    reason = printable(reason)
    is_news = stuck.add(path, reason)
    if not is_news and not (landed and (landed.rows or landed.labels)):
        return None
    logger.info(reason)
    return replace(landed or FileReport(name_of(path)), reason=reason)


def _land_file(path: Path, lake: Lake, settings: Settings, stop: Callable[[], bool]) -> FileReport | None:
    begun, name, content = time.monotonic(), name_of(path), ""
    before = state_of(path)
    try:
        with _faults_of_reading(path):
            _check(path)
            content = _topic_id(path, settings)
            contents = examine(path, settings)
    except UnusableFile as error:
        if state_of(path) != before:
            logger.info(f"{name} changed while it was read; it waits.")
            return None
        moved, reason = _refuse(path, settings, error, content)
        return FileReport(name, seconds=time.monotonic() - begun, moved_to=moved, reason=reason)
    if state_of(path) != before:
        logger.info(f"{name} changed while it was read; it waits.")
        return None
    with _faults_of_landing(path):
        landed = _land_contents(path, contents, content, lake, settings, stop)
    if landed is None:
        return None
    if state_of(path) != before:
        # What was examined has landed; what the file became since is another content, for the next look.
        logger.info(f"{name} changed while it landed; it waits.")
        return None
    with _faults_of_moving(path, settings.processed, replace(landed, seconds=time.monotonic() - begun)):
        if settings.pseudonymise:
            moved = _leave_receipt(path, settings, landed, content)
            removed = "; the file was removed, as FRAUD_PSEUDONYMISE says"
        else:
            moved, removed = move(path, settings.processed), ""
    seconds = time.monotonic() - begun
    again = " (its content had landed before)" if contents.rows and not landed.rows and not landed.labels else ""
    logger.info(f"{name}: {landed.rows:,} rows, {landed.labels:,} labels landed in {seconds:.1f} s{again}{removed}")
    return replace(landed, seconds=seconds, moved_to=moved)


def _check(path: Path) -> None:
    reason = obstacle(path)
    if reason:
        raise UnusableFile(reason)


@contextmanager
def _faults_of_reading(path: Path) -> Iterator[None]:
    """Tells a file that is refused from one that stays: for a fault that passes, or for a setting that is too low."""
    try:
        yield
    except (UnusableFile, FileNotFoundError):
        raise
    except FraudAssetsError as error:
        if not path.exists():
            raise FileNotFoundError(path) from error
        raise _StaysError(f"{name_of(path)} stays where it is. {error}") from error
    except OSError as error:
        if is_temporary(error):
            raise _StaysError(f"{name_of(path)} stays where it is. {disk_fault(error) or error}") from error
        raise UnusableFile(f"It cannot be read ({error.strerror or error}).") from error
    except MemoryError as error:
        raise _StaysError(f"{name_of(path)} stays where it is: there is too little memory to read it.") from error
    # A fault of our own or of a library must not stop what is behind this file.
    except Exception as error:
        plain = f"It cannot be read because of an unexpected error ({type(error).__name__})."
        raise UnusableFile(f"{plain[:-2]}: {error}).", plain) from error


@contextmanager
def _faults_of_landing(path: Path) -> Iterator[None]:
    """Leaves a file that cannot be read again while it lands; what the lake says is for all files and goes on."""
    try:
        yield
    except (FraudAssetsError, FileNotFoundError):
        raise
    # The words of the error could quote the file, which FRAUD_PSEUDONYMISE forbids.
    except Exception as error:
        cause = disk_fault(error) if isinstance(error, OSError) else None
        raise _StaysError(
            f"{name_of(path)} stays where it is. {cause or f'It cannot be read any more ({type(error).__name__}).'} "
            "What landed of it is kept and will not land again."
        ) from error


@contextmanager
def _faults_of_moving(path: Path, folder: Path, landed: FileReport | None = None) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _StaysError(
            f"{path} cannot be moved to {folder} ({error.strerror or error}). Check that both folders are writable; "
            "what landed of it is kept and will not land again.",
            landed,
        ) from error


def _land_contents(
    path: Path, contents: Contents, content: str, lake: Lake, settings: Settings, stop: Callable[[], bool]
) -> FileReport | None:
    """Lands the labels of an examined file, then its transactions; None where it was stopped in between."""
    name = name_of(path)
    labels = quarantined = rows = size = 0
    if contents.has_labels:
        stream = SourcePartition(FILE_LABELS_TOPIC + name, content, 0)
        known = committed_offset(lake.open(fraud_labels), stream)
        for messages in batches(contents, stream, known, settings):
            batch = pseudonymise(messages, settings.pseudonym_policy)
            parsed = labels_of_file(batch, settings)
            landed, refused = append_labels(lake, settings, batch, parsed)
            labels, quarantined = labels + landed, quarantined + refused
            if stop():
                return None
    if contents.has_transactions:
        stream = SourcePartition(FILE_TOPIC + name, content, 0)
        known = committed_offset(lake.open(raw_transactions), stream)
        for messages in batches(contents, stream, known, settings):
            batch = pseudonymise(messages, settings.pseudonym_policy)
            rows += append_landed(lake, raw_transactions, batch, metadata={"file": name})
            size += batch["value"].nbytes
            if stop():
                return None
    return FileReport(name, rows, labels, quarantined, size)


def _refuse(path: Path, settings: Settings, error: UnusableFile, content: str) -> tuple[Path, str]:
    """Moves a file that cannot be landed to `failed/`, its reason beside it; gives where it is, and the reason.

    With FRAUD_PSEUDONYMISE the file is removed, and the reason does not quote it. A file that the system does not let
    us read stays then, for nothing of it could be kept.
    """
    name = name_of(path)
    if not settings.pseudonymise:
        reason = printable(error)
        with _faults_of_moving(path, settings.failed):
            moved = move(path, settings.failed, reason)
        logger.info(f"{name} cannot be landed: {reason} It is in {moved.parent}.")
        return moved, reason
    cause = error.__cause__
    # Arrow raises OSError without a number for damaged content, which was read.
    if isinstance(cause, OSError) and cause.errno is not None and not path.is_symlink():
        raise _StaysError(
            f"{name} stays where it is. {error.plain} FRAUD_PSEUDONYMISE removes a file only after it was read. "
            "Make it readable, or remove it."
        )
    kept = f"{error.plain}\n"
    if content:
        kept += f"{path.stat().st_size} bytes, HMAC-SHA-256 {content}\n"
    with _faults_of_moving(path, settings.failed):
        moved = withhold(path, settings.failed, REASON, kept)
    logger.info(
        f"{name} cannot be landed: {error.plain} It was removed, as FRAUD_PSEUDONYMISE says; its reason is in "
        f"{moved.parent}."
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
    return withhold(path, settings.processed, RECEIPT, json.dumps(receipt) + "\n")


def _topic_id(path: Path, settings: Settings) -> str:
    """What a file is known by: the SHA-256 of its content, or a keyed HMAC of that with FRAUD_PSEUDONYMISE."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256")
    return keyed_hmac(content.digest(), settings.pseudonym_policy) if settings.pseudonymise else content.hexdigest()


def with_files(reports: dict[str, LandingReport], files: list[FileReport]) -> dict[str, LandingReport]:
    """Reports with what the drop folder added."""
    for file in files:
        failed = {file.name: file.reason} if file.reason and file.moved_to else {}
        stuck = {file.name: file.reason} if file.reason and not file.moved_to else {}
        for part in (
            LandingReport(
                fraud_labels.name,
                file.labels,
                quarantined=file.quarantined_labels,
                files={file.name: file.labels} if file.labels else {},
            ),
            LandingReport(
                raw_transactions.name,
                file.rows,
                file.bytes,
                seconds=file.seconds,
                files={file.name: file.rows} if file.rows or not file.reason else {},
                failed=failed,
                stuck=stuck,
            ),
        ):
            reports[part.table] = merge_reports(reports[part.table], part)
    return reports
