"""The doctor: a healthy platform passes, and each broken part has its own line, fix and exit code 1."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner, Result
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus
from dagster._daemon.types import DaemonHeartbeat

from fraud_assets.cli import cli
from fraud_assets.core.schema import fraud_predictions, raw_transactions, transaction_features
from fraud_assets.doctor.checks import run_checks
from fraud_assets.doctor.files import check_files
from fraud_assets.doctor.finding import Finding
from fraud_assets.doctor.installation import check_home, check_settings, check_versions
from fraud_assets.doctor.kafka import check_broker, check_landers, check_schema_registry
from fraud_assets.doctor.lake import check_lake, check_quarantine, check_reconciliation, check_registry
from fraud_assets.doctor.orchestrator import check_dagster
from fraud_assets.doctor.spark import check_spark
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.ingest.files.landing import land_files
from fraud_assets.ingest.service.presence import register_lander
from fraud_assets.kafka.broker import Broker
from fraud_assets.lake.append import commit_append
from fraud_assets.lake.positions import SourcePartition
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.setup_home import prepare_home
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed
from fraud_assets.stages.scoring import score_pending
from fraud_assets.stages.training import train
from fraud_assets_tests.support.daemon import Daemon
from fraud_assets_tests.support.landed import bodies, land
from fraud_assets_tests.support.quarantined import other_names
from fraud_assets_tests.support.starting import Send


def worst_finding(findings: list[Finding], name: str) -> Finding:
    """Return the worst finding with this name."""
    return max((f for f in findings if f.name == name), key=lambda f: ["SKIP", "OK", "WARN", "FAIL"].index(f.state))


def assert_broken(findings: list[Finding], name: str, *words: str) -> None:
    finding = worst_finding(findings, name)
    assert finding.state == "FAIL", finding
    assert finding.fix
    assert all(word in finding.text + finding.fix for word in words), finding


def run_doctor(settings: Settings, *arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", *arguments], env={"FRAUD_HOME": str(settings.home_path), **environment})


@pytest.fixture(autouse=True)
def no_dagster_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use only the home of the test, and no `.env` of the current folder."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def instance(settings: Settings) -> Any:
    """The Dagster instance of the test's home, with a running daemon."""
    prepare_home(settings)
    with dg.DagsterInstance.from_config(str(settings.home_path / "dagster")) as opened:
        add_heartbeats(opened, time.time())
        yield opened


def add_heartbeats(instance: dg.DagsterInstance, timestamp: float) -> None:
    for daemon_type in instance.get_required_daemon_types():
        instance.add_daemon_heartbeat(DaemonHeartbeat(timestamp, daemon_type, "test", errors=[]))


def test_a_healthy_platform_has_exit_code_0(
    make_settings: Callable[..., Settings], lake: Lake, broker: Broker, send: Send, instance: dg.DagsterInstance
) -> None:
    settings = make_settings(train_min_rows=50, train_trees=5)
    send("transactions", bodies(80))
    send("fraud-labels", [b'{"transaction_id": 1, "is_fraud": 1, "labelled_at": "2026-01-02T00:00:00Z"}'])
    land_topics(lake, settings)
    process_landed(lake, settings)
    train(lake, settings)
    score_pending(lake, settings)
    with register_lander(settings):
        result = run_doctor(settings, "--json")
    report = json.loads(result.stdout)
    states = {check["name"]: check["state"] for check in report["checks"]}
    assert {name: state for name, state in states.items() if state != "OK"} == {}, report
    assert result.exit_code == 0
    assert report["ok"] is True
    assert set(states) >= {
        "settings",
        "broker",
        "topic transactions",
        "lake",
        "reconciliation",
        "registry",
        "daemon",
        "landers",
    }
    texts = {check["name"]: check["text"] for check in report["checks"]}
    assert "0 messages to land" in texts["topic transactions"]
    assert "80 landed = 80 features" in texts["reconciliation"]
    assert "version 1 is champion, feature version" in texts["registry"]


