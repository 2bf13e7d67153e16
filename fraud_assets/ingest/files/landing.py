"""Lands JSON lines, CSV and Parquet files from the drop folder, each exactly once by its content.

Each file is a source partition of its own. Its topic_id is the SHA-256 of its content, and an offset is a row number.
A file is read completely before any of it lands, so a file that cannot be read lands nothing. Its labels, if any, land
first, then its transactions. Then the file moves to `processed/`.

With FRAUD_PSEUDONYMISE no file is kept: a receipt replaces it. The topic_id is then a keyed HMAC, so that readers of
the lake cannot test guesses of the content.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from fraud_assets.core.pseudonyms import compute_hmac, pseudonymise
from fraud_assets.core.schema import fraud_labels, raw_transactions
from fraud_assets.engines.landing_tables import append_labels
from fraud_assets.ingest.files.contents import Contents, UnusableFileError, read_batches
from fraud_assets.ingest.files.drop_folder import (
    describe_folder,
    describe_obstacle,
    escape_name,
    find_waiting_entries,
    read_state,
)
from fraud_assets.ingest.files.examination import examine
from fraud_assets.ingest.files.file_faults import FileStaysError, classify_landing_faults, classify_reading_faults
from fraud_assets.ingest.files.file_report import FileReport
from fraud_assets.ingest.files.finished_files import finish_landed_file, refuse_file
from fraud_assets.ingest.files.labels import parse_file_labels
from fraud_assets.ingest.files.stuck_entries import StuckEntries
from fraud_assets.kafka.topic_client import never
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.positions import FILE_LABELS_TOPIC, FILE_TOPIC, SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake
from fraud_assets.printable import escape_unprintable
from fraud_assets.settings import Settings

_LOCK_SECONDS = 0.1
"""Time to wait for the lock before checking again whether to stop."""

logger = logging.getLogger(__name__)


def find_waiting_files(settings: Settings) -> list[Path]:
    """Returns the files of the drop folder that have not changed for FRAUD_FILE_QUIET_SECONDS, sorted by name.

    Raises:
        OSError: the drop folder cannot be read.
    """
    return find_waiting_entries(settings).files


def land_files(
    lake: Lake,
    settings: Settings,
    stop: Callable[[], bool] = never,
    stuck: StuckEntries | None = None,
) -> list[FileReport]:
    """Lands every waiting file exactly once by content, and moves it to `processed/` or `failed/`.

    A file that can neither land nor be moved stays in the drop folder, and so does a folder. Its report has a reason
    and no new path. Other files are not affected.

    Args:
        lake: the lake to land into.
        settings: define the drop folder and the format of the files.
        stop: called between commits. A file whose landing is stopped or killed stays, and the next call continues it.
        stuck: entries that stayed after earlier calls and are tried again only after a pause; this call adds to it.

    Returns:
        A report for each file. An entry that stays is reported only when its reason is new.

    Raises:
        LakeError: a table cannot be written; the files stay in the drop folder.
        OSError: the drop folder cannot be read.
    """
    stuck = StuckEntries() if stuck is None else stuck
    waiting = find_waiting_entries(settings)
    stuck.keep_only([*waiting.files, *waiting.folders])
    reports = [_report_stuck(folder, describe_folder(folder), stuck) for folder in waiting.folders]
    if any(stuck.is_due(path) for path in waiting.files):
        with _lock_drop_folder(settings, stop):
            for path in filter(stuck.is_due, find_waiting_files(settings)):
                if stop():
                    break
                reports.append(_land_or_leave(path, lake, settings, stop, stuck))
    return [report for report in reports if report is not None]


@contextmanager
def _lock_drop_folder(settings: Settings, stop: Callable[[], bool]) -> Iterator[None]:
    """Lets one process at a time land files.

    Positions protect the tables, but one process could move a file while another reads it.
    """
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
    """Lands or refuses one file. If neither is possible now, records the reason and leaves the file for a later try."""
    try:
        report = _land_file(path, lake, settings, stop)
    except FileNotFoundError as error:
        if os.path.lexists(path):
            return _report_stuck(path, f"{escape_name(path)} stays in the drop folder: {error}", stuck)
        report = None  # Another program has removed the file.
    except FileStaysError as error:
        return _report_stuck(path, str(error), stuck, error.landed)
    stuck.remove(path)
    return report


def _report_stuck(path: Path, reason: str, stuck: StuckEntries, landed: FileReport | None = None) -> FileReport | None:
    """Records that an entry stays, and returns its report if the reason is new or rows have landed."""
    reason = escape_unprintable(reason)
    is_new = stuck.add(path, reason)
    if not is_new and not (landed and (landed.rows or landed.labels)):
        return None
    logger.info(reason)
    return replace(landed or FileReport(escape_name(path)), reason=reason)


def _land_file(path: Path, lake: Lake, settings: Settings, stop: Callable[[], bool]) -> FileReport | None:
    start, name, topic_id = time.monotonic(), escape_name(path), ""
    before = read_state(path)
    try:
        with classify_reading_faults(path):
            _check_readable(path)
            topic_id = _topic_id(path, settings)
            contents = examine(path, settings)
    except UnusableFileError as error:
        if read_state(path) != before:
            logger.info(f"{name} changed while it was read. It waits for the next pass.")
            return None
        moved, reason = refuse_file(path, settings, error, topic_id)
        return FileReport(name, seconds=time.monotonic() - start, moved_to=moved, reason=reason)
    if read_state(path) != before:
        logger.info(f"{name} changed while it was read. It waits for the next pass.")
        return None
    with classify_landing_faults(path):
        landed = _land_contents(path, contents, topic_id, lake, settings, stop)
    if landed is None:
        return None
    if read_state(path) != before:
        # The examined content has landed. The next pass lands the new content of the changed file.
        logger.info(f"{name} changed while it landed. It waits for the next pass.")
        return None
    moved = finish_landed_file(path, settings, replace(landed, seconds=time.monotonic() - start), topic_id)
    landed = replace(landed, seconds=time.monotonic() - start, moved_to=moved)
    _log_landed(landed, contents, settings)
    return landed


def _log_landed(landed: FileReport, contents: Contents, settings: Settings) -> None:
    notes = ""
    if contents.rows and not landed.rows and not landed.labels:
        notes += ". The same content had landed before"
    if settings.pseudonymise:
        notes += ". The file was removed because FRAUD_PSEUDONYMISE is set"
    logger.info(
        f"{landed.name}: {landed.rows:,} rows and {landed.labels:,} labels landed in {landed.seconds:.1f} s{notes}."
    )


def _check_readable(path: Path) -> None:
    reason = describe_obstacle(path)
    if reason:
        raise UnusableFileError(reason)


def _topic_id(path: Path, settings: Settings) -> str:
    """Returns the identity of a file: the SHA-256 of its content, or with FRAUD_PSEUDONYMISE a keyed HMAC of that."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256")
    return compute_hmac(content.digest(), settings.pseudonym_policy) if settings.pseudonymise else content.hexdigest()


