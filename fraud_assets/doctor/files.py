"""Checks the drop folder: entries that cannot land, files that wait, and files that failed."""

from __future__ import annotations

from pathlib import Path

from fraud_assets.doctor.finding import Finding, fail, ok, warn
from fraud_assets.ingest.files.drop_folder import REASON, describe_folder, escape_name, find_waiting_entries
from fraud_assets.settings import Settings

_LATE_SECONDS = 3_600
_SHOWN = 3


def check_files(settings: Settings) -> list[Finding]:
    """Looks for folders in the drop folder, files that have waited there for an hour, and files in `failed/`."""
    late = settings.model_copy(update={"file_quiet_seconds": max(_LATE_SECONDS, settings.file_quiet_seconds)})
    name = "drop folder"
    try:
        folders, waiting = find_waiting_entries(settings).folders, find_waiting_entries(late).files
        failed = [path for path in settings.failed.iterdir() if path.name.endswith(REASON)]
    except FileNotFoundError:
        failed = []
    except OSError as error:
        fix = "Correct its owner and its permissions."
        return [fail(name, f"{settings.incoming} cannot be read: {error.strerror or error}", fix)]
    found = [warn(name, *describe_folder(folder).split(". ", 1)) for folder in folders[:_SHOWN]]
    if waiting:
        first = f"{escape_name(waiting[0])}{_and_more(waiting)}"
        text = f"{_count_files(waiting, 'has', 'have')} waited for an hour or longer: {first}"
        fix = f"Start `fraud-assets land`. If it runs, its log names the reason for each file in {settings.incoming}."
        found.append(warn(name, text, fix))
    if failed:
        newest = max(failed, key=lambda path: path.lstat().st_mtime)
        text = f"{_count_files(failed, 'failed', 'failed')}, the last is {escape_name(newest).removesuffix(REASON)}"
        fix = f"Read the reasons in {settings.failed}, drop corrected files, and remove the failed ones from there."
        found.append(warn(name, text, fix))
    return found or [ok(name, f"{settings.incoming}, no file failed and none is stuck")]


def _count_files(paths: list[Path], one: str, many: str) -> str:
    return f"1 file {one}" if len(paths) == 1 else f"{len(paths):,} files {many}"


def _and_more(paths: list[Path]) -> str:
    return f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