def test_a_broken_part_has_its_own_line_and_hides_no_other(settings: Settings, lake: Lake) -> None:
    land(lake, bodies(3))
    result = run_doctor(settings, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1", FRAUD_KAFKA_TIMEOUT_SECONDS="1")
    assert result.exit_code == 1
    assert "FAIL  broker" in result.stdout
    assert "KAFKA_BOOTSTRAP_SERVERS" in result.stdout
    assert "OK    lake" in result.stdout
    assert "raw_transactions v1" in result.stdout
    assert "Traceback" not in result.output


def test_spark_is_checked_only_if_it_is_the_engine(
    make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_spark(make_settings()) == []
    options = {"engine": "spark", "kafka_bootstrap_servers": "127.0.0.1:1"}
    assert_broken(
        spark_findings(make_settings(**options, spark_jars=str(tmp_path))), "spark connector", "FRAUD_SPARK_JARS"
    )
    (tmp_path / "spark-sql-kafka-0-10_2.13-4.2.0.jar").touch()
    findings = spark_findings(make_settings(**options, spark_jars=str(tmp_path)))
    assert {finding.name: finding.state for finding in findings} == {"spark": "OK", "spark connector": "OK"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert worst_finding(spark_findings(make_settings(**options)), "spark connector").state == "WARN"
    monkeypatch.setattr("fraud_assets.doctor.spark._ANSWER_SECONDS", 0.1)
    assert_broken(
        spark_findings(make_settings(**options, spark_master="spark://127.0.0.1:1")), "spark", "FRAUD_SPARK_MASTER"
    )
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert_broken(spark_findings(make_settings(**options)), "spark", "Java", "JAVA_HOME")


def spark_findings(settings: Settings) -> list[Finding]:
    return run_checks(settings, {"spark": check_spark})


def test_the_doctor_changes_nothing(settings: Settings, lake: Lake) -> None:
    prepare_home(settings)
    land(lake, bodies(3))
    before = sorted(settings.home_path.rglob("*.json")), lake.versions()
    assert run_doctor(settings).exit_code == 0
    assert (sorted(settings.home_path.rglob("*.json")), lake.versions()) == before


def test_an_invalid_setting_is_one_line(settings: Settings) -> None:
    result = run_doctor(settings, "--json", FRAUD_BATCH_ROWS="many")
    assert result.exit_code == 1
    [line] = json.loads(result.stdout)["checks"]
    assert "FRAUD_BATCH_ROWS is 'many'" in line["text"]


def test_an_unknown_setting_is_reported_with_the_closest_name(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAUD_BATCHROWS", "5")
    Path(".env").write_text("FRAUD_TRAIN_DAY=3\n# FRAUD_NOTHING=1\n")
    fixes = {finding.text.split()[0]: finding.fix for finding in check_settings(settings) if finding.state == "WARN"}
    assert fixes == {
        "FRAUD_BATCHROWS": "Did you mean FRAUD_BATCH_ROWS?",
        "FRAUD_TRAIN_DAY": "Did you mean FRAUD_TRAIN_DAYS?",
    }


def test_no_secret_is_shown(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(
        pseudonymise="customer_id",
        pseudonym_key="kept quiet " * 4,
        mlflow_tracking_uri="http://me:hidden@127.0.0.1:1",
        train_trees=7,
    )
    shown = str(run_checks(settings))
    assert "FRAUD_TRAIN_TREES=7" in shown
    assert "FRAUD_PSEUDONYM_KEY=***" in shown
    assert "quiet" not in shown
    assert "hidden" not in shown


def test_a_home_that_cannot_be_written_is_reported(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert_broken(check_home(make_settings(home=tmp_path / "file" / "home")), "home", "FRAUD_HOME")


def test_a_missing_or_unsupported_library_is_reported(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from fraud_assets.doctor import installation

    assert check_versions(settings)[0].state == "OK"
    monkeypatch.setattr(
        installation, "requires", lambda name: ["duckdb>=99", "no-such-library", "pytest<1; extra == 'dev'"]
    )
    assert_broken(check_versions(settings), "versions", "duckdb is", "no-such-library is missing", "make setup")


def test_a_stopped_embedded_broker_is_reported(settings: Settings) -> None:
    prepare_home(settings)
    stale = {
        "bootstrap_servers": "127.0.0.1:1",
        "topic_id": "a",
        "pid": 2**22 - 1,
        "started_at": "2026-01-01T00:00:00Z",
    }
    settings.broker_file.write_text(json.dumps(stale))
    findings = check_broker(settings)
    assert_broken(findings, "broker", "broker.json", "fraud-assets broker")
    assert worst_finding(findings, "topic transactions").state == "SKIP"


def test_messages_that_the_broker_deleted_before_landing_are_reported(
    settings: Settings, lake: Lake, broker: Broker, send: Send
) -> None:
    send("transactions", [b"x" * 900_000] * 12, partition=0)
    assert_broken(check_broker(settings), "topic transactions", "deleted messages before they landed", "partition 0")


def test_messages_that_the_broker_lost_are_reported(settings: Settings, lake: Lake, broker: Broker, send: Send) -> None:
    """A broker loses messages when it is restored from an old copy."""
    send("transactions", bodies(5), partition=0)
    land_topics(lake, settings)
    source_partition = SourcePartition("transactions", str(broker.topic_id), 0)
    commit_append(
        lake.open(raw_transactions), raw_transactions, raw_transactions.schema.empty_table(), {source_partition: 50}
    )
    assert_broken(check_broker(settings), "topic transactions", "broker has lost", "partitions 0")


def test_the_lag_is_reported_and_the_doctor_creates_no_topic(settings: Settings, broker: Broker, send: Send) -> None:
    send("transactions", bodies(5))
    findings = check_broker(settings)
    assert "5 messages to land" in worst_finding(findings, "topic transactions").text
    assert "does not exist yet" in worst_finding(check_broker(settings), "topic fraud-labels").text
    assert worst_finding(check_landers(settings), "landers").state == "WARN"


def test_a_lander_that_does_not_answer_is_reported(settings: Settings) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with register_lander(settings, address):
        assert_broken(check_landers(settings), "landers", address)


def test_a_failing_lander_is_reported(settings: Settings) -> None:
    from fraud_assets.ingest.service.metrics import LandingMetrics, serve_metrics

    metrics = LandingMetrics()
    with serve_metrics(metrics, "127.0.0.1:0") as address, register_lander(settings, address):
        assert worst_finding(check_landers(settings), "landers").state == "OK"
        metrics.set_failing("The disk is full.")
        assert_broken(check_landers(settings), "landers", "The disk is full.")


def test_a_lander_with_a_degraded_drop_folder_is_reported(settings: Settings) -> None:
    from fraud_assets.ingest.service.metrics import LandingMetrics, serve_metrics

    metrics = LandingMetrics()
    with serve_metrics(metrics, "127.0.0.1:0") as address, register_lander(settings, address):
        metrics.files.record_pass([], {"folder": "It is a folder."})
        finding = worst_finding(check_landers(settings), "landers")
    assert finding.state == "WARN"
    assert "is degraded" in finding.text
    assert "It is a folder." in finding.text


def test_drop_folder_entries_that_need_manual_action_are_reported(settings: Settings, lake: Lake) -> None:
    assert [finding.state for finding in check_files(settings)] == ["OK"]
    (settings.incoming / "folder").mkdir(parents=True)
    (settings.incoming / "loop\n.csv").symlink_to("loop\n.csv")
    assert land_files(lake, settings)
    old = settings.incoming / "old.jsonl"
    old.write_text("{}\n")
    os.utime(old, (0, 0))
    folder, late, failed = check_files(settings)
    assert {folder.state, late.state, failed.state} == {"WARN"}
    assert folder.text == "folder is a folder, and only files are landed"
    assert "Move the files out" in folder.fix
    assert "1 file has waited for an hour or longer: old.jsonl" in late.text
    assert "1 file failed, the last is loop\\n.csv" in failed.text
    assert str(settings.failed) in failed.fix


def test_an_unavailable_schema_registry_is_reported(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(
        transactions_format="avro", schema_registry_url="http://127.0.0.1:1", kafka_timeout_seconds=1
    )
    assert_broken(check_schema_registry(settings), "schema registry", "SCHEMA_REGISTRY_URL")


def test_an_unreadable_table_is_reported(settings: Settings, lake: Lake) -> None:
    land(lake, bodies(3))
    log = Path(lake.root) / "raw_transactions" / "_delta_log" / f"{1:020}.json"
    log.write_text("{broken")
    assert_broken(check_lake(settings), "lake", "raw_transactions")
    assert worst_finding(check_reconciliation(settings), "reconciliation").state == "SKIP"


def test_counts_that_do_not_reconcile_are_reported(settings: Settings, lake: Lake) -> None:
    land(lake, bodies(10))
    process_landed(lake, settings)
    lake.open(fraud_predictions)
    assert worst_finding(check_reconciliation(settings), "reconciliation").state == "OK"
    assert worst_finding(check_reconciliation(settings), "predictions").state == "WARN"
    lake.open(transaction_features).delete("transaction_id = '3'")
    assert_broken(check_reconciliation(settings), "reconciliation", "10 landed, but 9 processed", "fraud-assets erase")


def test_a_high_share_of_quarantined_messages_is_a_warning(settings: Settings, lake: Lake) -> None:
    land(lake, bodies(30) + bodies(1))
    process_landed(lake, settings)
    assert check_quarantine(settings)[0].state == "OK"
    land(lake, other_names(5, 100), first_offset=31)
    process_landed(lake, settings)
    finding = worst_finding(check_quarantine(settings), "quarantine")
    assert finding.state == "WARN"
    assert (
        "5 open messages (13.89% of landed messages), most often missing_field; also 1 repeated id and 0 tombstones"
        in finding.text
    )


def test_a_missing_damaged_or_unavailable_registry_is_reported(
    make_settings: Callable[..., Settings], settings: Settings
) -> None:
    assert check_registry(settings)[0].state == "WARN"
    database = settings.home_path / "mlflow" / "mlflow.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"no database at all, " * 100)
    assert_broken(check_registry(settings), "registry", str(database))
    unavailable = make_settings(mlflow_tracking_uri="http://127.0.0.1:1")
    assert_broken(check_registry(unavailable), "registry", "127.0.0.1:1", "MLFLOW_TRACKING_URI")


def test_a_daemon_that_stopped_or_never_ran_is_reported(settings: Settings, instance: dg.DagsterInstance) -> None:
    assert worst_finding(check_dagster(settings), "daemon").state == "OK"
    add_heartbeats(instance, time.time() - 600)
    assert_broken(check_dagster(settings), "daemon", "no heartbeat", "dagster-daemon run")
    instance.wipe_daemon_heartbeats()
    assert worst_finding(check_dagster(settings), "daemon").state == "WARN"


def test_a_dagster_home_of_another_home_is_a_warning(
    make_settings: Callable[..., Settings], settings: Settings, tmp_path: Path
) -> None:
    """In a copied folder, `.env` still names the Dagster home of the original."""
    prepare_home(settings)
    copied = make_settings(home=tmp_path / "copy", dagster_home=str(settings.home_path / "dagster"))
    prepare_home(copied)
    assert worst_finding(check_dagster(settings), "dagster").state == "OK"
    finding = worst_finding(check_dagster(copied), "dagster")
    assert (finding.state, str(copied.home_path) in finding.text) == ("WARN", True)
    assert "fraud-assets setup" in finding.fix


def test_a_missing_or_damaged_dagster_home_is_reported(settings: Settings) -> None:
    assert worst_finding(check_dagster(settings), "dagster").state == "WARN"
    prepare_home(settings)
    (settings.home_path / "dagster" / "dagster.yaml").write_text("run_coordinator: {module: nowhere, class: None}\n")
    assert_broken(check_dagster(settings), "dagster", "dagster.yaml")


def test_a_stopped_or_failing_sensor_is_reported(settings: Settings, instance: dg.DagsterInstance) -> None:
    sensor = add_sensor_state(settings, instance, InstigatorStatus.DECLARED_IN_CODE)
    assert worst_finding(check_dagster(settings), "sensors").state == "OK"
    add_failed_tick(instance, sensor, "3 runs failed on the same messages without any progress.")
    assert_broken(check_dagster(settings), "sensors", "new_files_sensor failed", "3 runs failed on the same messages")
    instance.update_instigator_state(sensor.with_status(InstigatorStatus.STOPPED))
    assert "turned off: new_files_sensor" in worst_finding(check_dagster(settings), "sensors").text


def add_sensor_state(settings: Settings, instance: dg.DagsterInstance, status: InstigatorStatus) -> InstigatorState:
    """Store the state of the sensor in the form that the daemon uses."""
    from dagster._core.definitions.run_request import InstigatorType
    from dagster._core.remote_origin import (
        ManagedGrpcPythonEnvCodeLocationOrigin,
        RemoteInstigatorOrigin,
        RemoteRepositoryOrigin,
    )
    from dagster._core.scheduler.instigation import SensorInstigatorData
    from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

    module = LoadableTargetOrigin(module_name="fraud_assets.definitions")
    repository = RemoteRepositoryOrigin(ManagedGrpcPythonEnvCodeLocationOrigin(module), "__repository__")
    origin = RemoteInstigatorOrigin(repository, "new_files_sensor")
    state = InstigatorState(origin, InstigatorType.SENSOR, status, SensorInstigatorData(min_interval=5))
    return instance.add_instigator_state(state)


def add_failed_tick(instance: dg.DagsterInstance, state: InstigatorState, reason: str) -> None:
    """Store a failed tick of the sensor."""
    from dagster._core.definitions.run_request import InstigatorType
    from dagster._core.scheduler.instigation import TickData, TickStatus
    from dagster._utils.error import SerializableErrorInfo

    error = SerializableErrorInfo(reason, [], "StuckError")
    data = TickData(state.instigator_origin_id, "new_files_sensor", InstigatorType.SENSOR, TickStatus.FAILURE,
                    time.time(), error=error, selector_id=state.selector_id)  # fmt: skip
    instance.create_tick(data)


def test_a_failed_run_is_reported_until_a_later_run_succeeds(
    settings: Settings, lake: Lake, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fraud_assets.stages import features
    from fraud_assets_tests.support.daemon import fails

    land(lake, bodies(3))
    daemon = Daemon(settings)
    daemon.instance = instance
    request = daemon.requested()
    with monkeypatch.context() as broken:
        broken.setattr(features, "process_landed", fails)
        assert not daemon.run(request).success
    finding = worst_finding(check_dagster(settings), "runs")
    assert finding.state == "WARN"
    assert "1 failed within a day" in finding.text
    assert daemon.run(daemon.requested()).success
    assert "a later run of that job succeeded" in worst_finding(check_dagster(settings), "runs").text


def test_a_check_that_hangs_or_raises_is_a_failed_line(settings: Settings) -> None:
    def hangs(settings: Settings) -> list[Finding]:
        time.sleep(30)
        return []

    def raises(settings: Settings) -> list[Finding]:
        raise ZeroDivisionError("of its own")

    findings = run_checks(settings, {"one": hangs, "two": raises, "home": check_home}, timeout=0.5)
    assert_broken(findings, "one", "no answer within 0.5 s")
    assert_broken(findings, "two", "ZeroDivisionError: of its own")
    assert worst_finding(findings, "home").state in {"OK", "WARN"}


def test_libraries_are_imported_before_the_checks_run_in_threads(settings: Settings) -> None:
    """Threads that import SQLAlchemy at the same time fail now and then with a partially initialized module."""
    code = """
import sys
from fraud_assets.doctor.checks import run_checks
from fraud_assets.doctor.finding import ok
from fraud_assets.settings import load_settings

def check(settings):
    return [ok("imports", str({"dagster", "mlflow", "sqlalchemy.orm"} <= sys.modules.keys()))]

print(run_checks(load_settings(_env_file=None), {"imports": check})[0].text)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout == "True\n"
