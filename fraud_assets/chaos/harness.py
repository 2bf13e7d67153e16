"""Runs the whole platform on known traffic, applies random faults, and verifies the tables at the end."""

from __future__ import annotations

import logging
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from fraud_assets.chaos.faults import DISK_FAULTS, FAULTS, FOLDER_FAULTS, STORE_FAULTS, Fault, LakeLocation, Run
from fraud_assets.chaos.processes import LAND, Processes, worker_command
from fraud_assets.chaos.traffic import Traffic
from fraud_assets.chaos.verification import Check, is_drained, verify
from fraud_assets.errors import BrokerError, FraudAssetsError
from fraud_assets.kafka.broker import find_broker
from fraud_assets.kafka.topics import create_topics
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings, load_settings
from fraud_assets.testing.apache_kafka import apache_kafka, describe_obstacle
from fraud_assets.testing.object_store import ObjectStore

logger = logging.getLogger(__name__)

_FIRST_TRANSACTIONS = 2_000
_PREFIX = "chaos"
_DISK_BYTES = 1_500_000_000
_DRAIN_SECONDS = 300
_PAUSE_SECONDS = (0.2, 1.2)
_LOG_SECONDS = 5.0


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Attributes:
        minutes: minimum duration of the faults.
        kills: faults are applied until this number of processes was killed, even if that takes longer.
        brokers: number of nodes of the Kafka cluster.
        object_store: whether the lake is on an S3 server instead of in a folder.
        rate: transactions per second.
        seed: random seed for the choice of faults and for the pauses. The timing of processes is not reproducible.
    """

    minutes: float = 1.0
    kills: int = 0
    brokers: int = 1
    object_store: bool = False
    rate: float = 200.0
    seed: int = 1


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        checks: results of `verify`.
        faults: number of applied faults, by name.
        kills: number of SIGKILLs.
        failed_runs: number of failed Dagster runs.
        transactions: number of transactions that the broker acknowledged.
        labels: number of labels that the broker acknowledged.
        seconds: duration of the run.
    """

    checks: list[Check]
    faults: dict[str, int]
    kills: int
    failed_runs: int
    transactions: int
    labels: int
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)


def run_chaos(folder: Path, plan: Plan) -> Outcome:
    """Runs the platform in a new folder, on a Kafka cluster of its own, and applies faults to it.

    Raises:
        BrokerError: Apache Kafka cannot be started on this machine.
        FraudAssetsError: the platform did not start, or the messages were not processed within five minutes.
    """
    if reason := describe_obstacle():
        raise BrokerError(reason)
    began = monotonic()
    with ExitStack() as stack:
        location = stack.enter_context(_lake_on_object_store(folder) if plan.object_store else _lake_on_disk(folder))
        logger.info(f"Starting Apache Kafka with {plan.brokers} node{'s' * (plan.brokers > 1)} …")
        cluster = stack.enter_context(apache_kafka(folder / "kafka", plan.brokers))
        settings = _chaos_settings(folder, location, cluster.bootstrap)
        create_topics(find_broker(settings), settings)
        run = Run(Processes(settings, folder), cluster, location, random.Random(plan.seed))
        traffic = Traffic(settings, plan.rate, plan.seed)
        stack.callback(run.processes.end_all)
        stack.callback(traffic.abandon)
        _start_platform(run, traffic, settings)
        applied = _apply_faults(run, traffic, (*FAULTS, *_faults_of_lake(location)), plan)
        logger.info(f"{applied.total()} faults, {run.processes.kills} kills; waiting for the remaining messages …")
        traffic.stop()
        _wait_until_drained(run, settings, traffic)
        run.processes.end_all()
        checks = verify(Lake.of(settings), settings, traffic.sent, run.processes.deaths)
    return Outcome(
        checks,
        dict(applied.most_common()),
        run.processes.kills,
        run.processes.failed_runs,
        len(traffic.sent.transactions),
        len(traffic.sent.labels),
        monotonic() - began,
    )


