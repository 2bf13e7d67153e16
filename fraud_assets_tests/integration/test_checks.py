"""The asset checks pass on a sound lake and report each fault with the observed value and its limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from fraud_assets.core.schema import fraud_predictions, quarantined_transactions, transaction_features
from fraud_assets.dagster_events import report_landed
from fraud_assets.definitions import build_defs
from fraud_assets.engines.landing_report import create_reports
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.setup_home import prepare_home
from fraud_assets.resources import PlatformResource
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed
from fraud_assets.stages.scoring import score_pending
from fraud_assets.stages.training import train
from fraud_assets_tests.support.alerts import commit_alerts
from fraud_assets_tests.support.landed import bodies, land

RunChecks = Callable[..., dict[str, dg.AssetCheckEvaluation]]


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """Settings with a small model."""
    return make_settings(train_min_rows=20, train_trees=5)


@pytest.fixture
def run_checks(settings: Settings) -> RunChecks:
    """`run_checks(name, …)` runs the checks of these names, or all; returns the evaluations by `asset:check`."""

    def run(*names: str, **overrides: str) -> dict[str, dg.AssetCheckEvaluation]:
        platform = PlatformResource(overrides={"home": str(settings.home), **overrides})
        definitions = build_defs({"platform": platform})
        job = definitions.resolve_implicit_global_asset_job_def()
        known = {key for checks in definitions.asset_checks or () for key in checks.check_keys}
        keys = {key for key in known if not names or key.name in names}
        result = job.get_subset(asset_selection=set(), asset_check_selection=keys).execute_in_process(
            instance=dg.DagsterInstance.ephemeral(), resources={"platform": platform}
        )
        evaluations = result.get_asset_check_evaluations()
        return {f"{e.asset_key.to_user_string()}:{e.check_name}": e for e in evaluations}

    return run


def observed(evaluation: dg.AssetCheckEvaluation) -> dict[str, Any]:
    """The metadata of an evaluation as plain values."""
    return {name: value.value for name, value in evaluation.metadata.items()}


def test_all_checks_pass_on_a_sound_lake(run_checks: RunChecks, settings: Settings, lake: Lake) -> None:
    land(lake, [*bodies(60), b"no json"])
    process_landed(lake, settings)
    train(lake, settings)
    score_pending(lake, settings)
    evaluations = run_checks()
    assert {name for name, evaluation in evaluations.items() if not evaluation.passed} == set()
    assert observed(evaluations["transaction_features:reconciliation"])["difference"] == 0
    assert observed(evaluations["fraud_predictions:predictions_complete"])["unscored"] == 0
    assert observed(evaluations["quarantined_transactions:quarantine_rate"]) == {
        "rate": 0.0164,
        "limit": 0.05,
        "quarantined": 1,
        "messages": 61,
    }
    assert observed(evaluations["isolation_forest:champion"])["model_version"] == 1
    assert observed(evaluations["fraud_predictions:schema"]) == {"columns": 15, "declared_columns": 15}


def test_checks_of_an_empty_lake_fail_only_for_the_missing_champion(run_checks: RunChecks, lake: Lake) -> None:
    evaluations = run_checks()
    assert {name for name, evaluation in evaluations.items() if not evaluation.passed} == {"isolation_forest:champion"}
    assert lake.versions() == {}


def test_a_lost_feature_row_fails_the_reconciliation(run_checks: RunChecks, settings: Settings, lake: Lake) -> None:
    land(lake, bodies(60))
    process_landed(lake, settings)
    lake.open(transaction_features).delete("transaction_id = '7'")
    reconciliation = run_checks()["transaction_features:reconciliation"]
    assert not reconciliation.passed
    assert reconciliation.severity == dg.AssetCheckSeverity.ERROR
    assert observed(reconciliation)["difference"] == 1


def test_features_without_a_score_are_a_warning(run_checks: RunChecks, settings: Settings, lake: Lake) -> None:
    land(lake, bodies(30))
    process_landed(lake, settings)
    complete = run_checks()["fraud_predictions:predictions_complete"]
    assert (complete.passed, complete.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert observed(complete)["unscored"] == 30


def test_much_quarantine_since_yesterday_is_a_warning(run_checks: RunChecks, settings: Settings, lake: Lake) -> None:
    land(lake, [*bodies(8), b"no json", b"no json either"])
    process_landed(lake, settings)
    rate = run_checks()["quarantined_transactions:quarantine_rate"]
    assert (rate.passed, rate.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert (observed(rate)["rate"], observed(rate)["limit"]) == (0.2, 0.05)
    assert run_checks(quarantine_warn_rate="0.3")["quarantined_transactions:quarantine_rate"].passed


def test_too_many_alerts_on_one_day_are_a_warning(run_checks: RunChecks, lake: Lake) -> None:
    commit_alerts(lake, {datetime(2026, 1, 5, tzinfo=UTC).date(): 31})
    alert_rate = run_checks(alert_budget_per_day="10")["fraud_predictions:alert_rate"]
    assert (alert_rate.passed, alert_rate.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert observed(alert_rate) == {"alerts": 31, "limit": 30.0, "day": "2026-01-05"}


def test_a_table_without_a_declared_column_fails_the_schema_check(run_checks: RunChecks, lake: Lake) -> None:
    known = [field for field in quarantined_transactions.schema if field.name != "detail"]
    DeltaTable.create(lake.uri(quarantined_transactions), pa.schema(known), partition_by=["ingest_date"])
    lake.open(fraud_predictions)
    evaluations = run_checks("schema")
    schema = evaluations["quarantined_transactions:schema"]
    assert (schema.passed, schema.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "has no column detail" in (schema.description or "")
    assert observed(schema) == {"columns": 11, "declared_columns": 12}
    assert evaluations["fraud_predictions:schema"].passed


def test_always_on_landing_reports_the_schema_check(settings: Settings, lake: Lake) -> None:
    """Dagster regards a check as outdated after a materialization, and landing reports one every 30 seconds."""
    prepare_home(settings)
    reports = create_reports(transactions=True)
    land(lake, bodies(3))
    landed = replace(reports["raw_transactions"], rows=3)
    report_landed(settings, {"raw_transactions": landed})
    key = dg.AssetCheckKey(dg.AssetKey("raw_transactions"), "schema")
    with dg.DagsterInstance.from_config(str(settings.home_path / "dagster")) as instance:
        (summary,) = instance.event_log_storage.get_asset_check_summary_records([key]).values()
        materialized = instance.get_latest_materialization_event(key.asset_key)
    assert materialized is not None
    record = summary.last_completed_check_execution_record
    assert record is not None
    assert record.event is not None
    assert record.status.value == "SUCCEEDED"
    assert record.event.timestamp >= materialized.timestamp