def _land_contents(
    path: Path, contents: Contents, topic_id: str, lake: Lake, settings: Settings, stop: Callable[[], bool]
) -> FileReport | None:
    """Lands the labels of an examined file, then its transactions. Returns None if it was stopped between commits."""
    name = escape_name(path)
    labels = quarantined = rows = size = 0
    if contents.has_labels:
        partition = SourcePartition(FILE_LABELS_TOPIC + name, topic_id, 0)
        known = committed_offset(lake.open(fraud_labels), partition)
        for messages in read_batches(contents, partition, known, settings):
            batch = pseudonymise(messages, settings.pseudonym_policy)
            parsed = parse_file_labels(batch, settings)
            landed, refused = append_labels(lake, settings, batch, parsed)
            labels, quarantined = labels + landed, quarantined + refused
            if stop():
                return None
    if contents.has_transactions:
        partition = SourcePartition(FILE_TOPIC + name, topic_id, 0)
        known = committed_offset(lake.open(raw_transactions), partition)
        for messages in read_batches(contents, partition, known, settings):
            batch = pseudonymise(messages, settings.pseudonym_policy)
            rows += append_landed(lake, raw_transactions, batch, metadata={"file": name})
            size += batch["value"].nbytes
            if stop():
                return None
    return FileReport(name, rows, labels, quarantined, size)
