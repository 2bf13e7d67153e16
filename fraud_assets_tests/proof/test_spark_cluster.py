"""Drivers and workers of a Spark cluster are killed while they work; no row is lost or repeated."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from fraud_assets.chaos.traffic import Traffic
from fraud_assets.core.schema import (
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.maintenance import maintain_lake
from fraud_assets.settings import Settings
from fraud_assets.testing.spark_cluster import StandaloneCluster, standalone
from fraud_assets_tests.support.spark_cluster_runs import (
    FILES,
    Drive,
    Materialize,
    assert_each_once,
    assert_exactly_once,
    assert_maintenance_removes_orphans,
    finished,
    in_log,
    in_the_middle,
    kill,
    make_old,
    on_disk,
    processes_in,
    read_result,
)
from fraud_assets_tests.support.starting import Start
from fraud_assets_tests.support.topics import numbers, produce
from fraud_assets_tests.support.waiting import until

pytestmark = pytest.mark.xdist_group("spark")


def test_a_driver_killed_before_its_commit_adds_no_row(
    drive: Drive, copied: Lake, settings: Settings, spark_cluster: StandaloneCluster
) -> None:
    assert read_result(drive("--die"))[0] == -signal.SIGKILL
    assert len(on_disk(copied)) == FILES
    assert not in_log(copied)
    until(lambda: not spark_cluster.state()["activeapps"])
    assert read_result(drive()) == (0, "", "")
    assert_each_once(copied)
    assert_maintenance_removes_orphans(copied, settings)


def test_a_worker_killed_during_a_task_loses_no_row(
    drive: Drive, copied: Lake, settings: Settings, spark_cluster: StandaloneCluster, tmp_path: Path
) -> None:
    workers = {"worker-1", "worker-2"}
    driver = drive("--gate", str(tmp_path))
    until(lambda: workers <= {file.name for file in tmp_path.iterdir()} and len(on_disk(copied)) >= 2, 60)
    assert len(processes_in(spark_cluster.folder / "worker-1")) > 2
    spark_cluster.kill_worker(1)
    assert not processes_in(spark_cluster.folder / "worker-1")
    (tmp_path / "open").touch()
    assert read_result(driver) == (0, "", "")
    assert_each_once(copied)
    assert_maintenance_removes_orphans(copied, settings)


def test_a_task_that_runs_twice_adds_its_rows_once(drive: Drive, copied: Lake, tmp_path: Path) -> None:
    driver = drive(
        "--late",
        str(tmp_path),
        spark_speculation="true",
        spark_speculation_interval="50ms",
        spark_speculation_quantile="0.1",
        spark_speculation_multiplier="1",
        spark_task_maxFailures="1",
    )
    assert read_result(driver) == (0, "", "")
    assert (tmp_path / "overtaken").exists()
    assert_each_once(copied)


def test_no_process_of_a_cluster_is_left_after_an_interrupt(tmp_path: Path) -> None:
    def interrupted() -> None:
        with standalone(tmp_path, workers=1):
            assert len(processes_in(tmp_path)) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not processes_in(tmp_path)


def test_a_lander_without_workers_logs_it_and_stops_on_sigterm(
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
    warning = next(line for line in process.stderr if "No worker" in line)
    assert spark_cluster.master in warning
    assert "900g" in warning
    until(lambda: any((apache_settings.home_path / "spark").glob("landing-*/offsets/0")), 60)
    process.send_signal(signal.SIGTERM)
    _, lines = process.communicate(timeout=60)
    assert process.returncode == 0, lines
    assert "Traceback" not in lines
    assert not list((apache_settings.home_path / "spark").glob("landing-*"))


@pytest.mark.timeout(1200)
def test_all_stages_survive_the_loss_of_workers_and_a_driver(
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

    # The next run continues where the last one ended, on the remaining workers.
    traffic.burst(1_000)
    next_run = materialize(settings, "raw_transactions", "fraud_labels", "transaction_features", "fraud_predictions")
    finished(next_run, tmp_path)
    assert_exactly_once(lake, settings, traffic)
    tables = (raw_transactions, transaction_features, fraud_predictions, quarantined_transactions)
    orphans = {table: on_disk(lake, table) - in_log(lake, table) for table in tables}
    make_old(lake)
    maintain_lake(lake, settings)
    assert not [table.name for table in tables if orphans[table] & on_disk(lake, table)]
    assert_exactly_once(lake, settings, traffic)
