"""The definitions that Dagster loads, and each asset, run in the test process and from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fraud_assets.core.schema import fraud_labels, quarantined_transactions, raw_transactions, transaction_features
from fraud_assets.definitions import build_defs, defs
from fraud_assets.kafka.broker import Broker
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.setup_home import prepare_home
from fraud_assets.resources import EngineResource, PlatformResource
from fraud_assets.settings import Settings
from fraud_assets.stages.alert_days import BusiestDay
from fraud_assets.stages.calibration import CalibrationReport
from fraud_assets.stages.features import process_landed
from fraud_assets.stages.scoring import ScoringReport
from fraud_assets.stages.training import TrainingReport
from fraud_assets_tests.support.alerts import commit_alerts
from fraud_assets_tests.support.landed import bodies, land
from fraud_assets_tests.support.synthetic import FIRST, commit_features, features

REPOSITORY = Path(__file__).parents[2]
ASSETS = {
    "raw_transactions",
    "fraud_labels",
    "transaction_features",
    "quarantined_transactions",
    "isolation_forest",
    "alert_thresholds",
    "fraud_predictions",
    "lake_maintenance",
}
EXTERNAL = {"transactions_topic", "labels_topic", "drop_folder", "model_registry"}
HEAVY = ("pyspark", "mlflow", "sklearn", "great_expectations", "duckdb", "treelite", "confluent_kafka")


def test_all_assets_load() -> None:
    dg.Definitions.validate_loadable(defs)
    assert {key.to_user_string() for key in defs.resolve_all_asset_keys()} == ASSETS | EXTERNAL


def test_sensors_and_schedules_run_by_default() -> None:
    sensors = {sensor.name: sensor for sensor in defs.sensors or ()}
    assert sensors.keys() == {"new_files_sensor", "dropped_files_sensor"}
    assert all(sensor.default_status == dg.DefaultSensorStatus.RUNNING for sensor in sensors.values())
    schedules = {schedule.name: schedule for schedule in defs.schedules or ()}
    assert schedules.keys() == {"training_schedule", "maintenance_schedule"}
    assert all(schedule.default_status == dg.DefaultScheduleStatus.RUNNING for schedule in schedules.values())


def test_the_run_config_of_the_schedules_is_valid() -> None:
    for schedule in defs.schedules or ():
        assert isinstance(schedule, dg.ScheduleDefinition)
        with dg.build_schedule_context() as context:
            requests = schedule.evaluate_tick(context).run_requests or []
        assert [
            dg.validate_run_config(defs.resolve_job_def(schedule.job_name), request.run_config) for request in requests
        ]


def test_loading_imports_no_heavy_package() -> None:
    code = f"import sys, fraud_assets.definitions; print(*[m for m in {HEAVY} if m in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert process.stdout.split() == []


# --- One asset at a time ---------------------------------------------------------------------------------------


Materialize = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def materialize(settings: Settings) -> Materialize:
    """`materialize(name, op=…)` materializes one asset with the configuration of its op, and raises no error."""
    platform = PlatformResource(overrides={"home": str(settings.home), "file_quiet_seconds": "0"})
    assets = list(build_defs().assets or ())

    def run(*names: str, **config: dict[str, Any]) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            assets,  # type: ignore[arg-type]
            selection=list(names),
            resources={"platform": platform, "engines": EngineResource()},
            run_config={"ops": {op: {"config": values} for op, values in config.items()}},
            instance=dg.DagsterInstance.ephemeral(),
            raise_on_error=False,
        )

    return run


def reported_metadata(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """The metadata that a run reports, by asset."""
    assert result.success
    events = result.filter_events(lambda event: event.is_step_materialization)
    materializations = [event.step_materialization_data.materialization for event in events]
    return {m.asset_key.to_user_string(): {k: v.value for k, v in m.metadata.items()} for m in materializations}


def failure_message(result: dg.ExecuteInProcessResult) -> str:
    """The error message of a failed run."""
    assert not result.success
    (event,) = result.filter_events(lambda event: event.is_step_failure)
    data = event.step_failure_data.user_failure_data
    assert data is not None, event.step_failure_data.error
    # The console and the web UI show only the message, without a stack trace.
    error = event.step_failure_data.error
    assert error is not None
    assert (error.message, error.stack, error.cause, error.context) == (f"{data.description}\n", [], None, None)
    return data.description or ""


def test_each_landing_table_can_be_materialized_alone(
    materialize: Materialize, broker: Broker, send: Callable[..., None], lake: Lake
) -> None:
    send("transactions", bodies(5))
    send("fraud-labels", [{"transaction_id": 1, "is_fraud": True, "labelled_at": "2026-01-08T00:00:00Z"}])
    labels = reported_metadata(materialize("fraud_labels"))
    assert {name: values["rows_added"] for name, values in labels.items()} == {"fraud_labels": 1}
    assert not lake.exists(raw_transactions)
    # Labels land before transactions, even if only transactions are requested.
    both = reported_metadata(materialize("raw_transactions"))
    assert {name: values["rows_added"] for name, values in both.items()} == {"raw_transactions": 5, "fraud_labels": 0}
    assert read_row_count(lake.open(fraud_labels)) == 1


def test_a_missing_broker_fails_with_one_sentence(materialize: Materialize) -> None:
    assert failure_message(materialize("raw_transactions")).startswith(
        "No broker is configured: KAFKA_BOOTSTRAP_SERVERS and KAFKA_CLIENT_PROPERTIES are not set"
    )
    assert (
        reported_metadata(materialize("raw_transactions", landing={"topics": False}))["raw_transactions"]["rows_added"]
        == 0
    )


@pytest.mark.parametrize("name", ["transaction_features", "quarantined_transactions"])
def test_features_and_quarantine_are_written_together(materialize: Materialize, lake: Lake, name: str) -> None:
    land(lake, [*bodies(5), b"no json", *bodies(1)])
    written = reported_metadata(materialize(name))
    assert written.keys() == {"transaction_features", "quarantined_transactions"}
    features, quarantine = written["transaction_features"], written["quarantined_transactions"]
    assert features.pop("seconds") >= 0
    assert features == {"rows_added": 5, "messages_processed": 7, "batches": 1, "dagster/row_count": 5}
    assert "| invalid_json | 1 | `██████" in quarantine.pop("reasons")
    assert quarantine == {
        "rows_added": 2,
        "messages_processed": 7,
        "duplicates": 1,
        "quarantine_rate": 0.1429,
        "reason/invalid_json": 1,
        "reason/duplicate": 1,
        "dagster/row_count": 2,
    }
    assert read_row_count(lake.open(transaction_features)) == 5
    assert read_row_count(lake.open(quarantined_transactions)) == 2


def test_run_config_selects_the_range_to_recompute(materialize: Materialize, settings: Settings, lake: Lake) -> None:
    land(lake, bodies(100))
    process_landed(lake, settings)
    config = {"recompute_start": "2026-01-01", "recompute_end": "2026-01-02T00:00:00Z"}
    written = reported_metadata(materialize("transaction_features", features=config))
    assert written == {"transaction_features": {"recomputed": 72, "dagster/row_count": 100}}
    assert read_row_count(lake.open(transaction_features)) == 100
    config = {"recompute_start": "2025-01-01", "recompute_end": "2025-01-02"}
    metadata = reported_metadata(materialize("transaction_features", features=config))["transaction_features"]
    assert metadata == {
        "recomputed": 0,
        "dagster/row_count": 100,
        "note": "There is nothing to recompute from 2025-01-01 00:00 to 2025-01-02 00:00 (exclusive): "
        "transaction_features holds 100 rows from 2026-01-01 to 2026-01-02 (tx_date).",
    }
    config = {"rescore_start": "2026-01-01", "rescore_end": "2026-01-02"}
    metadata = reported_metadata(materialize("fraud_predictions", fraud_predictions=config))["fraud_predictions"]
    assert metadata["rows_added"] == 0
    assert str(metadata["note"]).endswith("fraud_predictions holds no rows.")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"recompute_start": "2026-01-01"}, "The range from 2026-01-01 to None is incomplete"),
        ({"recompute_start": "2026-01-01", "recompute_end": "tomorrow"}, "'tomorrow' is not a time"),
        ({"recompute_start": "2026-01-02", "recompute_end": "2026-01-01"}, "is empty or has no time zone"),
    ],
)
def test_an_invalid_range_changes_nothing(
    materialize: Materialize, lake: Lake, config: dict[str, Any], sentence: str
) -> None:
    land(lake, bodies(5))
    assert sentence in failure_message(materialize("transaction_features", features=config))
    assert not lake.exists(transaction_features)


@pytest.mark.parametrize("name", ["isolation_forest", "alert_thresholds"])
def test_the_forest_is_trained_with_its_threshold_and_the_threshold_is_recalibrated_alone(
    materialize: Materialize, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    trained, recalibrated = training_report(threshold=0.6), calibration_report(threshold=0.7)
    monkeypatch.setattr("fraud_assets.stages.training.train", lambda *_: trained)
    monkeypatch.setattr("fraud_assets.stages.calibration.recalibrate", lambda *_: recalibrated)
    metadata = reported_metadata(materialize(name))
    if name == "isolation_forest":
        assert (metadata["isolation_forest"]["trees"], metadata["alert_thresholds"]["threshold"]) == (100, 0.6)
    else:
        assert metadata.keys() == {"alert_thresholds"}
        assert metadata["alert_thresholds"]["threshold"] == 0.7


def test_materializing_all_assets_keeps_the_champion(
    materialize: Materialize, monkeypatch: pytest.MonkeyPatch, lake: Lake
) -> None:
    monkeypatch.setattr("fraud_assets.stages.training.train", lambda *_: training_report(threshold=0.6))
    champions = {"exist": False}
    monkeypatch.setattr("fraud_assets.stages.backlog.has_champion", lambda settings: champions["exist"])
    both = ("transaction_features", "isolation_forest")
    assert "isolation_forest" in reported_metadata(materialize(*both))
    champions["exist"] = True
    assert reported_metadata(materialize(*both)).keys() == {"transaction_features", "quarantined_transactions"}
    assert "isolation_forest" in reported_metadata(materialize(*both, model={"replace_champion": True}))
    assert "isolation_forest" in reported_metadata(materialize("isolation_forest"))
    assert reported_metadata(materialize("isolation_forest", model={"replace_champion": False})) == {}


def test_training_on_too_little_data_fails_unless_skipping_is_configured(materialize: Materialize) -> None:
    assert "FRAUD_TRAIN_MIN_ROWS" in failure_message(materialize("isolation_forest"))
    assert reported_metadata(materialize("isolation_forest", model={"skip_too_little_data": True})) == {}


def test_predictions_wait_for_a_champion_but_an_incomplete_range_fails(
    materialize: Materialize, settings: Settings, lake: Lake
) -> None:
    land(lake, bodies(5))
    process_landed(lake, settings)
    assert reported_metadata(materialize("fraud_predictions")) == {}
    incomplete = {"rescore_end": "2026-01-02"}
    assert "is incomplete" in failure_message(materialize("fraud_predictions", fraud_predictions=incomplete))


def test_scoring_is_skipped_with_a_warning_if_the_registry_is_lost(
    materialize: Materialize, lake: Lake, capfd: pytest.CaptureFixture[str]
) -> None:
    commit_alerts(lake, {FIRST.date(): 40})
    commit_features(lake, features(20, first_offset=5_000))
    assert reported_metadata(materialize("fraud_predictions")) == {}
    warnings = [line for line in capfd.readouterr().err.splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert "Scoring is skipped and catches up later: The model registry" in warnings[0]
    assert "the lake holds predictions of version 1 (MLflow run run)" in warnings[0]


def test_a_run_warns_of_a_day_with_too_many_alerts(
    materialize: Materialize, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    report = ScoringReport(rows=100, alerts=90, busiest=BusiestDay(FIRST.date(), 301, 300.0))
    monkeypatch.setattr("fraud_assets.stages.scoring.score_pending", lambda *_: report)
    values = reported_metadata(materialize("fraud_predictions"))["fraud_predictions"]
    assert values["alerts_on_busiest_day"] == 301
    warnings = [line for line in capfd.readouterr().err.splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert "2026-01-01 has 301 alerts, more than 3 times" in warnings[0]


def test_maintenance_accepts_an_empty_lake_and_compacts_a_table(materialize: Materialize, lake: Lake) -> None:
    metadata = reported_metadata(materialize("lake_maintenance"))["lake_maintenance"]
    assert (metadata["files"], metadata["runs_deleted"]) == (0, 0)
    land(lake, bodies(5))
    metadata = reported_metadata(materialize("lake_maintenance"))["lake_maintenance"]
    (table,) = metadata["tables"].records
    assert (table.data["table"], table.data["files_after"]) == ("raw_transactions", 1)


def calibration_report(threshold: float) -> CalibrationReport:
    """A threshold with arbitrary other figures."""
    return CalibrationReport(1, "run", threshold, 100.0, FIRST, FIRST + timedelta(days=7), 700, 90.0, 0.01)


def training_report(threshold: float) -> TrainingReport:
    """A trained model with arbitrary figures."""
    window = (FIRST, FIRST + timedelta(days=30))
    return TrainingReport(1, 3_000, 3_000, 100, 42, *window, 1.0, calibration_report(threshold))


# --- The command line ------------------------------------------------------------------------------------------


def start_materialize_command(settings: Settings, selection: str) -> subprocess.Popen[str]:
    """Runs `dagster asset materialize -m fraud_assets.definitions --select …`.

    It does not run in the repository's folder, because the `.env` file there would override the environment.
    """
    prepare_home(settings)
    environment = {
        **os.environ,
        "FRAUD_HOME": str(settings.home_path),
        "DAGSTER_HOME": str(settings.home_path / "dagster"),
        "PYTHONPATH": str(REPOSITORY),
    }
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "dagster",
            "asset",
            "materialize",
            "-m",
            "fraud_assets.definitions",
            "--select",
            selection,
        ],
        cwd=settings.home_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_dagster_command_materializes_assets(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    filled, empty = make_settings(), make_settings(home=tmp_path / "empty")
    lake = Lake.of(filled)
    land(lake, bodies(20))
    features_process, forest_process = (
        start_materialize_command(filled, "transaction_features"),
        start_materialize_command(empty, "isolation_forest"),
    )
    features_output, forest_output = (
        features_process.communicate(timeout=200)[0],
        forest_process.communicate(timeout=200)[0],
    )
    assert features_process.returncode == 0, features_output
    assert read_row_count(lake.open(transaction_features)) == 20
    with dg.DagsterInstance.from_config(str(filled.home_path / "dagster")) as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.SUCCESS
        assert instance.get_latest_materialization_event(dg.AssetKey("transaction_features")) is not None
    assert forest_process.returncode != 0, forest_output
    assert "\nTraining needs 1,000 transactions (FRAUD_TRAIN_MIN_ROWS); the lake holds 0." in forest_output
    assert "Stack Trace" not in forest_output
