"""Keeps always-on landing running through outages: reports a failure once, shows it in the metrics and retries."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Protocol, TypeVar

from fraud_assets.engines.landing_report import create_reports
from fraud_assets.errors import (
    BrokerError,
    BrokerRefusedError,
    DiskError,
    FraudAssetsError,
    LakeError,
    MessagesLostError,
    convert_disk_error,
)
from fraud_assets.ingest.files.file_report import add_file_reports
from fraud_assets.ingest.files.landing import land_files
from fraud_assets.ingest.files.stuck_entries import StuckEntries
from fraud_assets.ingest.service.metrics import LandingMetrics
from fraud_assets.ingest.service.status import StatusReporter
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
_TRANSIENT = (BrokerError, LakeError)

Result = TypeVar("Result")


class TopicFollower(Protocol):
    """Lands new messages of the topics.

    Attributes:
        has_connected: whether the broker has accepted a connection. Before that, a retry after a refusal does not help.
    """

    has_connected: bool

    def follow(self) -> bool:
        """Lands new messages until stopped or until it must be called again."""
        ...


@dataclass(frozen=True)
class RetryPolicy:
    """Reports an outage and retries until it ends or a stop is requested.

    Attributes:
        stop: ends the retries once it is set.
        status: receives the failure for the log.
        metrics: receives the failure for `/health`.
        transient: errors that can end by themselves. A disk error always counts as transient.
    """

    stop: threading.Event
    status: StatusReporter
    metrics: LandingMetrics
    transient: tuple[type[FraudAssetsError], ...] = _TRANSIENT

    def run(self, work: Callable[[], Result], final: tuple[type[Exception], ...] = ()) -> Result | None:
        """Calls `work` until it succeeds.

        Args:
            work: the work. It is called again after a transient error.
            final: errors that are raised, because a retry cannot help.

        Returns:
            The result of `work`, or None if a stop was requested after a failure.

        Raises:
            FraudAssetsError, OSError: an error in `final`, or one that is not transient.
        """
        pause = _FIRST_PAUSE_SECONDS
        while True:
            start = monotonic()
            try:
                return work()
            except final:
                raise
            except (FraudAssetsError, OSError) as error:
                reason = _describe_transient(error, self.transient)
            if self.stop.is_set():
                return None
            self.metrics.record_poll()
            self.metrics.set_failing(reason)
            self.status.failed("topics", reason)
            self.status.report(0)
            # Work that ran for a while before it failed starts a new outage, with short pauses.
            if monotonic() - start > _LONGEST_PAUSE_SECONDS:
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
    """Lands the topics with the follower, and dropped files in a second thread, until a stop is requested.

    Args:
        retries: the policy for outages.
        follower: lands the topics.
        lake: the lake to land files into.
        settings: define the drop folder.
        final: errors that end landing.

    Raises:
        FraudAssetsError, OSError: an error in `final`, or one that is not transient.
        BrokerRefusedError: the broker refused the first connection.
    """
    stop, status = retries.stop, retries.status
    with _land_files_beside(lake, settings, retries):
        while not stop.is_set():
            retries.run(follower.follow, final if follower.has_connected else (*final, BrokerRefusedError))
    status.finish()


@contextmanager
def _land_files_beside(lake: Lake, settings: Settings, retries: RetryPolicy) -> Iterator[None]:
    """Lands dropped files in a second thread: a large file delays no message, and an error does not stop the topics."""
    stop, status, health = retries.stop, retries.status, retries.metrics.files
    stuck = StuckEntries()

    def land_until_stopped() -> None:
        while not stop.is_set():
            try:
                reports = land_files(lake, settings, stop.is_set, stuck)
                health.record_pass(reports, stuck.reasons)
                status.landed(add_file_reports(create_reports(), reports))
                status.recovered("files")
            # Messages must continue to land after any error, and the error must be visible. A panic of delta-rs is
            # not an `Exception`.
            except BaseException as error:  # noqa: BLE001
                reason = _describe_file_failure(error)
                health.set_failing(reason)
                status.failed("files", reason)
                stop.wait(_LONGEST_PAUSE_SECONDS)
            stop.wait(settings.land_interval_seconds)

    thread = threading.Thread(target=land_until_stopped, name="files")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _describe_file_failure(error: BaseException) -> str:
    """Returns why no file can be landed, in one sentence."""
    known = convert_disk_error(error) if isinstance(error, OSError) else error
    if isinstance(known, FraudAssetsError):
        return str(known)
    return f"Dropped files cannot be landed because of an unexpected error ({type(error).__name__}: {error})."


def _describe_transient(error: FraudAssetsError | OSError, transient: tuple[type[FraudAssetsError], ...]) -> str:
    """Returns the message of a fault that can end by itself (broker, lake, registry, disk), and raises any other."""
    if isinstance(error, OSError):
        fault = convert_disk_error(error)
        if fault is None:
            raise error
        return str(fault)
    if not isinstance(error, (*transient, DiskError)):
        raise error
    return str(error)
