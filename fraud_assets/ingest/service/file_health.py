"""Tracks the drop folder for the metrics and health of always-on landing: landed files, failed files, stuck entries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge

if TYPE_CHECKING:
    from fraud_assets.ingest.files.file_report import FileReport

_SHOWN = 20
"""Maximum number of stuck entries that `/health` names."""


class FileHealth:
    """The state of the drop folder since the lander started. One thread writes, others can read."""

    def __init__(self, registry: CollectorRegistry, now: Callable[[], float]) -> None:
        self._now = now
        self._landed = Counter("fraud_files_landed", "Dropped files that landed.", registry=registry)
        self._failed = Counter("fraud_files_failed", "Dropped files that went to failed/.", registry=registry)
        stuck = Gauge(
            "fraud_files_stuck", "Entries of the drop folder that cannot be landed and stay there.", registry=registry
        )
        stuck.set_function(lambda: len(self._stuck))
        failing = Gauge("fraud_files_failing", "1 while no file can be landed at all, else 0.", registry=registry)
        failing.set_function(lambda: float(bool(self._failing)))
        self._failures = 0
        self._last_failed: tuple[FileReport, float] | None = None
        self._stuck: Mapping[str, str] = {}
        self._failing = ""

    def record_pass(self, reports: Iterable[FileReport], stuck: Mapping[str, str]) -> None:
        """Adds the results of one pass over the drop folder.

        Args:
            reports: the files of this pass.
            stuck: all entries that stay in the drop folder, with their reasons.
        """
        for report in reports:
            if report.moved_to is None:
                continue
            if report.reason:
                self._failed.inc()
                self._failures += 1
                self._last_failed = (report, self._now())
            else:
                self._landed.inc()
        self._stuck = dict(stuck)
        self._failing = ""

    def set_failing(self, reason: str) -> None:
        """Records that currently no file can be landed."""
        self._failing = reason

    @property
    def reason(self) -> str:
        """Why files do not land, else why one of the stuck entries stays, else an empty string."""
        return self._failing or next(iter(self._stuck.values()), "")

    def as_json(self) -> dict[str, Any]:
        """Returns the state as JSON values."""
        last = None
        if self._last_failed:
            report, moment = self._last_failed
            last = {"file": report.name, "reason": report.reason, "seconds_ago": round(self._now() - moment, 1)}
        return {
            "failing": self._failing,
            "failed": self._failures,
            "last_failed": last,
            "stuck": dict(list(self._stuck.items())[:_SHOWN]),
        }
