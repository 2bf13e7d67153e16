"""A real Spark cluster: workers and drivers die, tasks run twice, and every row is in the table once."""

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
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.errors import EngineError
from fraud_assets.lake.log import row_count
from fraud_assets.lake.tables import Lake, read
from fraud_assets.operations.maintenance import maintain_lake, maintain_table
from fraud_assets.operations.setup_home import prepare_home
from fraud_assets.settings import Settings
from fraud_assets.testing.object_store import ObjectStore
from fraud_assets.testing.spark_cluster import StandaloneCluster, standalone
from fraud_assets_tests.conftest import QUICK_JAVA, ROOT, Start
from fraud_assets_tests.landed import bodies, land
from fraud_assets_tests.topics import numbers, produce
from fraud_assets_tests.waiting import until

pytestmark = pytest.mark.xdist_group("spark")

FILES, ROWS = 4, 100
Drive = Callable[..., "subprocess.Popen[str]"]


def environment(cluster: StandaloneCluster, settings: Settings, **conf: str) -> dict[str, str]:
    """Of a process that works with these settings on that cluster; `conf` are settings of Spark, `_` for `.`."""
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
    """Where the driver copies to."""
    return Lake(str(tmp_path / "copy"))


@pytest.fixture
def drive(spark_cluster: StandaloneCluster, settings: Settings, lake: Lake, copied: Lake) -> Iterator[Drive]:
    """`drive("--die", spark_…=…)`: a driver that copies what `lake` holds to `copied`; ended with the test."""
    spark_cluster.start_worker()
    for number in range(FILES):
        land(lake, bodies(ROWS, first_id=number * ROWS), first_offset=number * ROWS)
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, **conf: str) -> subprocess.Popen[str]:
        driver = Path(__file__).with_name("spark_driver.py")
        # Some rows are written while their task is still reading: they go from process to process in small batches.
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
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def told(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=100)
    return process.returncode, output, errors


def on_disk(lake: Lake, table: Table = raw_transactions) -> set[str]:
    """Names of the data files that are in the table's folder."""
    return {file.name for file in Path(lake.uri(table)).rglob("part-*")}


def in_log(lake: Lake, table: Table = raw_transactions) -> set[str]:
    return {uri.rsplit("/", 1)[-1] for uri in lake.open(table).file_uris()}


def make_old(lake: Lake) -> None:
    """Makes all data files older than what maintenance spares."""
    for file in Path(lake.root).rglob("part-*"):
        os.utime(file, (0, 0))


def processes_in(folder: Path) -> set[str]:
    """Processes that work in the folder."""
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
    assert not maintain_table(
        lake, raw_transactions, settings
    ).files_removed  # they could be another writer's, not committed yet
    make_old(lake)
    assert maintain_table(lake, raw_transactions, settings).files_removed
    assert not orphans & on_disk(lake)
    assert_each_once(lake)


@pytest.mark.proof
def test_a_driver_that_dies_before_it_commits_leaves_nothing_behind(
    drive: Drive, copied: Lake, settings: Settings, spark_cluster: StandaloneCluster
) -> None:
    assert told(drive("--die"))[0] == -signal.SIGKILL
    assert len(on_disk(copied)) == FILES
    assert not in_log(copied)
    until(lambda: not spark_cluster.state()["activeapps"])
    assert told(drive()) == (0, "", "")
    assert_each_once(copied)
    assert_maintenance_removes_orphans(copied, settings)


@pytest.mark.proof
def test_a_worker_that_dies_at_work_costs_no_row(
    drive: Drive, copied: Lake, settings: Settings, spark_cluster: StandaloneCluster, tmp_path: Path
) -> None:
    workers = {"worker-1", "worker-2"}
    driver = drive("--gate", str(tmp_path))
    until(lambda: workers <= {file.name for file in tmp_path.iterdir()} and len(on_disk(copied)) >= 2, 60)
    assert len(processes_in(spark_cluster.folder / "worker-1")) > 2
    spark_cluster.kill_worker(1)
    assert not processes_in(spark_cluster.folder / "worker-1")
    (tmp_path / "open").touch()
    assert told(driver) == (0, "", "")
    assert_each_once(copied)
    assert_maintenance_removes_orphans(copied, settings)


@pytest.mark.proof
def test_a_task_that_runs_twice_counts_once(drive: Drive, copied: Lake, tmp_path: Path) -> None:
    driver = drive(
        "--late",
        str(tmp_path),
        spark_speculation="true",
        spark_speculation_interval="50ms",
        spark_speculation_quantile="0.1",
        spark_speculation_multiplier="1",
        spark_task_maxFailures="1",
    )
    assert told(driver) == (0, "", "")
    assert (tmp_path / "overtaken").exists()
    assert_each_once(copied)


@pytest.mark.proof
def test_no_process_outlives_the_block(tmp_path: Path) -> None:
    def interrupted() -> None:
        with standalone(tmp_path, workers=1):
            assert len(processes_in(tmp_path)) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not processes_in(tmp_path)


@pytest.mark.usefixtures("spark_cluster")
def test_a_master_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fraud_assets.testing.spark_cluster.QUICK_START", ("-Xmx1k",))
    with pytest.raises(EngineError, match=r"master of Spark ended during startup.*heap"):
        with standalone(tmp_path):
            pass


