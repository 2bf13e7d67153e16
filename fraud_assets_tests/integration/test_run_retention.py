"""Run retention deletes old successful runs of the sensors and shrinks the databases of finished runs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from fraud_assets.operations.setup_home import prepare_home
from fraud_assets.run_history import delete_old_runs, shrink_databases
from fraud_assets.sensors import SENSOR_TAG
from fraud_assets.settings import Settings

SENSOR_TAGS = {SENSOR_TAG: "new_files_sensor"}
LATER = datetime.now(UTC) + timedelta(days=2)


@dg.asset
def table() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(metadata={"rows": 1})


@dg.asset
def broken() -> None:
    raise dg.Failure("expected failure")


@pytest.fixture
def instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    prepare_home(settings)
    with dg.DagsterInstance.from_config(str(settings.home_path / "dagster")) as instance:
        yield instance


def run(instance: dg.DagsterInstance, asset: dg.AssetsDefinition, tags: dict[str, str]) -> str:
    return dg.materialize(
        [asset],
        instance=instance,
        tags=tags,
        raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    ).run_id


def files_of(settings: Settings, run_id: str) -> list[Path]:
    return [path for path in (settings.home_path / "dagster").rglob("*") if run_id in str(path)]


def test_only_old_successful_runs_of_the_sensors_are_deleted(instance: dg.DagsterInstance, settings: Settings) -> None:
    old = [run(instance, table, SENSOR_TAGS) for _ in range(2)]
    by_hand, failed, last = (
        run(instance, table, {}),
        run(instance, broken, SENSOR_TAGS),
        run(instance, table, SENSOR_TAGS),
    )
    assert all(files_of(settings, run_id) for run_id in old)
    assert delete_old_runs(instance, days=3, now=LATER) == 0
    assert delete_old_runs(instance, days=1, now=LATER, most=1) == 1
    assert {entry.run_id for entry in instance.get_runs()} == {old[1], by_hand, failed, last}
    assert delete_old_runs(instance, days=1, now=LATER) == 1
    assert {entry.run_id for entry in instance.get_runs()} == {by_hand, failed, last}
    assert [files_of(settings, run_id) for run_id in old] == [[], []]
    # The remaining history is readable, and the asset keeps its last materialization.
    latest = instance.get_latest_materialization_event(table.key)
    assert latest is not None
    assert latest.run_id == last
    history = instance.fetch_materializations(table.key, limit=10).records
    assert [record.run_id for record in history] == [last, by_hand]
    assert delete_old_runs(instance, days=1, now=LATER) == 0


def test_databases_of_finished_runs_shrink_and_keep_their_events(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    finished = run(instance, table, SENSOR_TAGS)
    events = [record.event_log_entry for record in instance.get_records_for_run(finished).records]
    running = instance.create_run_for_job(dg.Definitions([table]).resolve_implicit_global_asset_job_def())
    instance.report_engine_event("started", running)
    finished_size = database_of(settings, finished).stat().st_size
    running_size = database_of(settings, running.run_id).stat().st_size
    assert shrink_databases(instance) == 1
    assert database_of(settings, finished).stat().st_size < 0.55 * finished_size
    assert database_of(settings, running.run_id).stat().st_size == running_size
    assert [record.event_log_entry for record in instance.get_records_for_run(finished).records] == events
    instance.report_engine_event("one more", instance.get_run_by_id(finished))
    assert len(instance.get_records_for_run(finished).records) == len(events) + 1
    assert shrink_databases(instance) == 0


def database_of(settings: Settings, run_id: str) -> Path:
    return settings.home_path / "dagster" / "history" / "runs" / f"{run_id}.db"
