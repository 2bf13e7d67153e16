"""Always-on landing: the drop folder and both topics, again and again, until told to stop."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from types import FrameType

from fraud_assets.core.schema import fraud_labels, raw_transactions
from fraud_assets.errors import BrokerError, FraudAssetsError, MessagesLostError
from fraud_assets.kafka.broker import broker_is_configured, broker_of
from fraud_assets.lake.tables import Lake
from fraud_assets.pipeline.files import land_files
from fraud_assets.pipeline.landing import (
    LandingReport,
    TopicReaders,
    empty_reports,
    land_topics,
    merged,
    with_files,
)
from fraud_assets.settings import Settings

_LANDED_LINE_SECONDS = 30.0
_QUIET_LINE_SECONDS = 60.0
_LOCK_TRIES = 20
_LOCK_PAUSE_SECONDS = 0.05

Say = Callable[[str], None]
Tell = Callable[[dict[str, LandingReport]], None]


class LanderRunsError(FraudAssetsError):
    """A lander already runs under this FRAUD_HOME."""


def lander_is_running(settings: Settings) -> bool:
    """Whether a `fraud-assets land` process holds the lander's lock of this FRAUD_HOME."""
    try:
        with _lock_file(settings).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


@contextmanager
def lander_lock(settings: Settings) -> Iterator[None]:
    """Holds the lander's lock; the operating system lets go of it when the process ends, however it does.

    Raises:
        LanderRunsError: another process holds it.
    """
    path = _lock_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        for attempt in range(_LOCK_TRIES):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == _LOCK_TRIES - 1:
                    raise LanderRunsError(
                        f"A `fraud-assets land` process already runs ({path}). Stop it, or use another FRAUD_HOME."
                    ) from None
                # Who only looks whether a lander runs holds the lock for a moment.
                sleep(_LOCK_PAUSE_SECONDS)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _lock_file(settings: Settings) -> Path:
    return settings.home_path / "land.lock"


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, in place of ending the process."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def land_once(lake: Lake, settings: Settings, say: Say, stop: threading.Event) -> dict[str, LandingReport]:
    """Drains the drop folder and both topics to their present ends; gives a report by table name.

    Raises:
        BrokerError: the broker or a topic cannot be read. Not raised where files landed and no broker is named.
    """
    files = land_files(lake, settings, say, stop.is_set)
    reports = with_files(empty_reports(), files)
    if stop.is_set() or (files and not broker_is_configured(settings)):
        return reports
    landed = land_topics(lake, settings, _silent, stop=stop.is_set)
    return {name: merged(report, landed[name]) for name, report in reports.items()}


def land_forever(
    lake: Lake, settings: Settings, say: Say, stop: threading.Event, tell: Tell = lambda reports: None
) -> None:
    """Lands every FRAUD_LAND_INTERVAL_SECONDS until `stop` is set; ends after the commit that is under way.

    An outage of the broker is told once and waited for; the drop folder goes on meanwhile. `tell` gets what landed
    by table name, added up over some 30 s.

    Raises:
        MessagesLostError: messages are gone that had not landed; nothing is skipped.
        LakeError: a table cannot be written.
    """
    news = _News(say, tell)
    connection = _Connection(settings)
    try:
        while not stop.is_set():
            news.files_landed(with_files(empty_reports(), land_files(lake, settings, say, stop.is_set)))
            try:
                readers = connection.readers()
                if not stop.is_set():
                    news.topics_landed(land_topics(lake, settings, _silent, readers=readers, stop=stop.is_set))
            except MessagesLostError:
                raise
            except BrokerError as error:
                connection.close()
                if not stop.is_set():
                    news.outage(str(error))
            stop.wait(settings.land_interval_seconds)
    finally:
        connection.close()
        news.ended()


class _Connection:
    """Readers that live as long as their broker does."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._readers: TopicReaders | None = None

    def readers(self) -> TopicReaders:
        """Open readers of the broker that is meant now. An embedded broker started anew has another lineage."""
        broker = broker_of(self._settings)
        if self._readers is not None and self._readers.labels.broker != broker:
            self.close()
        if self._readers is None:
            self._readers = TopicReaders.of(self._settings)
        return self._readers

    def close(self) -> None:
        if self._readers is not None:
            self._readers.labels.close()
            self._readers.transactions.close()
            self._readers = None


class _News:
    """What the loop says: changes of state at once, landed rows every few seconds, all-is-well once a minute."""

    def __init__(self, say: Say, tell: Tell) -> None:
        self._say = say
        self._tell = tell
        self._untold = empty_reports()
        self._outage = ""
        self._rows = {raw_transactions.name: 0, fraud_labels.name: 0}
        self._total = dict(self._rows)
        self._refused = 0
        self._told_rows = 0.0
        self._told = monotonic()

    def files_landed(self, reports: dict[str, LandingReport]) -> None:
        """Counts what files added; `land_files` said it itself."""
        for name, report in reports.items():
            self._total[name] += report.rows
            self._untold[name] = merged(self._untold[name], report)

    def topics_landed(self, reports: dict[str, LandingReport]) -> None:
        if self._outage:
            self._say("The broker answers again.")
            self._outage = ""
        for name, report in reports.items():
            self._rows[name] += report.rows
            self._total[name] += report.rows
            self._refused += report.quarantined
            self._untold[name] = merged(self._untold[name], report)
        now = monotonic()
        news = any(report.rows or report.files for report in self._untold.values())
        if (news or self._refused) and now - self._told_rows >= _LANDED_LINE_SECONDS:
            self._tell_rows(now)
        elif now - self._told >= _QUIET_LINE_SECONDS:
            self._told = now
            self._say(f"All landed: {self._amounts(self._total)} since the start.")

    def outage(self, reason: str) -> None:
        if reason != self._outage:
            self._outage = reason
            self._say(f"{reason} Trying again.")

    def ended(self) -> None:
        if any(self._rows.values()) or self._refused:
            self._tell_rows(monotonic())
        else:
            self._tell_of_all()

    def _tell_rows(self, now: float) -> None:
        refused = f", {self._refused:,} labels quarantined" if self._refused else ""
        if any(self._rows.values()) or self._refused:
            self._say(f"Landed {self._amounts(self._rows)}{refused}.")
        self._tell_of_all()
        self._rows = dict.fromkeys(self._rows, 0)
        self._refused = 0
        self._told = self._told_rows = now

    def _tell_of_all(self) -> None:
        self._tell(self._untold)
        self._untold = empty_reports()

    @staticmethod
    def _amounts(rows: dict[str, int]) -> str:
        return f"{rows[raw_transactions.name]:,} transactions and {rows[fraud_labels.name]:,} labels"


def _silent(line: str) -> None:
    """Progress that the loop tells in its own words."""