@pytest.mark.proof
def test_a_lander_without_workers_says_so_and_ends_when_told(
    spark_cluster: StandaloneCluster, apache_settings: Settings, start: Start
) -> None:
    produce(apache_settings, numbers(0, 10))
    process = start(
        *("land", "--engine", "spark"),
        KAFKA_BOOTSTRAP_SERVERS=apache_settings.kafka_bootstrap_servers,
        FRAUD_TRANSACTIONS_TOPIC=apache_settings.transactions_topic,
        FRAUD_LABELS_TOPIC=apache_settings.labels_topic,
        FRAUD_SPARK_MASTER=spark_cluster.master,
        FRAUD_SPARK_CONF="spark.executor.memory=900g",
    )
    assert process.stderr is not None
    said = next(line for line in process.stderr if "No worker" in line)
    assert spark_cluster.master in said
    assert "900g" in said
    until(lambda: any((apache_settings.home_path / "spark").glob("landing-*/offsets/0")), 60)
    process.send_signal(signal.SIGTERM)
    _, lines = process.communicate(timeout=60)
    assert process.returncode == 0, lines
    assert "Traceback" not in lines
    assert not list((apache_settings.home_path / "spark").glob("landing-*"))


# --- The whole chain ---------------------------------------------------------------------------------------------


Materialize = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def materialize(spark_cluster: StandaloneCluster, tmp_path: Path) -> Iterator[Materialize]:
    """`materialize(settings, "fraud_labels", …)`: `dagster asset materialize` on the cluster, ended with the test.

    It lands in batches of 2,000, so that there is a middle to die in, and goes on in batches of `batch_rows`.
    """
    running: list[subprocess.Popen[bytes]] = []

    def begin(settings: Settings, *assets: str, batch_rows: int = 2_000) -> subprocess.Popen[bytes]:
        prepare_home(settings)
        command = ["asset", "materialize", "-m", "fraud_assets.definitions", "--select", ",".join(assets)]
        with log_of(tmp_path).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dagster", *command],
                # Not in the repository's folder: Dagster puts the `.env` of the folder above the environment.
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
    """What Dagster told."""
    return tmp_path / "dagster.log"


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL of Dagster, its steps and their drivers."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def in_the_middle(process: subprocess.Popen[bytes], lake: Lake, table: Table, tmp_path: Path) -> None:
    """Waits until something of the table is committed, and the rest is still to come."""
    until(lambda: process.poll() is not None or row_count(lake.open(table)) > 0, 300)
    assert process.poll() is None, log_of(tmp_path).read_text()


def finished(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert process.wait(300) == 0, log_of(tmp_path).read_text()


def assert_exactly_once(lake: Lake, settings: Settings, traffic: Traffic) -> None:
    assert not [check for check in verify(lake, settings, traffic.sent, []) if not check.holds]


@pytest.mark.timeout(400)
def test_the_whole_chain_on_an_object_store_outlives_a_worker(
    materialize: Materialize,
    spark_cluster: StandaloneCluster,
    apache_settings: Settings,
    s3: ObjectStore,
    s3_settings: Settings,
    tmp_path: Path,
) -> None:
    """The workers were started without the store's credentials: these come with their tasks."""
    settings = apache_settings.model_copy(update={name: getattr(s3_settings, name) for name in s3.settings("")})
    lake, traffic = Lake.of(settings), Traffic(settings, rate=0, seed=2)
    spark_cluster.start_worker()
    traffic.burst(4_000)
    run = materialize(
        settings,
        *("raw_transactions", "fraud_labels", "transaction_features", "quarantined_transactions"),
        *("isolation_forest", "alert_thresholds", "fraud_predictions"),
        batch_rows=1_000_000,
    )
    in_the_middle(run, lake, raw_transactions, tmp_path)
    spark_cluster.kill_worker(1)
    finished(run, tmp_path)
    assert_exactly_once(lake, settings, traffic)


@pytest.mark.proof
@pytest.mark.timeout(1200)
def test_the_whole_chain_outlives_workers_and_a_driver(
    materialize: Materialize, spark_cluster: StandaloneCluster, apache_settings: Settings, tmp_path: Path
) -> None:
    settings, lake = apache_settings, Lake.of(apache_settings)
    traffic = Traffic(settings, rate=0, seed=1)

    spark_cluster.start_worker()
    traffic.burst(12_000)

    landing = materialize(settings, "raw_transactions", "fraud_labels")
    in_the_middle(landing, lake, raw_transactions, tmp_path)
    spark_cluster.kill_worker(1)
    finished(landing, tmp_path)

    spark_cluster.start_worker()
    features = materialize(settings, "transaction_features", "quarantined_transactions")
    in_the_middle(features, lake, transaction_features, tmp_path)
    kill(features)
    finished(materialize(settings, "transaction_features", "quarantined_transactions"), tmp_path)
    finished(materialize(settings, "isolation_forest", "alert_thresholds"), tmp_path)

    scoring = materialize(settings, "fraud_predictions")
    in_the_middle(scoring, lake, fraud_predictions, tmp_path)
    spark_cluster.kill_worker(2)
    finished(scoring, tmp_path)
    assert_exactly_once(lake, settings, traffic)

    # What comes next is taken up where the last run ended, by the workers that are there.
    traffic.burst(1_000)
    again = materialize(settings, "raw_transactions", "fraud_labels", "transaction_features", "fraud_predictions")
    finished(again, tmp_path)
    assert_exactly_once(lake, settings, traffic)
    tables = (raw_transactions, transaction_features, fraud_predictions, quarantined_transactions)
    orphans = {table: on_disk(lake, table) - in_log(lake, table) for table in tables}
    make_old(lake)
    maintain_lake(lake, settings)
    assert not [table.name for table in tables if orphans[table] & on_disk(lake, table)]
    assert_exactly_once(lake, settings, traffic)
