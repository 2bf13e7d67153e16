"""The whole platform under faults: a known stream, everything killed at random, and a judgement at the end."""

from __future__ import annotations

import logging
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from fraud_assets.chaos.faults import DISK_FAULTS, FAULTS, FOLDER_FAULTS, STORE_FAULTS, Fault, LakeLocation, Run
from fraud_assets.chaos.processes import LAND, Processes, worker
from fraud_assets.chaos.traffic import Traffic
from fraud_assets.chaos.verification import Check, is_drained, verify
from fraud_assets.errors import BrokerError, FraudAssetsError
from fraud_assets.kafka.broker import find_broker
from fraud_assets.kafka.topics import create_topics
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings, load_settings
from fraud_assets.testing.apache_kafka import apache_kafka, why_unavailable
from fraud_assets.testing.object_store import ObjectStore

logger = logging.getLogger(__name__)

_FIRST = 2_000
_PREFIX = "chaos"
_DISK_BYTES = 1_500_000_000
_DRAIN_SECONDS = 300
_PAUSE_SECONDS = (0.2, 1.2)
_LINE_SECONDS = 5.0


@dataclass(frozen=True)
class Plan:
    """What to do to the platform.

    Args:
        minutes: how long faults come.
        kills: they come until so many processes were killed, however long it takes.
        brokers: nodes of the Kafka cluster.
        object_store: the lake is on an S3 server instead of a folder.
        rate: transactions per second.
        seed: of what happens and when; processes are not replayed to the millisecond.
    """

    minutes: float = 1.0
    kills: int = 0
    brokers: int = 1
    object_store: bool = False
    rate: float = 200.0
    seed: int = 1


@dataclass(frozen=True)
class Outcome:
    """What was done, and what of it shows."""

    checks: list[Check]
    faults: dict[str, int]
    kills: int
    failed_runs: int
    transactions: int
    labels: int
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether every check does."""
        return all(check.holds for check in self.checks)


def run_chaos(folder: Path, plan: Plan) -> Outcome:
    """Runs the platform in a new folder, on a Kafka cluster of its own, while faults come.

    Raises:
        BrokerError: Apache Kafka cannot be started here.
        FraudAssetsError: the platform did not start, or what was sent did not get through within five minutes.
    """
    if reason := why_unavailable():
        raise BrokerError(reason)
    begun = monotonic()
    with ExitStack() as stack:
        place = stack.enter_context(_on_object_store(folder) if plan.object_store else _on_disk(folder))
        logger.info(f"Starting Apache Kafka with {plan.brokers} node{'s' * (plan.brokers > 1)} …")
        cluster = stack.enter_context(apache_kafka(folder / "kafka", plan.brokers))
        settings = _settings(folder, place, cluster.bootstrap)
        create_topics(find_broker(settings), settings)
        run = Run(Processes(settings, folder), cluster, place, random.Random(plan.seed))
        traffic = Traffic(settings, plan.rate, plan.seed)
        stack.callback(run.processes.end_all)
        stack.callback(traffic.abandon)
        _begin(run, traffic, settings)
        faults = {**FAULTS, **_of_the_lake(place)}
        came = _come(run, traffic, faults, plan)
        logger.info(f"{sum(came.values())} faults, {run.processes.kills} kills; letting the rest through …")
        traffic.stop()
        _drain(run, settings, traffic)
        run.processes.end_all()
        checks = verify(Lake.of(settings), settings, traffic.sent, run.processes.deaths)
    return Outcome(
        checks,
        dict(came.most_common()),
        run.processes.kills,
        run.processes.failed_runs,
        len(traffic.sent.transactions),
        len(traffic.sent.labels),
        monotonic() - begun,
    )


def _settings(folder: Path, place: LakeLocation, bootstrap: str) -> Settings:
    return load_settings(
        home=folder / "home",
        kafka_bootstrap_servers=bootstrap,
        mlflow_tracking_uri="",
        land_interval_seconds=0.2,
        kafka_timeout_seconds=5.0,
        lake_timeout_seconds=5.0,
        train_min_rows=500,
        train_trees=10,
        batch_rows=5_000,
        land_batch_rows=2_000,
        duckdb_memory_limit="500MB",
        **(place.store.settings(_PREFIX) if place.store else {"lake_uri": place.uri}),
    )


def _of_the_lake(place: LakeLocation) -> dict[Fault, int]:
    """The faults that the place of the lake allows."""
    if place.store:
        return STORE_FAULTS
    if place.disk:
        return DISK_FAULTS
    logger.info("The lake is in a folder: a full disk is not tried (root could mount a small one).")
    return FOLDER_FAULTS if os.geteuid() else {}


@contextmanager
def _on_disk(folder: Path) -> Iterator[LakeLocation]:
    """A folder for the lake; for root on a disk of its own."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(disk)]
    mounted = shutil.which("mount") and not subprocess.run(mount, capture_output=True, check=False).returncode
    try:
        yield LakeLocation(str(disk / "lake"), disk if mounted else None)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(disk)], check=True)


