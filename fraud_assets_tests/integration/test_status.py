"""`fraud-assets status` shows the state of the lake, the model and the checks."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import dagster as dg
import pytest

from fraud_assets.core.schema import TABLES
from fraud_assets.definitions import build_defs
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.setup_home import prepare_home
from fraud_assets.operations.status import read_status
from fraud_assets.resources import PlatformResource
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed
from fraud_assets.stages.scoring import score_pending
from fraud_assets.stages.training import train
from fraud_assets_tests.support.landed import bodies, land
from fraud_assets_tests.support.starting import Start


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """Settings with a small model."""
    return make_settings(train_min_rows=20, train_trees=5)


def test_an_empty_lake_has_a_status_and_gets_no_table(lake: Lake, settings: Settings, start: Start) -> None:
    status = read_status(lake, settings)
    assert (status.totals["landed"], status.champion, status.day, status.alerts) == (0, None, None, 0)
    process = start("status")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Champion       none yet" in output
    assert [table.name for table in TABLES if lake.exists(table)] == []


def test_the_status_counts_what_landed_waits_and_is_scored(lake: Lake, settings: Settings) -> None:
    land(lake, [*bodies(60), b"no json"])
    process_landed(lake, settings)
    train(lake, settings)
    score_pending(lake, settings)
    land(lake, bodies(5, first_id=60), first_offset=61)
    status = read_status(lake, settings, today=datetime(2026, 1, 1, tzinfo=UTC).date())
    totals = status.totals
    assert (totals["landed"], totals["features"], totals["waiting"], totals["quarantined"]) == (66, 60, 5, 1)
    assert (totals["scored"], totals["unscored"], status.champion) == (60, 0, 1)
    assert status.newest_transaction == datetime(2026, 1, 1, 19, 40, tzinfo=UTC)
    assert status.newest_landing is not None
    assert status.newest_scoring is not None
    assert status.day == datetime(2026, 1, 1, tzinfo=UTC).date()


def test_the_status_names_failed_checks(lake: Lake, settings: Settings, start: Start) -> None:
    prepare_home(settings)
    land(lake, [*bodies(5), b"no json"])
    process_landed(lake, settings)
    platform = PlatformResource(overrides={"home": str(settings.home)})
    job = build_defs({"platform": platform}).resolve_implicit_global_asset_job_def()
    check = dg.AssetCheckKey(dg.AssetKey("quarantined_transactions"), "quarantine_rate")
    home = str(settings.home_path / "dagster")
    only_check = job.get_subset(asset_selection=set(), asset_check_selection={check})
    with dg.DagsterInstance.from_config(home) as instance:
        only_check.execute_in_process(instance=instance)
        # A run that was requested and has not evaluated the check yet does not hide its result.
        instance.create_run_for_job(only_check)
        (summary,) = instance.event_log_storage.get_asset_check_summary_records([check]).values()
        assert summary.last_check_execution_record.status.value == "PLANNED"
    process = start("status", "--json", DAGSTER_HOME=home)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    (failed,) = json.loads(output)["failed_checks"]
    assert (failed["name"], failed["severity"]) == ("quarantined_transactions:quarantine_rate", "WARN")


def test_an_unreadable_history_of_dagster_is_one_sentence(settings: Settings, start: Start) -> None:
    prepare_home(settings)
    home = settings.home_path / "dagster"
    (home / "dagster.yaml").write_text("storage: nowhere")
    process = start("status", DAGSTER_HOME=str(home))
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Landed         0 messages" in output
    assert "Checks         unknown: Dagster's history at" in output
    assert "Traceback" not in errors


def test_an_unreachable_registry_leaves_the_rest_of_the_status(lake: Lake, settings: Settings, start: Start) -> None:
    land(lake, bodies(5))
    process = start("status", MLFLOW_TRACKING_URI="postgresql://me:geheim@127.0.0.1:1/mlflow")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Landed         5 messages" in output
    assert "Champion       unknown: The model registry postgresql://…@127.0.0.1:1/mlflow failed" in output
    assert "geheim" not in output + errors
