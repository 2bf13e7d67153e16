"""Reports the status of always-on landing: changes immediately, everything else in one line per minute."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from time import monotonic

from fraud_assets.core.schema import fraud_labels, raw_transactions
from fraud_assets.engines.landing_report import LandingReport, create_reports, merge_reports

logger = logging.getLogger(__name__)

LINE_SECONDS = 60.0

OnReport = Callable[[dict[str, LandingReport]], None]


class StatusReporter:
    """Adds up and logs what landed. The threads of topics and of files can call it at the same time.

    Args:
        on_report: called with reports by table name, added up over `seconds`.
        seconds: time between two calls of `on_report`.
    """

    def __init__(self, on_report: OnReport, seconds: float) -> None:
        self._on_report = on_report
        self._report_seconds = seconds
        self._lock = threading.Lock()
        self._since_line = create_reports()
        self._unreported = create_reports()
        self._total = dict.fromkeys(self._unreported, 0)
        self._waiting = 0
        self._failures: dict[str, str] = {}
        self._logged_at = self._reported_at = monotonic()

    def landed(self, reports: Mapping[str, LandingReport]) -> None:
        """Adds reports of topics or files, by table name."""
        with self._lock:
            for name, report in reports.items():
                self._total[name] += report.rows
                self._since_line[name] = merge_reports(self._since_line[name], report)
                self._unreported[name] = merge_reports(self._unreported[name], report)

    def recovered(self, source: str) -> None:
        """Records that landing of a source works, and logs it if it failed before.

        Args:
            source: `topics`, `files`, or a partition as `topic/partition`.
        """
        with self._lock:
            failure = self._failures.pop(source, "")
        if failure:
            logger.info(f"Landing of {source} works again.")

    def failed(self, source: str, reason: str) -> None:
        """Records that landing of a source cannot continue. Logs a new failure immediately, then once per minute."""
        with self._lock:
            is_known = source in self._failures
            self._failures[source] = reason
            if is_known and monotonic() - self._logged_at < LINE_SECONDS:
                return
            self._logged_at = monotonic()
        logger.warning(f"{reason} Landing retries.")

    def report(self, waiting: int) -> None:
        """Logs the line of the minute and calls `on_report`, each if it is due.

        Args:
            waiting: messages that have not landed.
        """
        now = monotonic()
        with self._lock:
            self._waiting = waiting
            line = self._take_line() if now - self._logged_at >= LINE_SECONDS else ""
            if line:
                self._logged_at = now
        if line:
            logger.info(line)
        if now - self._reported_at >= self._report_seconds:
            self._call_on_report()

    def finish(self) -> None:
        """Logs and reports what has not been reported yet."""
        with self._lock:
            line = self._take_line() if any(report.rows for report in self._since_line.values()) else ""
        if line:
            logger.info(line)
        self._call_on_report()

    def _call_on_report(self) -> None:
        with self._lock:
            unreported, self._unreported, self._reported_at = self._unreported, create_reports(), monotonic()
        if any(report.quarantined or report.has_changes for report in unreported.values()):
            self._on_report(unreported)

    def _take_line(self) -> str:
        """Returns the log line for what landed since the last one, and resets the counts. The caller holds the lock."""
        new, self._since_line = self._since_line, create_reports()
        refused = new[fraud_labels.name].quarantined
        quarantined = f" ({refused:,} labels quarantined)" if refused else ""
        state = f"{self._waiting:,} messages are waiting" if self._waiting else "no messages are waiting"
        if not any(report.rows for report in new.values()) and not refused:
            return f"Nothing new to land, {_format_rows(self._total)} landed since the start; {state}."
        return f"Landed {_format_rows({name: report.rows for name, report in new.items()})}{quarantined}; {state}."


def _format_rows(rows: Mapping[str, int]) -> str:
    return f"{rows[raw_transactions.name]:,} transactions and {rows[fraud_labels.name]:,} labels"
