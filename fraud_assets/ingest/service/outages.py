"""What always-on landing does while something is away that may come back: says so, shows it, and tries again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from fraud_assets.engines.landing_report import empty_reports
from fraud_assets.errors import (
    BrokerError,
    BrokerRefusedError,
    DiskError,
    FraudAssetsError,
    LakeError,
    MessagesLostError,
    disk_fault,
)
from fraud_assets.ingest.files.drop_folder import StuckEntries
from fraud_assets.ingest.files.landing import land_files, with_files
from fraud_assets.ingest.service.metrics import LandingMetrics
from fraud_assets.ingest.service.status import StatusReporter
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
_PASSING = (BrokerError, LakeError)


class TopicFollower(Protocol):
    """What lands the topics.

    Attributes:
        was_let_in: whether the broker ever let it in; before, a refusal will not pass by itself.
    """

    was_let_in: bool

    def follow(self) -> bool:
        """Lands what comes to the topics until told to stop, or until it has to begin anew."""
        ...


@dataclass(frozen=True)
class RetryPolicy:
    """Whom an outage is told to, and what ends the waiting for its end.

    Attributes:
        passing: errors of things that may come back.
    """

    stop: threading.Event
    status: StatusReporter
    metrics: LandingMetrics
    passing: tuple[type[FraudAssetsError], ...] = _PASSING

    def run(self, work: Callable[[], bool], final: tuple[type[Exception], ...]) -> bool:
        """What the work says; where something is away that may come back, says so and does it again until told to stop.

        Errors in `final` are raised, for to do the same again would not help.
        """
        pause = _FIRST_PAUSE_SECONDS
        while True:
            begun = monotonic()
            try:
                return work()
            except final:
                raise
            except (FraudAssetsError, OSError) as error:
                reason = _reason(error, self.passing)
            if self.stop.is_set():
                return False
            self.metrics.looked()
            self.metrics.fails(reason)
            self.status.failed("topics", reason)
            self.status.tick(0)
            if monotonic() - begun > _LONGEST_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            self.stop.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def run_with_retries(
    retries: RetryPolicy,
    follower: TopicFollower,
    lake: Lake,
    settings: Settings,
    final: tuple[type[Exception], ...] = (MessagesLostError,),
) -> None:
    """Lands the topics by the lander, and dropped files beside it, through all outages until told to stop.

    Errors in `final` are raised, and so is a refusal of the broker at the start.
    """
    stop, status = retries.stop, retries.status
    with _files_landed_beside(lake, settings, retries):
        while not stop.is_set():
            retries.run(follower.follow, final if follower.was_let_in else (*final, BrokerRefusedError))
    status.ended()


@contextmanager
def _files_landed_beside(lake: Lake, settings: Settings, retries: RetryPolicy) -> Iterator[None]:
    """Lands dropped files in a thread of its own: a large one keeps no message waiting, and a fault ends no topic."""
    stop, status, shown = retries.stop, retries.status, retries.metrics.files
    stuck = StuckEntries()

    def land() -> None:
        while not stop.is_set():
            try:
                reports = land_files(lake, settings, stop.is_set, stuck)
                shown.looked(reports, stuck.reasons)
                status.landed(with_files(empty_reports(), reports))
                status.recovered("files")
            # Whatever it is, messages go on, and people see it. A panic of delta-rs is no `Exception`.
            except BaseException as error:  # noqa: BLE001
                reason = _reason_of_files(error)
                shown.fails(reason)
                status.failed("files", reason)
                stop.wait(_LONGEST_PAUSE_SECONDS)
            stop.wait(settings.land_interval_seconds)

    thread = threading.Thread(target=land, name="files")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _reason_of_files(error: BaseException) -> str:
    """The sentence on why no file lands."""
    known = disk_fault(error) if isinstance(error, OSError) else error
    if isinstance(known, FraudAssetsError):
        return str(known)
    return f"Dropped files cannot be landed because of an unexpected error ({type(error).__name__}: {error})."


def _reason(error: FraudAssetsError | OSError, passing: tuple[type[FraudAssetsError], ...]) -> str:
    """The sentence on what may pass by itself: the broker, the lake, a registry, a disk; raises what will not."""
    if isinstance(error, OSError):
        fault = disk_fault(error)
        if fault is None:
            raise error
        return str(fault)
    if not isinstance(error, (*passing, DiskError)):
        raise error
    return str(error)
