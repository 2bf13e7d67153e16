"""Reports the result of landing one dropped file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fraud_assets.core.schema import fraud_labels, raw_transactions
from fraud_assets.engines.landing_report import LandingReport, merge_reports


@dataclass(frozen=True)
class FileReport:
    """The result of landing one file.

    Attributes:
        name: the printable name of the file.
        rows: transactions that this call landed.
        labels: labels that this call landed.
        quarantined_labels: labels that this call quarantined.
        bytes: bytes of the bodies of the transactions.
        seconds: time from the start of reading to the move.
        moved_to: the new path of the file, of its receipt or of its reason; None if it is still in the drop folder.
        reason: why the file failed or stays; empty for a file that landed.
    """

    name: str
    rows: int = 0
    labels: int = 0
    quarantined_labels: int = 0
    bytes: int = 0
    seconds: float = 0.0
    moved_to: Path | None = None
    reason: str = ""


def add_file_reports(reports: dict[str, LandingReport], files: list[FileReport]) -> dict[str, LandingReport]:
    """Adds the results of dropped files to the reports of the landing tables, and returns these reports."""
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
