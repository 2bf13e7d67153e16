"""Moves a finished file out of the drop folder: to `processed/` if it landed, to `failed/` if it was refused.

With FRAUD_PSEUDONYMISE the file is removed. A receipt or a reason without the content replaces it.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

from fraud_assets.ingest.files.contents import UnusableFileError
from fraud_assets.ingest.files.drop_folder import REASON, RECEIPT, escape_name
from fraud_assets.ingest.files.file_faults import FileStaysError, classify_moving_faults
from fraud_assets.ingest.files.file_moves import move_entry, replace_by_note
from fraud_assets.ingest.files.file_report import FileReport
from fraud_assets.printable import escape_unprintable
from fraud_assets.settings import Settings

logger = logging.getLogger(__name__)


def finish_landed_file(path: Path, settings: Settings, landed: FileReport, topic_id: str) -> Path:
    """Moves a landed file to `processed/`, or replaces it by a receipt, and returns the new path.

    Raises:
        FileStaysError: the file cannot be moved or removed.
    """
    with classify_moving_faults(path, settings.processed, landed):
        if not settings.pseudonymise:
            return move_entry(path, settings.processed)
        receipt = {
            "file": escape_name(path),
            "bytes": path.stat().st_size,
            "hmac_sha256": topic_id,
            "rows": landed.rows,
            "labels": landed.labels,
            "landed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return replace_by_note(path, settings.processed, RECEIPT, json.dumps(receipt) + "\n")


def refuse_file(path: Path, settings: Settings, error: UnusableFileError, topic_id: str) -> tuple[Path, str]:
    """Moves a file that cannot be landed to `failed/` and writes the reason beside it.

    With FRAUD_PSEUDONYMISE the file is removed, and the reason does not quote it. If the operating system does not
    allow reading the file, it stays in the drop folder, because its content would be lost unread.

    Returns:
        The path of the moved file, or of the reason if the file was removed; and the reason.

    Raises:
        FileStaysError: the file cannot be moved or removed.
    """
    name = escape_name(path)
    if not settings.pseudonymise:
        reason = escape_unprintable(error)
        with classify_moving_faults(path, settings.failed):
            moved = move_entry(path, settings.failed, reason)
        logger.warning(f"{name} cannot be landed: {reason} It was moved to {moved.parent}.")
        return moved, reason
    cause = error.__cause__
    # Arrow raises an OSError without an error number for damaged content, which it could read.
    if isinstance(cause, OSError) and cause.errno is not None and not path.is_symlink():
        raise FileStaysError(
            f"{name} stays in the drop folder. {error.safe_reason} With FRAUD_PSEUDONYMISE a file is removed only "
            "after it was read. Make it readable, or remove it."
        )
    note = f"{error.safe_reason}\n"
    if topic_id:
        note += f"{path.stat().st_size} bytes, HMAC-SHA-256 {topic_id}\n"
    with classify_moving_faults(path, settings.failed):
        moved = replace_by_note(path, settings.failed, REASON, note)
    logger.warning(
        f"{name} cannot be landed: {error.safe_reason} The file was removed because FRAUD_PSEUDONYMISE is set. The "
        f"reason is in {moved.parent}."
    )
    return moved, error.safe_reason
