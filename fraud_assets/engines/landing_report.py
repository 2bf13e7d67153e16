"""What one landing did to a table, for Dagster, the command line and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fraud_assets.core.schema import fraud_labels, raw_transactions
from fraud_assets.lake.positions import Positions


@dataclass(frozen=True)
class LandingReport:
    """What one landing did to one table.

    `rows` are those that this call committed, `bytes` those of keys and bodies that it read for them,
    `quarantined` the labels that it refused. `offsets` and `lag` are per `topic/partition`: the last offset
    in the table, and the messages up to the end seen at the start that are not in it. `failed` are dropped files that
    went to `failed/`, and `stuck` entries of the drop folder that could not be taken and are still there, with reasons.
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
        """Whether rows or files came in, or entries of the drop folder could not be landed."""
        return bool(self.rows or self.files or self.failed or self.stuck)

    def metadata(self) -> dict[str, Any]:
        """The report as JSON values, for Dagster and the command line."""
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


def empty_reports(*, transactions: bool = True) -> dict[str, LandingReport]:
    """A report of nothing for each landing table, labels first."""
    tables = (fraud_labels, raw_transactions) if transactions else (fraud_labels,)
    return {table.name: LandingReport(table.name) for table in tables}


def merge_reports(first: LandingReport, second: LandingReport) -> LandingReport:
    """Two reports on one table as one."""
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
    """Numbers by `topic/partition`, as reports have them."""
    return {f"{stream.topic}/{stream.partition}": number for stream, number in sorted(numbers.items())}