def _chaos_settings(folder: Path, location: LakeLocation, bootstrap: str) -> Settings:
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
        **(location.store.settings(_PREFIX) if location.store else {"lake_uri": location.uri}),
    )


def _faults_of_lake(location: LakeLocation) -> tuple[Fault, ...]:
    """Returns the faults that are possible at the location of the lake."""
    if location.store:
        return STORE_FAULTS
    if location.disk:
        return DISK_FAULTS
    logger.info("The lake is in a folder, so no fault fills the disk. Run as root to test that on a small disk.")
    return FOLDER_FAULTS if os.geteuid() else ()


@contextmanager
def _lake_on_disk(folder: Path) -> Iterator[LakeLocation]:
    """Creates a folder for the lake; for root, on a disk of its own."""
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
def _lake_on_object_store(folder: Path) -> Iterator[LakeLocation]:
    """Runs an S3 server for the lake."""
    store = ObjectStore(folder / "s3")
    try:
        store.start()
        yield LakeLocation(store.settings(_PREFIX)["lake_uri"], store=store)
    finally:
        store.kill()


def _start_platform(run: Run, traffic: Traffic, settings: Settings) -> None:
    """Starts all processes, waits for the features of the first transactions, and trains a champion."""
    from dagster import DagsterInstance

    from fraud_assets.operations.setup_home import prepare_home
    from fraud_assets.stages.training import train

    prepare_home(settings)
    with DagsterInstance.from_config(str(settings.home_path / "dagster")) as instance:
        # Two processes that create the database at the same time would lock each other out.
        instance.get_runs_count()
    lake = Lake.of(settings)
    traffic.burst(_FIRST_TRANSACTIONS)
    for name, command in (
        ("land-1", LAND),
        ("land-2", LAND),
        ("features", worker_command("features")),
    ):
        run.processes.start(name, command)
    logger.info(f"{_FIRST_TRANSACTIONS:,} transactions sent; landing them and training a model …")
    _wait_until(run, lambda: _has_features(lake), "the features of the first transactions")
    train(lake, settings)
    run.processes.start("scoring", worker_command("scoring"))
    traffic.start()


def _has_features(lake: Lake) -> bool:
    from fraud_assets.core.schema import transaction_features
    from fraud_assets.lake.log import read_row_count

    return (
        lake.exists(transaction_features)
        and read_row_count(lake.open(transaction_features)) > _FIRST_TRANSACTIONS * 0.8
    )


def _apply_faults(run: Run, traffic: Traffic, faults: Sequence[Fault], plan: Plan) -> Counter[str]:
    """Applies one fault after another until the time is over and enough processes were killed.

    Returns:
        The number of applied faults, by name.
    """
    applied: Counter[str] = Counter()
    began = logged = monotonic()
    weights = [fault.weight for fault in faults]
    while monotonic() - began < plan.minutes * 60 or run.processes.kills < plan.kills:
        run.processes.maintain()
        fault = run.random.choices(faults, weights)[0]
        fault.apply(run)
        applied[fault.name] += 1
        run.wait(_PAUSE_SECONDS)
        if monotonic() - logged > _LOG_SECONDS:
            logged = monotonic()
            logger.info(
                f"{logged - began:4.0f} s: {len(traffic.sent.transactions):,} transactions sent, {applied.total()} "
                f"faults, {run.processes.kills} kills, last {fault.name}"
            )
    return applied


def _wait_until_drained(run: Run, settings: Settings, traffic: Traffic) -> None:
    lake = Lake.of(settings)
    _wait_until(run, lambda: is_drained(lake, traffic.sent), "the remaining messages")


def _wait_until(run: Run, condition: Callable[[], bool], awaited: str) -> None:
    deadline = monotonic() + _DRAIN_SECONDS
    while not _holds(condition):
        run.processes.maintain()
        if monotonic() > deadline:
            raise FraudAssetsError(
                f"Waiting for {awaited} timed out after {_DRAIN_SECONDS} s. Read the logs in {run.processes.folder}."
            )
        sleep(0.3)


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except FileNotFoundError:
        # The vacuum removed a file after the log was read but before the file was read.
        return False
