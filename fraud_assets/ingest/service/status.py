"""What always-on landing says: changes of state at once, all else in one line a minute."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from time import monotonic

from fraud_assets.core.schema import fraud_labels, raw_transactions
from fraud_assets.ingest.landing import LandingReport, empty_reports, merged

LINE_SECONDS = 60.0

Say = Callable[[str], None]
Tell = Callable[[dict[str, LandingReport]], None]


class StatusReporter:
    """Adds up what landed; safe to use from the threads of topics and of files.

    Args:
        say: gets the lines.
        tell: gets reports by table name, added up over `tell_seconds`.
        tell_seconds: how often.
    """

    def __init__(self, say: Say, tell: Tell, tell_seconds: float) -> None:
        self._say = say
        self._tell = tell
        self._tell_seconds = tell_seconds
        self._lock = threading.Lock()
        self._since_line = empty_reports()
        self._untold = empty_reports()
        self._total = dict.fromkeys(self._untold, 0)
        self._waiting = 0
        self._trouble: dict[str, str] = {}
        self._said = self._told = monotonic()

    def landed(self, reports: Mapping[str, LandingReport]) -> None:
        """Counts what landed, of topics or files."""
        with self._lock:
            for name, report in reports.items():
                self._total[name] += report.rows
                self._since_line[name] = merged(self._since_line[name], report)
                self._untold[name] = merged(self._untold[name], report)

    def recovered(self, source: str) -> None:
        """Landing of a source (`topics` or `files`) works; says so where it did not."""
        with self._lock:
            trouble = self._trouble.pop(source, "")
        if trouble:
            self._say(f"Landing of {source} goes on.")

    def fails(self, source: str, reason: str) -> None:
        """Landing of a source cannot go on for now; said when it is news, and once a minute."""
        with self._lock:
            known = source in self._trouble
            self._trouble[source] = reason
            if known and monotonic() - self._said < LINE_SECONDS:
                return
            self._said = monotonic()
        self._say(f"{reason} Trying again.")

    def tick(self, waiting: int) -> None:
        """Says the line of the minute and tells what landed, where it is time; `waiting` messages have not landed."""
        now = monotonic()
        with self._lock:
            self._waiting = waiting
            line = self._line() if now - self._said >= LINE_SECONDS else ""
            if line:
                self._said = now
        if line:
            self._say(line)
        if now - self._told >= self._tell_seconds:
            self._tell_all()

    def ended(self) -> None:
        """Says and tells the rest."""
        with self._lock:
            line = self._line() if any(report.rows for report in self._since_line.values()) else ""
        if line:
            self._say(line)
        self._tell_all()

    def _tell_all(self) -> None:
        with self._lock:
            untold, self._untold, self._told = self._untold, empty_reports(), monotonic()
        if any(report.quarantined or report.has_news for report in untold.values()):
            self._tell(untold)

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