@contextmanager
def _on_object_store(folder: Path) -> Iterator[LakeLocation]:
    """An S3 server for the lake."""
    store = ObjectStore(folder / "s3")
    try:
        store.start()
        yield LakeLocation(store.settings(_PREFIX)["lake_uri"], store=store)
    finally:
        store.kill()


def _begin(run: Run, traffic: Traffic, settings: Settings) -> None:
    """Everything runs, a first stretch of the stream has gone through, and a champion is there."""
    from dagster import DagsterInstance

    from fraud_assets.operations.setup_home import prepare_home
    from fraud_assets.stages.training import train

    prepare_home(settings)
    with DagsterInstance.from_config(str(settings.home_path / "dagster")) as instance:
        # Two that make its database at the same time would lock each other out.
        instance.get_runs_count()
    lake = Lake.of(settings)
    traffic.burst(_FIRST)
    for name, command in (
        ("land-1", LAND),
        ("land-2", LAND),
        ("features", worker("features")),
    ):
        run.processes.start(name, command)
    logger.info(f"{_FIRST:,} transactions sent; landing them and training a model …")
    _until(run, lambda: _has_features(lake), "features of the first transactions")
    train(lake, settings)
    run.processes.start("scoring", worker("scoring"))
    traffic.start()


def _has_features(lake: Lake) -> bool:
    from fraud_assets.core.schema import transaction_features
    from fraud_assets.lake.log import row_count

    return lake.exists(transaction_features) and row_count(lake.open(transaction_features)) > _FIRST * 0.8


def _come(run: Run, traffic: Traffic, faults: dict[Fault, int], plan: Plan) -> Counter[str]:
    """Faults, one after another, until time is over and enough were killed."""
    came: Counter[str] = Counter()
    begun = told = monotonic()
    names = list(faults)
    while monotonic() - begun < plan.minutes * 60 or run.processes.kills < plan.kills:
        run.processes.maintain()
        fault = run.random.choices(names, list(faults.values()))[0]
        fault(run)
        came[fault.__name__] += 1
        run.wait(_PAUSE_SECONDS)
        if monotonic() - told > _LINE_SECONDS:
            told = monotonic()
            logger.info(
                f"{told - begun:4.0f} s: {len(traffic.sent.transactions):,} transactions sent, {sum(came.values())} "
                f"faults, {run.processes.kills} kills, last {fault.__name__}"
            )
    return came


def _drain(run: Run, settings: Settings, traffic: Traffic) -> None:
    lake = Lake.of(settings)
    _until(run, lambda: is_drained(lake, traffic.sent), "the rest of the stream")


def _until(run: Run, condition: Callable[[], bool], what: str) -> None:
    deadline = monotonic() + _DRAIN_SECONDS
    while not _holds(condition):
        run.processes.maintain()
        if monotonic() > deadline:
            raise FraudAssetsError(
                f"Waited {_DRAIN_SECONDS} s for {what} in vain. The logs are in {run.processes.folder}."
            )
        sleep(0.3)


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except FileNotFoundError:
        # The vacuum took a file between the look at the log and the read.
        return False
