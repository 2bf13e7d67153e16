"""The runs that sensors request, when they request none, and when they require manual action."""

from __future__ import annotations

import os
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


def assets(request: dg.RunRequest) -> set[str]:
    """The names of the requested assets."""
    assert request.asset_selection
    return {key.to_user_string() for key in request.asset_selection}


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """A first model takes 50 transactions."""
    return make_settings(train_min_rows=50, train_trees=5)


@pytest.fixture
def daemon(settings: Settings) -> Daemon:
    """The daemon of those settings."""
    return Daemon(settings)


@pytest.fixture
def with_champion(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """`with_champion(False)` takes the champion away that the sensor sees, `with_champion(True)` gives it back."""

    def version(settings: Settings) -> int:
        if not there["champion"]:
            raise NoChampionError("None yet.")
        return 1

    there = {"champion": True}
    monkeypatch.setattr("fraud_assets.stages.backlog.find_champion_version", version)
    return lambda is_there: there.update(champion=is_there)


def test_nothing_landed_requests_nothing_and_makes_no_table(daemon: Daemon, lake: Lake) -> None:
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


def test_from_landing_to_predictions_and_quiet_afterwards(daemon: Daemon, settings: Settings, lake: Lake) -> None:
    land(lake, bodies(30))
    first = daemon.requested()
    assert assets(first) == FEATURES
    assert not first.run_config
    assert daemon.run(first).success
    assert (
        "30 transactions wait for the first model. It needs 50 transactions (FRAUD_TRAIN_MIN_ROWS)" in daemon.skipped()
    )
    assert daemon.skipped() == "No table has changed since the last evaluation."

    land(lake, bodies(30, first_id=30), first_offset=30)
    enough = daemon.requested()
    assert assets(enough) == FEATURES | MODEL | PREDICTIONS
    assert enough.run_config == {"ops": {"model": {"config": {"skip_too_little_data": True}}}}
    assert daemon.run(enough).success
    assert read_row_count(lake.open(fraud_predictions)) == 60
    assert daemon.skipped() == "Everything that landed is scored."
    assert daemon.skipped() == "No table has changed since the last evaluation."

    maintain_lake(lake, settings)
    assert daemon.skipped() == "Everything that landed is scored."

    land(lake, bodies(5, first_id=60), first_offset=60)
    more = daemon.requested()
    assert assets(more) == FEATURES | PREDICTIONS
    assert not more.run_config
    assert daemon.run(more).success
    assert read_row_count(lake.open(fraud_predictions)) == 65

    daemon.wipe()
    assert daemon.skipped() == "Everything that landed is scored."
    land(lake, bodies(5, first_id=65), first_offset=65)
    daemon.wipe()
    assert assets(daemon.requested()) == FEATURES | PREDICTIONS


def test_features_without_a_score_request_predictions_alone(
    daemon: Daemon, settings: Settings, lake: Lake, with_champion: Callable[[bool], None]
) -> None:
    land(lake, bodies(10))
    process_landed(lake, settings)
    assert assets(daemon.requested()) == PREDICTIONS


def test_a_champion_by_hand_is_noticed_though_no_table_changed(
    daemon: Daemon, lake: Lake, with_champion: Callable[[bool], None]
) -> None:
    with_champion(False)
    land(lake, bodies(10))
    daemon.run(daemon.requested())
    daemon.skipped()
    assert daemon.skipped() == "No table has changed since the last evaluation."
    with_champion(True)
    assert assets(daemon.requested()) == PREDICTIONS


def test_a_lower_limit_of_training_is_noticed_though_no_table_changed(
    daemon: Daemon, make_settings: Callable[..., Settings], lake: Lake
) -> None:
    land(lake, bodies(10))
    daemon.run(daemon.requested())
    daemon.skipped()
    lower = Daemon(make_settings(train_min_rows=10))
    lower.cursor = daemon.cursor
    assert assets(lower.requested()) == MODEL | PREDICTIONS


def test_rows_outside_the_training_window_request_no_training(daemon: Daemon, lake: Lake) -> None:
    early, late = bodies(40), bodies(40, first_id=72 * 60)
    land(lake, early + late)
    request = daemon.requested()
    assert assets(request) == FEATURES | MODEL | PREDICTIONS
    assert daemon.run(request).success
    assert "80 transactions wait for the first model. It needs 50 " in daemon.skipped()


@pytest.mark.parametrize("status", [s for s in dg.DagsterRunStatus if s.value in ("QUEUED", "NOT_STARTED", "STARTED")])
def test_one_run_at_a_time(daemon: Daemon, lake: Lake, status: dg.DagsterRunStatus) -> None:
    land(lake, bodies(10))
    daemon.start(daemon.requested(), status)
    land(lake, bodies(10, first_id=10), first_offset=10)
    assert "A run is in progress" in daemon.skipped()


def test_maintenance_requests_nothing(daemon: Daemon, settings: Settings, lake: Lake) -> None:
    for part in range(3):
        land(lake, bodies(5, first_id=5 * part), first_offset=5 * part)
        daemon.run(daemon.requested())
    daemon.skipped()
    reports = maintain_lake(lake, settings.model_copy(update={"vacuum_hours": 0}))
    assert reports["raw_transactions"].files_removed >= 3
    assert "wait for the first model" in daemon.skipped()


def test_stuck_features_call_for_a_person(
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
            # More lands all the time, also from a new partition; this does not reset the count.
            land(lake, bodies(5, first_id=100 + 5 * attempt), partition=1 + attempt)
    assert len(keys) == ATTEMPTS
    last = daemon.instance.get_runs(limit=1)[0].run_id
    with pytest.raises(StuckError, match=rf"3 runs failed .* the last one is run {last}.*FRAUD_SENSOR_ATTEMPTS is 3"):
        daemon.look()
    land(lake, bodies(100, first_id=1_000), first_offset=10)
    with pytest.raises(StuckError):
        daemon.look()
    process_landed(lake, settings)
    land(lake, bodies(10, first_id=2_000), first_offset=200)
    assert daemon.run(daemon.requested()).success


def test_stuck_predictions_call_for_a_person_though_features_go_on(
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
    for part in range(3):
        land(lake, bodies(5, first_id=5 * part), first_offset=5 * part)
        with monkeypatch.context() as broken:
            broken.setattr("fraud_assets.stages.features.process_landed", fails)
            for _ in range(ATTEMPTS - 1):
                assert not daemon.run(daemon.requested()).success
        assert daemon.run(daemon.requested()).success


def test_runs_that_a_restart_interrupts_do_not_count_as_failed(
    daemon: Daemon, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in `make dev` during a run, as often as it happens, never stops the sensor."""
    land(lake, bodies(10))

    def stopped(*_: Any, **__: Any) -> None:
        raise DagsterExecutionInterruptedError

    with monkeypatch.context() as restarting:
        restarting.setattr("fraud_assets.stages.features.process_landed", stopped)
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


def test_a_recreated_lake_has_no_failures_and_new_run_keys(
    daemon: Daemon, make_settings: Callable[..., Settings], lake: Lake, tmp_path: Any
) -> None:
    land(lake, bodies(5))
    for _ in range(ATTEMPTS):
        daemon.start(daemon.requested(), dg.DagsterRunStatus.FAILURE)
    anew = Daemon(make_settings(home=tmp_path / "anew"))
    anew.instance = daemon.instance
    land(anew.platform.lake(), bodies(5))
    assert anew.run(anew.requested()).success


def test_a_run_that_did_nothing_is_told_of(
    daemon: Daemon, settings: Settings, lake: Lake, with_champion: Callable[[bool], None]
) -> None:
    """Dagster drops a request whose key has run without a word; here the sensor sees a champion that is none."""
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
    """The daemon that looks into the drop folder."""
    return Daemon(settings, dropped_files_sensor)


def drop(settings: Settings, name: str, values: list[bytes]) -> None:
    """Puts a file into the drop folder; its time of change is always the same, as of a copy that keeps it."""
    settings.incoming.mkdir(parents=True, exist_ok=True)
    path = settings.incoming / name
    path.write_bytes(b"\n".join(values) + b"\n")
    os.utime(path, (FIRST.timestamp(), FIRST.timestamp()))


def test_a_dropped_file_is_landed_without_any_broker(file_daemon: Daemon, settings: Settings, lake: Lake) -> None:
    assert file_daemon.skipped() == f"No files are waiting in {settings.incoming}."
    drop(settings, "day.jsonl", bodies(7))
    # A broker that is gone must not fail a run that is about files.
    settings.broker_file.write_text('{"bootstrap_servers": "127.0.0.1:1", "topic_id": "gone", "pid": 0}')
    request = file_daemon.requested()
    assert request.run_config == {"ops": {"landing": {"config": {"topics": False}}}}
    assert file_daemon.run(request).success
    assert read_row_count(lake.open(raw_transactions)) == 7
    assert "No files are waiting" in file_daemon.skipped()


def test_the_same_file_dropped_again_is_taken_again(file_daemon: Daemon, settings: Settings, lake: Lake) -> None:
    for _ in range(2):
        drop(settings, "day.jsonl", bodies(7))
        assert file_daemon.run(file_daemon.requested()).success
        assert list(settings.incoming.iterdir()) == []
    assert read_row_count(lake.open(raw_transactions)) == 7


def test_what_is_no_file_stops_no_sensor(file_daemon: Daemon, settings: Settings, lake: Lake) -> None:
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
    assert set(metadata["failed_files"].value) == {"loop.csv"}
    assert set(metadata["stuck_files"].value) == {"folder"}


def test_a_drop_folder_that_cannot_be_read_breaks_no_sensor(file_daemon: Daemon, settings: Settings) -> None:
    settings.home_path.mkdir(exist_ok=True)
    settings.incoming.symlink_to("incoming")
    assert "cannot be read: Too many levels of symbolic links" in file_daemon.skipped()


def test_a_file_that_stays_is_tried_again_and_stops_no_other(
    file_daemon: Daemon, settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(settings, "day.xlsx", bodies(7))
    settings.failed.write_text("no folder")
    # As often as it likes: no other file waits for it.
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
    """It stays "started" for Dagster. After ten minutes without events it is marked failed, and the next run starts."""
    land(lake, bodies(10))
    daemon.start(daemon.requested(), dg.DagsterRunStatus.STARTED)
    assert "A run is in progress" in daemon.skipped()
    later = time.time() + 601
    monkeypatch.setattr("fraud_assets.sensors.time.time", lambda: later)
    daemon.requested()
    [killed] = daemon.instance.get_runs()
    assert killed.status is dg.DagsterRunStatus.FAILURE


def test_a_lander_takes_the_files_itself(file_daemon: Daemon, settings: Settings) -> None:
    drop(settings, "day.jsonl", bodies(7))
    with register_lander(settings):
        assert file_daemon.skipped() == "`fraud-assets land` is running and lands the files."
    file_daemon.requested()


def test_one_landing_run_at_a_time(file_daemon: Daemon, settings: Settings) -> None:
    drop(settings, "day.jsonl", bodies(7))
    request = file_daemon.requested()
    file_daemon.start(request, dg.DagsterRunStatus.QUEUED)
    assert request.tags[SENSOR_TAG] == "dropped_files_sensor"
    assert file_daemon.skipped() == "A landing run is in progress."


def test_stuck_files_call_for_a_person(
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
