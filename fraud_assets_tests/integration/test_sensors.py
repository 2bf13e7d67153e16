"""The runs that sensors request, when they request none, and when they require manual action."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError

from fraud_assets.core.schema import fraud_predictions, raw_transactions, transaction_features
from fraud_assets.errors import NoChampionError
from fraud_assets.ingest.service.presence import register_lander
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.maintenance import maintain_lake
from fraud_assets.sensors import SENSOR_TAG, StuckError, dropped_files_sensor
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed
from fraud_assets_tests.support.daemon import Daemon, fails
from fraud_assets_tests.support.landed import bodies, land
from fraud_assets_tests.support.synthetic import FIRST, commit_labels

FEATURES = {"transaction_features", "quarantined_transactions"}
MODEL = {"isolation_forest", "alert_thresholds"}
PREDICTIONS = {"fraud_predictions"}
ATTEMPTS = 3


def requested_assets(request: dg.RunRequest) -> set[str]:
    """The names of the requested assets."""
    assert request.asset_selection
    return {key.to_user_string() for key in request.asset_selection}


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """Settings with which a first model needs 50 transactions."""
    return make_settings(train_min_rows=50, train_trees=5)


@pytest.fixture
def daemon(settings: Settings) -> Daemon:
    return Daemon(settings)


@pytest.fixture
def with_champion(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """`with_champion(False)` hides the champion from the sensor, and `with_champion(True)` shows it again."""

    def find_version(settings: Settings) -> int:
        if not state["champion"]:
            raise NoChampionError("None yet.")
        return 1

    state = {"champion": True}
    monkeypatch.setattr("fraud_assets.stages.backlog.find_champion_version", find_version)
    return lambda exists: state.update(champion=exists)


def test_an_empty_lake_requests_nothing_and_no_table_is_created(daemon: Daemon, lake: Lake) -> None:
    assert daemon.skipped() == "Nothing has landed yet."
    assert lake.versions() == {}


def test_labels_alone_request_nothing(daemon: Daemon, lake: Lake) -> None:
    commit_labels(lake, [("t1", True, FIRST)])
    assert daemon.skipped() == "Nothing has landed yet."
    land(lake, bodies(10))
    daemon.run(daemon.requested())
    daemon.skipped()
    commit_labels(lake, [("t2", True, FIRST)], first_offset=1)
    assert "wait for the first model" in daemon.skipped()


def test_the_sensor_requests_each_step_up_to_predictions_and_then_skips(
    daemon: Daemon, settings: Settings, lake: Lake
) -> None:
    land(lake, bodies(30))
    features_request = daemon.requested()
    assert requested_assets(features_request) == FEATURES
    assert not features_request.run_config
    assert daemon.run(features_request).success
    assert (
        "30 transactions wait for the first model. It needs 50 transactions (FRAUD_TRAIN_MIN_ROWS)" in daemon.skipped()
    )
    assert daemon.skipped() == "No table has changed since the last evaluation."

    land(lake, bodies(30, first_id=30), first_offset=30)
    training_request = daemon.requested()
    assert requested_assets(training_request) == FEATURES | MODEL | PREDICTIONS
    assert training_request.run_config == {"ops": {"model": {"config": {"skip_too_little_data": True}}}}
    assert daemon.run(training_request).success
    assert read_row_count(lake.open(fraud_predictions)) == 60
    assert daemon.skipped() == "Everything that landed is scored."
    assert daemon.skipped() == "No table has changed since the last evaluation."

    maintain_lake(lake, settings)
    assert daemon.skipped() == "Everything that landed is scored."

    land(lake, bodies(5, first_id=60), first_offset=60)
    later_request = daemon.requested()
    assert requested_assets(later_request) == FEATURES | PREDICTIONS
    assert not later_request.run_config
    assert daemon.run(later_request).success
    assert read_row_count(lake.open(fraud_predictions)) == 65

    daemon.wipe()
    assert daemon.skipped() == "Everything that landed is scored."
    land(lake, bodies(5, first_id=65), first_offset=65)
    daemon.wipe()
    assert requested_assets(daemon.requested()) == FEATURES | PREDICTIONS


def test_features_without_a_score_request_only_predictions(
    daemon: Daemon, settings: Settings, lake: Lake, with_champion: Callable[[bool], None]
) -> None:
    land(lake, bodies(10))
    process_landed(lake, settings)
    assert requested_assets(daemon.requested()) == PREDICTIONS


def test_a_new_champion_is_noticed_although_no_table_changed(
    daemon: Daemon, lake: Lake, with_champion: Callable[[bool], None]
) -> None:
    with_champion(False)
    land(lake, bodies(10))
    daemon.run(daemon.requested())
    daemon.skipped()
    assert daemon.skipped() == "No table has changed since the last evaluation."
    with_champion(True)
    assert requested_assets(daemon.requested()) == PREDICTIONS


def test_a_lower_training_minimum_is_noticed_although_no_table_changed(
    daemon: Daemon, make_settings: Callable[..., Settings], lake: Lake
) -> None:
    land(lake, bodies(10))
    daemon.run(daemon.requested())
    daemon.skipped()
    daemon_with_lower_limit = Daemon(make_settings(train_min_rows=10))
    daemon_with_lower_limit.cursor = daemon.cursor
    assert requested_assets(daemon_with_lower_limit.requested()) == MODEL | PREDICTIONS


def test_rows_outside_the_training_window_request_no_second_training(daemon: Daemon, lake: Lake) -> None:
    early, late = bodies(40), bodies(40, first_id=72 * 60)
    land(lake, early + late)
    request = daemon.requested()
    assert requested_assets(request) == FEATURES | MODEL | PREDICTIONS
    assert daemon.run(request).success
    assert "80 transactions wait for the first model. It needs 50 " in daemon.skipped()


@pytest.mark.parametrize("status", [s for s in dg.DagsterRunStatus if s.value in ("QUEUED", "NOT_STARTED", "STARTED")])
def test_no_run_is_requested_while_another_is_in_progress(
    daemon: Daemon, lake: Lake, status: dg.DagsterRunStatus
) -> None:
    land(lake, bodies(10))
    daemon.start(daemon.requested(), status)
    land(lake, bodies(10, first_id=10), first_offset=10)
    assert "A run is in progress" in daemon.skipped()


def test_runs_keep_their_distance_but_the_first_one_starts_at_once(
    make_settings: Callable[..., Settings], lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(make_settings(run_interval_seconds=600))
    land(lake, bodies(10))
    assert daemon.run(daemon.requested()).success
    land(lake, bodies(10, first_id=10), first_offset=10)
    assert "less than 600 s ago (FRAUD_RUN_INTERVAL_SECONDS)" in daemon.skipped()
    later = time.time() + 601
    monkeypatch.setattr("fraud_assets.sensors.time.time", lambda: later)
    assert requested_assets(daemon.requested()) == FEATURES


def test_a_run_says_in_one_tag_what_it_did_and_hides_its_own_tags(daemon: Daemon, lake: Lake) -> None:
    land(lake, [*bodies(60), b"no json"])
    assert daemon.run(daemon.requested()).success
    (run,) = daemon.instance.get_runs()
    summary = run.tags["summary"]
    # The list of runs shows the beginning, so the alerts come first.
    assert re.match(r"\d+ alerts, 60 scored, champion version 1 trained on 60 transactions, ", summary)
    assert summary.endswith("61 messages, 60 features, 1 quarantined")
    shown = {name for name in run.tags if not name.startswith((".dagster/", "dagster/"))}
    assert shown == {"summary"}


def test_maintenance_requests_nothing(daemon: Daemon, settings: Settings, lake: Lake) -> None:
    for batch in range(3):
        land(lake, bodies(5, first_id=5 * batch), first_offset=5 * batch)
        daemon.run(daemon.requested())
    daemon.skipped()
    reports = maintain_lake(lake, settings.model_copy(update={"vacuum_hours": 0}))
    assert reports["raw_transactions"].files_removed >= 3
    assert "wait for the first model" in daemon.skipped()


def test_repeated_failures_of_features_require_manual_action(
    daemon: Daemon, settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(lake, bodies(10))
    keys = set()
    with monkeypatch.context() as broken:
        broken.setattr("fraud_assets.stages.features.process_landed", fails)
        for attempt in range(ATTEMPTS):
            request = daemon.requested()
            keys.add(request.run_key)
            assert not daemon.run(request).success
            # New messages keep landing, also from new partitions. They do not reset the count of failures.
            land(lake, bodies(5, first_id=100 + 5 * attempt), partition=1 + attempt)
    assert len(keys) == ATTEMPTS
    last_run_id = daemon.instance.get_runs(limit=1)[0].run_id
    with pytest.raises(
        StuckError, match=rf"3 runs failed .* the last one is run {last_run_id}.*FRAUD_SENSOR_ATTEMPTS is 3"
    ):
        daemon.look()
    land(lake, bodies(100, first_id=1_000), first_offset=10)
    with pytest.raises(StuckError):
        daemon.look()
    process_landed(lake, settings)
    land(lake, bodies(10, first_id=2_000), first_offset=200)
    assert daemon.run(daemon.requested()).success


def test_repeated_failures_of_predictions_require_manual_action_although_features_progress(
    daemon: Daemon, lake: Lake, with_champion: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fraud_assets.stages.scoring.score_pending", fails)
    for attempt in range(ATTEMPTS):
        land(lake, bodies(5, first_id=5 * attempt), first_offset=5 * attempt)
        assert not daemon.run(daemon.requested()).success
    assert read_row_count(lake.open(transaction_features)) == 5 * ATTEMPTS
    land(lake, bodies(5, first_id=50), first_offset=50)
    with pytest.raises(StuckError):
        daemon.look()


def test_progress_resets_the_count_of_failures(daemon: Daemon, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for batch in range(3):
        land(lake, bodies(5, first_id=5 * batch), first_offset=5 * batch)
        with monkeypatch.context() as broken:
            broken.setattr("fraud_assets.stages.features.process_landed", fails)
            for _ in range(ATTEMPTS - 1):
                assert not daemon.run(daemon.requested()).success
        assert daemon.run(daemon.requested()).success


def test_runs_that_a_restart_interrupts_do_not_count_as_failed(
    daemon: Daemon, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number of interruptions with Ctrl-C in `make dev` does not stop the sensor."""
    land(lake, bodies(10))

    def interrupt(*_: Any, **__: Any) -> None:
        raise DagsterExecutionInterruptedError

    with monkeypatch.context() as restarting:
        restarting.setattr("fraud_assets.stages.features.process_landed", interrupt)
        for _ in range(ATTEMPTS + 1):
            with suppress(DagsterExecutionInterruptedError):
                daemon.run(daemon.requested())
    assert {run.status for run in daemon.instance.get_runs()} == {dg.DagsterRunStatus.FAILURE}
    assert daemon.run(daemon.requested()).success


