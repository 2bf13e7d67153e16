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
    """Collects log messages of level INFO and above; calls `add` with each of them."""
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


def land_logged(
    lake: Lake, settings: Settings, messages: list[str], stuck: StuckEntries | None = None
) -> list[FileReport]:
    """Lands the drop folder and appends the log messages to `messages`."""
    with logged(messages.append):
        return land_files(lake, settings, stuck=stuck)
