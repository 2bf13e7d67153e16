"""`fraud-assets setup`: it creates the folders of the home and sets DAGSTER_HOME in `.env`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dotenv import dotenv_values

from fraud_assets.errors import SettingError
from fraud_assets.operations.setup_home import FOLDERS, prepare_home, set_up_home
from fraud_assets.settings import load_settings


def set_up(tmp_path, home="home"):
    return set_up_home(load_settings(home=tmp_path / home), tmp_path / ".env")


def test_setup_creates_folders_dagster_yaml_and_env_file(tmp_path):
    assert len(set_up(tmp_path)) == 3
    assert all((tmp_path / "home" / name).is_dir() for name in FOLDERS)
    assert dotenv_values(tmp_path / ".env") == {"DAGSTER_HOME": str(tmp_path / "home" / "dagster")}


def test_prepare_home_does_not_write_the_env_file(tmp_path):
    assert len(prepare_home(load_settings(home=tmp_path / "home"))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_an_env_file_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / ".env").mkdir()
    with pytest.raises(SettingError, match=r"Cannot set DAGSTER_HOME in .*\.env"):
        set_up(tmp_path)


def test_a_second_setup_changes_nothing(tmp_path):
    set_up(tmp_path)
    (tmp_path / "home/dagster/dagster.yaml").write_text("telemetry: {enabled: true}\n")
    before = (tmp_path / ".env").stat().st_mtime_ns
    assert set_up(tmp_path) == []
    assert (tmp_path / "home/dagster/dagster.yaml").read_text() == "telemetry: {enabled: true}\n"
    assert (tmp_path / ".env").stat().st_mtime_ns == before


def test_setup_keeps_other_lines_of_the_env_file(tmp_path):
    env = tmp_path / ".env"
    env.write_text("# mine\nFRAUD_TRAIN_TREES=7\nexport DAGSTER_HOME=/old\nKAFKA_X='a b'\nDAGSTER_HOME=/older\n# end")
    set_up(tmp_path)
    expected = f"DAGSTER_HOME={tmp_path}/home/dagster"
    assert env.read_text().splitlines() == ["# mine", "FRAUD_TRAIN_TREES=7", expected, "KAFKA_X='a b'", "# end"]


@pytest.mark.parametrize("name", ["plain", "with space", "it's", "hash #1", "ü"])
def test_every_parser_reads_the_same_home(tmp_path, name):
    honcho = pytest.importorskip("honcho.environ")
    set_up(tmp_path, name)
    expected = {"DAGSTER_HOME": str(tmp_path / name / "dagster")}
    assert dotenv_values(tmp_path / ".env") == expected
    assert honcho.parse((tmp_path / ".env").read_text()) == expected


def test_dagster_accepts_the_dagster_yaml(tmp_path):
    from dagster import DagsterInstance

    set_up(tmp_path)
    with DagsterInstance.from_config(str(tmp_path / "home/dagster")) as instance:
        assert not instance.telemetry_enabled
        assert instance.run_monitoring_enabled
        assert instance.run_coordinator.dequeue_interval_seconds == 1
        assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 2
        assert instance.get_settings("sensors")["use_threads"]


def test_a_home_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"FRAUD_HOME is .*file.*cannot write"):
        set_up(tmp_path, "file/home")


def test_setup_as_a_module_writes_nothing_to_stdout(tmp_path):
    root = Path(__file__).parents[2]
    env = {**os.environ, "FRAUD_HOME": "state", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "fraud_assets.cli", "setup"]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert result.stdout == ""
    assert "DAGSTER_HOME" in result.stderr
    assert dotenv_values(tmp_path / ".env")["DAGSTER_HOME"] == str(tmp_path / "state" / "dagster")


def test_a_database_of_dagster_without_a_driver_is_refused_without_its_password(monkeypatch):
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql://dagster:geheim@db/dagster")
    with pytest.raises(SettingError, match=r"URL cannot be used: write it as postgresql\+psycopg2://") as caught:
        load_settings(_env_file=None)
    assert "geheim" not in str(caught.value)