def test_canceled_runs_count_as_failed(daemon: Daemon, lake: Lake) -> None:
    land(lake, bodies(5))
    for _ in range(ATTEMPTS):
        daemon.start(daemon.requested(), dg.DagsterRunStatus.CANCELED)
    with pytest.raises(StuckError):
        daemon.look()


def test_a_recreated_lake_starts_without_failures_and_with_new_run_keys(
    daemon: Daemon, make_settings: Callable[..., Settings], lake: Lake, tmp_path: Any
) -> None:
    land(lake, bodies(5))
    for _ in range(ATTEMPTS):
        daemon.start(daemon.requested(), dg.DagsterRunStatus.FAILURE)
    recreated = Daemon(make_settings(home=tmp_path / "recreated"))
    recreated.instance = daemon.instance
    land(recreated.platform.lake(), bodies(5))
    assert recreated.run(recreated.requested()).success


def test_a_run_without_effect_is_reported(
    daemon: Daemon, settings: Settings, lake: Lake, with_champion: Callable[[bool], None]
) -> None:
    """Dagster silently drops a request whose run key was used. Here the champion exists only for the sensor."""
    land(lake, bodies(5))
    process_landed(lake, settings)
    result = daemon.run(daemon.requested())
    assert result.success
    assert f"Run {result.run_id} covered this work and ended as SUCCESS" in daemon.skipped()
    land(lake, bodies(5, first_id=5), first_offset=5)
    daemon.requested()


