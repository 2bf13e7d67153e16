"""Reports of landing, for Dagster, the command line and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fraud_assets.core.schema import fraud_labels, raw_transactions
from fraud_assets.lake.positions import Positions


@dataclass(frozen=True)
class LandingReport:
    """The result of one landing for one table.

    Attributes:
        table: Name of the table.
        rows: Number of rows that this landing committed.
        bytes: Bytes of their keys and bodies.
        quarantined: Number of labels that it rejected.
        seconds: Duration.
        offsets: Last offset in the table, by `topic/partition`.
        lag: Messages that the topic held at the start of landing and that are not in the table, by `topic/partition`.
        files: Rows by dropped file.
        failed: Reason by dropped file that was moved to `failed/`.
        stuck: Reason by entry of the drop folder that could not be processed and is still there.
    """

    table: str
    rows: int = 0
    bytes: int = 0
    quarantined: int = 0
    seconds: float = 0.0
    offsets: Mapping[str, int] = field(default_factory=dict)
    lag: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    stuck: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_changes(self) -> bool:
        """Whether rows or files landed, or entries of the drop folder could not land."""
        return bool(self.rows or self.files or self.failed or self.stuck)

    def metadata(self) -> dict[str, Any]:
        """Returns the report as JSON values, for Dagster and the command line."""
        values: dict[str, Any] = {
            "rows": self.rows,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "offsets": dict(self.offsets),
            "lag": dict(self.lag),
            "files": dict(self.files),
        }
        if self.table == fraud_labels.name:
            values["quarantined_labels"] = self.quarantined
        if self.failed:
            values["failed_files"] = dict(self.failed)
        if self.stuck:
            values["stuck_files"] = dict(self.stuck)
        return values


def create_reports(*, transactions: bool = True) -> dict[str, LandingReport]:
    """Returns an empty report for each landing table, labels first; only for labels if `transactions` is false."""
    tables = (fraud_labels, raw_transactions) if transactions else (fraud_labels,)
    return {table.name: LandingReport(table.name) for table in tables}


def merge_reports(first: LandingReport, second: LandingReport) -> LandingReport:
    """Merges two reports on one table."""
    return LandingReport(
        first.table,
        first.rows + second.rows,
        first.bytes + second.bytes,
        first.quarantined + second.quarantined,
        first.seconds + second.seconds,
        {**first.offsets, **second.offsets},
        {**first.lag, **second.lag},
        {**first.files, **second.files},
        {**first.failed, **second.failed},
        {**first.stuck, **second.stuck},
    )


def key_by_partition(numbers: Positions) -> dict[str, int]:
    """Converts numbers by source partition to numbers by `topic/partition`, for reports."""
    return {f"{source.topic}/{source.partition}": number for source, number in sorted(numbers.items())}
