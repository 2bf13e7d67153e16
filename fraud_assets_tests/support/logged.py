"""Collects the platform's log during a test."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fraud_assets.ingest.files.file_report import FileReport
from fraud_assets.ingest.files.landing import land_files
from fraud_assets.ingest.files.stuck_entries import StuckEntries
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings


class _Lines(logging.Handler):
    def __init__(self, add: Callable[[str], None]) -> None:
        super().__init__()
        self._add = add

    def emit(self, record: logging.LogRecord) -> None:
        self._add(record.getMessage())


@contextmanager
def logged(add: Callable[[str], None] | None = None) -> Iterator[list[str]]:
    """Collects the messages of level INFO and above; `add` gets each as it comes."""
    lines: list[str] = []

    def keep(line: str) -> None:
        lines.append(line)
        if add is not None:
            add(line)

    platform, handler = logging.getLogger("fraud_assets"), _Lines(keep)
    level = platform.level
    platform.addHandler(handler)
    platform.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        platform.removeHandler(handler)
        platform.setLevel(level)


def land_logged(lake: Lake, settings: Settings, said: list[str], stuck: StuckEntries | None = None) -> list[FileReport]:
    """Lands the drop folder; `said` gets what is logged."""
    with logged(said.append):
        return land_files(lake, settings, stuck=stuck)