# --- Dropped files ---------------------------------------------------------------------------------------------


@pytest.fixture
def file_daemon(settings: Settings) -> Daemon:
    """The daemon with the sensor of the drop folder."""
    return Daemon(settings, dropped_files_sensor)


def drop(settings: Settings, name: str, values: list[bytes]) -> None:
    """Writes a file into the drop folder. Its modification time is always the same, as if a copy preserved it."""
    settings.incoming.mkdir(parents=True, exist_ok=True)
    path = settings.incoming / name
    path.write_bytes(b"\n".join(values) + b"\n")
    os.utime(path, (FIRST.timestamp(), FIRST.timestamp()))


def test_a_dropped_file_lands_without_a_broker(file_daemon: Daemon, settings: Settings, lake: Lake) -> None:
    assert file_daemon.skipped() == f"No files are waiting in {settings.incoming}."
    drop(settings, "day.jsonl", bodies(7))
    # A stale broker file must not fail a run that lands files.
    settings.broker_file.write_text('{"bootstrap_servers": "127.0.0.1:1", "topic_id": "gone", "pid": 0}')
    request = file_daemon.requested()
    assert request.run_config == {"ops": {"landing": {"config": {"topics": False}}}}
    assert file_daemon.run(request).success
    assert read_row_count(lake.open(raw_transactions)) == 7
    assert "No files are waiting" in file_daemon.skipped()


