"""Runs drivers, workers and assets on a Spark cluster, and reads their results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fraud_assets.chaos.traffic import Traffic
from fraud_assets.chaos.verification import verify
from fraud_assets.core.schema import (
    Table,
    raw_transactions,
)
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake, read
from fraud_assets.operations.maintenance import maintain_table
from fraud_assets.operations.setup_home import prepare_home
from fraud_assets.settings import Settings
from fraud_assets.testing.spark_cluster import StandaloneCluster
from fraud_assets_tests.support.landed import bodies, land
from fraud_assets_tests.support.starting import QUICK_JAVA, ROOT, end_processes
from fraud_assets_tests.support.waiting import until

FILES, ROWS = 4, 100


Drive = Callable[..., "subprocess.Popen[str]"]


def environment(cluster: StandaloneCluster, settings: Settings, **conf: str) -> dict[str, str]:
    """The environment of a process on the cluster; `conf` are settings of Spark with `_` for `.`."""
    spark_conf = {
        "spark.executor.extraJavaOptions": QUICK_JAVA,
        "spark.ui.enabled": "false",
        "spark.local.dir": str(settings.home_path / "spark"),
        **{name.replace("_", "."): value for name, value in conf.items()},
    }
    return {
        **os.environ,
        "JDK_JAVA_OPTIONS": QUICK_JAVA,
        "FRAUD_HOME": str(settings.home_path),
        "FRAUD_LAKE_URI": settings.lake_uri,
        "FRAUD_ENGINE": "spark",
        "FRAUD_SPARK_MASTER": cluster.master,
        "FRAUD_SPARK_MEMORY": "512m",
        "FRAUD_SPARK_CONF": ";".join(f"{name}={value}" for name, value in spark_conf.items()),
    }


@pytest.fixture
def copied(tmp_path: Path) -> Lake:
    """The lake to which the driver copies."""
    return Lake(str(tmp_path / "copy"))


@pytest.fixture
def drive(spark_cluster: StandaloneCluster, settings: Settings, lake: Lake, copied: Lake) -> Iterator[Drive]:
    """`drive("--die", spark_…=…)`: starts a driver that copies `lake` to `copied`; the driver ends with the test."""
    spark_cluster.start_worker()
    for number in range(FILES):
        land(lake, bodies(ROWS, first_id=number * ROWS), first_offset=number * ROWS)
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, **conf: str) -> subprocess.Popen[str]:
        driver = Path(__file__).with_name("spark_driver.py")
        # Small batches between processes: a task writes its first rows while it still reads.
        conf = {"spark_sql_execution_arrow_maxRecordsPerBatch": "10", "spark_buffer_size": "512", **conf}
        process = subprocess.Popen(
            [sys.executable, str(driver), copied.root, *arguments],
            env=environment(spark_cluster, settings, **conf),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield begin
    end_processes(running)


def read_result(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=100)
    return process.returncode, output, errors


def on_disk(lake: Lake, table: Table = raw_transactions) -> set[str]:
    """The names of the data files in the folder of the table."""
    return {file.name for file in Path(lake.uri(table)).rglob("part-*")}


def in_log(lake: Lake, table: Table = raw_transactions) -> set[str]:
    return {uri.rsplit("/", 1)[-1] for uri in lake.open(table).file_uris()}


def make_old(lake: Lake) -> None:
    """Makes all data files so old that maintenance deletes those that no table uses."""
    for file in Path(lake.root).rglob("part-*"):
        os.utime(file, (0, 0))


def processes_in(folder: Path) -> set[str]:
    """The processes whose working directory is in the folder."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").resolve().is_relative_to(folder):
                found.add(process.name)
    return found


def assert_each_once(lake: Lake) -> None:
    assert sorted(read(lake.open(raw_transactions))["offset"].to_pylist()) == list(range(FILES * ROWS))


def assert_maintenance_removes_orphans(lake: Lake, settings: Settings) -> None:
    orphans = on_disk(lake) - in_log(lake)
    assert orphans
    assert not maintain_table(lake, raw_transactions, settings).files_removed  # another writer could still commit them
    make_old(lake)
    assert maintain_table(lake, raw_transactions, settings).files_removed
    assert not orphans & on_disk(lake)
    assert_each_once(lake)


Materialize = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def materialize(spark_cluster: StandaloneCluster, tmp_path: Path) -> Iterator[Materialize]:
    """`materialize(settings, "fraud_labels", …)`: `dagster asset materialize` on the cluster; it ends with the test.

    Batches have 2,000 rows by default, so that a test can kill a run in the middle.
    """
    running: list[subprocess.Popen[bytes]] = []

    def begin(settings: Settings, *assets: str, batch_rows: int = 2_000) -> subprocess.Popen[bytes]:
        prepare_home(settings)
        command = ["asset", "materialize", "-m", "fraud_assets.definitions", "--select", ",".join(assets)]
        with log_of(tmp_path).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dagster", *command],
                # Not in the folder of the repository: Dagster lets the `.env` of the folder override the environment.
                cwd=settings.home_path,
                env={
                    **environment(spark_cluster, settings),
                    "PYTHONPATH": str(ROOT),
                    "DAGSTER_HOME": str(settings.home_path / "dagster"),
                    "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
                    "FRAUD_TRANSACTIONS_TOPIC": settings.transactions_topic,
                    "FRAUD_LABELS_TOPIC": settings.labels_topic,
                    "FRAUD_SPARK_LAND_ROWS": "2000",
                    "FRAUD_SPARK_BATCH_ROWS": str(batch_rows),
                    "FRAUD_TRAIN_TREES": "10",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        running.append(process)
        return process

    yield begin
    for process in running:
        kill(process)


def log_of(tmp_path: Path) -> Path:
    """The log file of Dagster."""
    return tmp_path / "dagster.log"


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills Dagster, its steps and their drivers with SIGKILL."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def in_the_middle(process: subprocess.Popen[bytes], lake: Lake, table: Table, tmp_path: Path) -> None:
    """Waits until a part of the table is committed, and asserts that the run has not ended."""
    until(lambda: process.poll() is not None or read_row_count(lake.open(table)) > 0, 300)
    assert process.poll() is None, log_of(tmp_path).read_text()


def finished(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert process.wait(300) == 0, log_of(tmp_path).read_text()


def assert_exactly_once(lake: Lake, settings: Settings, traffic: Traffic) -> None:
    assert not [check for check in verify(lake, settings, traffic.sent, []) if not check.holds]
