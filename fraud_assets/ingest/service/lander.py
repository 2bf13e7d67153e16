"""Lands the drop folder and both topics until it is stopped. Several landers can run side by side."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from fraud_assets.core.schema import raw_transactions
from fraud_assets.errors import LakeUnavailableError, MessagesLostError
from fraud_assets.ingest.service.metrics import LandingMetrics
from fraud_assets.ingest.service.outages import RetryPolicy, run_with_retries
from fraud_assets.ingest.service.status import OnReport, StatusReporter
from fraud_assets.ingest.service.topic_follower import LocalFollower
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM and SIGINT set instead of ending the process."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def land_forever(
    lake: Lake,
    settings: Settings,
    stop: threading.Event,
    *,
    spark: SparkSession | None = None,
    on_report: OnReport = lambda reports: None,
    metrics: LandingMetrics | None = None,
) -> None:
    """Lands until `stop` is set, then finishes the current commit and returns.

    Landers share the partitions of the transactions topic. Each drains the labels before it commits transactions, and
    one lander at a time lands the drop folder. If the broker, the lake or a disk is unavailable, landing logs it once,
    shows it in `metrics` and retries.

    With `spark` one lander reads all partitions, because Spark distributes them itself, and commits up to
    FRAUD_SPARK_LAND_ROWS messages at a time. Additional landers into the same lake are safe but do not help.

    Args:
        lake: the lake to land into.
        settings: define the topics, the broker, the drop folder and the intervals.
        stop: ends landing.
        spark: reads the transactions topic; default: this process.
        on_report: called with reports by table name, added up over FRAUD_DAGSTER_EVENT_SECONDS.
        metrics: receives the state of landing.

    Raises:
        MessagesLostError: the broker no longer has messages that have not landed; nothing is skipped.
        BrokerRefusedError: the broker refuses the first connection. Landing retries later refusals.
        LakeError: the lake cannot be used at the start. Landing retries if its object store is unavailable.
        SparkEndedError: the Spark session has ended.
    """
    metrics = metrics or LandingMetrics()
    status = StatusReporter(on_report, settings.dagster_event_seconds)
    starting = RetryPolicy(stop, status, metrics, (LakeUnavailableError,))
    group = starting.run(partial(choose_consumer_group, lake, settings))
    if group is None:
        return
    if spark is None:
        retries = RetryPolicy(stop, status, metrics)
        follower = LocalFollower(lake, settings, stop, status, metrics, retries, group)
        run_with_retries(retries, follower, lake, settings)
        return
    from fraud_assets.errors import SparkEndedError
    from fraud_assets.ingest.service.spark_follower import TRANSIENT, SparkFollower

    retries = RetryPolicy(stop, status, metrics, TRANSIENT)
    spark_follower = SparkFollower(spark, lake, settings, stop, status, metrics, group)
    run_with_retries(retries, spark_follower, lake, settings, final=(MessagesLostError, SparkEndedError))


def choose_consumer_group(lake: Lake, settings: Settings) -> str:
    """Returns FRAUD_CONSUMER_GROUP, else a name derived from the lake.

    Landers into two lakes must not share partitions.

    Raises:
        LakeError: the lake cannot be used.
    """
    return settings.consumer_group or f"fraud-assets-{lake.open(raw_transactions).metadata().id}"