def test_a_file_that_is_dropped_again_is_requested_again(file_daemon: Daemon, settings: Settings, lake: Lake) -> None:
    for _ in range(2):
        drop(settings, "day.jsonl", bodies(7))
        assert file_daemon.run(file_daemon.requested()).success
        assert list(settings.incoming.iterdir()) == []
    assert read_row_count(lake.open(raw_transactions)) == 7


def test_an_entry_that_is_not_a_file_does_not_stop_the_sensor(
    file_daemon: Daemon, settings: Settings, lake: Lake
) -> None:
    drop(settings, "day.jsonl", bodies(7))
    (settings.incoming / "loop.csv").symlink_to("loop.csv")
    (settings.incoming / "folder").mkdir()
    assert file_daemon.run(file_daemon.requested()).success
    assert read_row_count(lake.open(raw_transactions)) == 7
    assert (settings.failed / "loop.csv").is_symlink()
    assert "Move the files out of the folder" in file_daemon.skipped()
    event = file_daemon.instance.get_latest_materialization_event(dg.AssetKey("raw_transactions"))
    assert event
    assert event.asset_materialization
    metadata = event.asset_materialization.metadata
    assert [record.data["file"] for record in metadata["files_failed"].records] == ["loop.csv"]
    assert [record.data["file"] for record in metadata["files_stuck"].records] == ["folder"]


def test_an_unreadable_drop_folder_does_not_fail_the_sensor(file_daemon: Daemon, settings: Settings) -> None:
    settings.home_path.mkdir(exist_ok=True)
    settings.incoming.symlink_to("incoming")
    assert "cannot be read: Too many levels of symbolic links" in file_daemon.skipped()


def test_a_file_that_cannot_be_moved_is_retried_and_does_not_stop_the_others(
    file_daemon: Daemon, settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(settings, "day.xlsx", bodies(7))
    settings.failed.write_text("no folder")
    # The file is retried without a limit, and the other files land.
    for attempt in range(ATTEMPTS + 1):
        assert file_daemon.run(file_daemon.requested()).success
        assert "but the work is still pending" in file_daemon.skipped()
        drop(settings, f"another_{attempt}.jsonl", bodies(7, first_id=100 * attempt))
    later = time.time() + 600
    monkeypatch.setattr("fraud_assets.sensors.time.time", lambda: later)
    settings.failed.unlink()
    assert file_daemon.run(file_daemon.requested()).success
    assert read_row_count(lake.open(raw_transactions)) == 7 * (ATTEMPTS + 1)
    assert (settings.failed / "day.xlsx").exists()


def test_a_run_whose_process_was_killed_is_marked_failed(
    daemon: Daemon, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster still shows it as started. After ten minutes without events it is marked failed, and a new run starts."""
    land(lake, bodies(10))
    daemon.start(daemon.requested(), dg.DagsterRunStatus.STARTED)
    assert "A run is in progress" in daemon.skipped()
    later = time.time() + 601
    monkeypatch.setattr("fraud_assets.sensors.time.time", lambda: later)
    daemon.requested()
    [killed] = daemon.instance.get_runs()
    assert killed.status is dg.DagsterRunStatus.FAILURE


def test_no_run_is_requested_while_a_lander_lands_the_files(file_daemon: Daemon, settings: Settings) -> None:
    drop(settings, "day.jsonl", bodies(7))
    with register_lander(settings):
        assert file_daemon.skipped() == "`fraud-assets land` is running and lands the files."
    file_daemon.requested()


def test_no_landing_run_is_requested_while_another_is_in_progress(file_daemon: Daemon, settings: Settings) -> None:
    drop(settings, "day.jsonl", bodies(7))
    request = file_daemon.requested()
    file_daemon.start(request, dg.DagsterRunStatus.QUEUED)
    assert request.tags[SENSOR_TAG] == "dropped_files_sensor"
    assert file_daemon.skipped() == "A landing run is in progress."


def test_repeated_failures_of_file_landing_require_manual_action(
    file_daemon: Daemon, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(settings, "day.jsonl", bodies(7))
    monkeypatch.setattr("fraud_assets.ingest.landing.land_once", lambda *_, **__: fails())
    for attempt in range(ATTEMPTS):
        assert not file_daemon.run(file_daemon.requested()).success
        drop(settings, f"another_{attempt}.jsonl", bodies(7, first_id=100 * attempt))
    with pytest.raises(StuckError, match="dropped_files_sensor continues after that"):
        file_daemon.look()
    (settings.incoming / "day.jsonl").unlink()
    file_daemon.requested()
