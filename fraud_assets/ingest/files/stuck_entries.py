"""Records the entries that stay in the drop folder, and when to retry each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fraud_assets.ingest.files.drop_folder import escape_name, read_state

_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0


@dataclass
class _StuckEntry:
    reason: str
    state: tuple[int, ...]
    next_try: float
    pause: float


@dataclass
class StuckEntries:
    """Entries that can neither land nor be moved and stay in the drop folder, with reasons and times of the next retry.

    A lander keeps one such object for as long as it runs, so that it does not retry the same file in every pass and
    reports each reason once.

    Attributes:
        now: returns the time in seconds, for the pauses between two attempts.
    """

    now: Callable[[], float] = time.monotonic
    _by_path: dict[Path, _StuckEntry] = field(default_factory=dict)

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why each entry stays, by its name."""
        return {escape_name(path): entry.reason for path, entry in self._by_path.items()}

    def add(self, path: Path, reason: str) -> bool:
        """Records that an entry stays, and returns whether this reason is new."""
        known = self._by_path.get(path)
        pause = min(known.pause * 2, _LONGEST_PAUSE_SECONDS) if known else _FIRST_PAUSE_SECONDS
        try:
            state = read_state(path)
        except OSError:
            state = ()
        self._by_path[path] = _StuckEntry(reason, state, self.now() + pause, pause)
        return known is None or known.reason != reason

    def is_due(self, path: Path) -> bool:
        """Returns whether to try an entry now, because it is new, it has changed, or its pause is over."""
        known = self._by_path.get(path)
        if known is None or self.now() >= known.next_try:
            return True
        try:
            return read_state(path) != known.state
        except OSError:
            return True

    def remove(self, path: Path) -> None:
        """Forgets an entry that has landed, was refused or is gone."""
        self._by_path.pop(path, None)

    def keep_only(self, present: Iterable[Path]) -> None:
        """Forgets all entries that are no longer in the drop folder."""
        there = set(present)
        for path in [path for path in self._by_path if path not in there]:
            del self._by_path[path]
