"""What always-on landing says: changes of state at once, all else in one line a minute."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from time import monotonic

from fraud_assets.core.schema import fraud_labels, raw_transactions
from fraud_assets.engines.landing_report import LandingReport, empty_reports, merge_reports

logger = logging.getLogger(__name__)

LINE_SECONDS = 60.0

OnReport = Callable[[dict[str, LandingReport]], None]


class StatusReporter:
    """Adds up what landed and logs it; safe to use from the threads of topics and of files.

    Args:
        on_report: called with reports by table name, added up over `seconds`.
        seconds: how often `on_report` is called.
    """

    def __init__(self, on_report: OnReport, seconds: float) -> None:
        self._on_report = on_report
        self._report_seconds = seconds
        self._lock = threading.Lock()
        self._since_line = empty_reports()
        self._unreported = empty_reports()
        self._total = dict.fromkeys(self._unreported, 0)
        self._waiting = 0
        self._trouble: dict[str, str] = {}
        self._said = self._reported = monotonic()

    def landed(self, reports: Mapping[str, LandingReport]) -> None:
        """Counts what landed, of topics or files."""
        with self._lock:
            for name, report in reports.items():
                self._total[name] += report.rows
                self._since_line[name] = merge_reports(self._since_line[name], report)
                self._unreported[name] = merge_reports(self._unreported[name], report)

    def recovered(self, source: str) -> None:
        """Landing of a source (`topics` or `files`) works; says so where it did not."""
        with self._lock:
            trouble = self._trouble.pop(source, "")
        if trouble:
            logger.info(f"Landing of {source} works again.")

    def failed(self, source: str, reason: str) -> None:
        """Landing of a source cannot go on for now; said when it is news, and once a minute."""
        with self._lock:
            known = source in self._trouble
            self._trouble[source] = reason
            if known and monotonic() - self._said < LINE_SECONDS:
                return
            self._said = monotonic()
        logger.warning(f"{reason} Trying again.")

    def tick(self, waiting: int) -> None:
        """Says the line of the minute and tells what landed, where it is time; `waiting` messages have not landed."""
        now = monotonic()
        with self._lock:
            self._waiting = waiting
            line = self._line() if now - self._said >= LINE_SECONDS else ""
            if line:
                self._said = now
        if line:
            logger.info(line)
        if now - self._reported >= self._report_seconds:
            self._report()

    def ended(self) -> None:
        """Says and tells the rest."""
        with self._lock:
            line = self._line() if any(report.rows for report in self._since_line.values()) else ""
        if line:
            logger.info(line)
        self._report()

    def _report(self) -> None:
        with self._lock:
            unreported, self._unreported, self._reported = self._unreported, empty_reports(), monotonic()
        if any(report.quarantined or report.has_changes for report in unreported.values()):
            self._on_report(unreported)

    def _line(self) -> str:
        new, self._since_line = self._since_line, empty_reports()
        refused = new[fraud_labels.name].quarantined
        bad = f" ({refused:,} labels quarantined)" if refused else ""
        state = f"{self._waiting:,} messages wait" if self._waiting else "nothing waits"
        if not any(report.rows for report in new.values()) and not refused:
            return f"All landed, {_amounts(self._total)} since the start; {state}."
        return f"Landed {_amounts({name: report.rows for name, report in new.items()})}{bad}; {state}."


def _amounts(rows: Mapping[str, int]) -> str:
    return f"{rows[raw_transactions.name]:,} transactions and {rows[fraud_labels.name]:,} labels"
