"""The model registry of a moved or copied home reads and writes only in the current home."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from fraud_assets.core.schema import MODEL_INPUTS
from fraud_assets.core.training import fit
from fraud_assets.doctor.lake import check_registry
from fraud_assets.operations.setup_home import prepare_home
from fraud_assets.registry import home as registry_home
from fraud_assets.registry.home import find_local_path, find_other_homes, relocate_registry
from fraud_assets.registry.models import _resolve, read_champion
from fraud_assets.registry.registration import register_model, set_champion
from fraud_assets.settings import Settings, load_settings
from fraud_assets_tests.support.models import facts


def load_home(path: Path) -> Settings:
    return load_settings(home=path, mlflow_tracking_uri="")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home with a champion, in a folder whose name needs quoting."""
    settings = load_home(tmp_path_factory.mktemp("homes") / "the first 41% ä#")
    set_champion(register_model(fit(facts().example, 3), facts(), settings).version, settings)
    return settings


@pytest.fixture
def copy(original: Settings, tmp_path: Path) -> Settings:
    """A copy of the original home, in another folder whose name needs quoting."""
    shutil.copytree(original.home_path, tmp_path / "a copy 20% ü")
    return load_home(tmp_path / "a copy 20% ü")


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored_locations(settings: Settings) -> list[str]:
    """Returns every location that the registry stores for the platform's experiment and models."""
    with sqlite3.connect(settings.mlflow_database) as connection:
        queries = [
            f"select {column} from {table}" for table, column in registry_home._LOCATIONS if table != "experiments"
        ]
        queries.append("select artifact_location from experiments where name = 'isolation_forest'")
        return [value for query in queries for (value,) in connection.execute(query) if value]


def test_the_database_is_at_the_path_of_the_settings(original: Settings) -> None:
    """MLflow does not decode the percent sign of the path, and does not cut the path at a special character."""
    assert original.mlflow_database.is_file()
    assert [path.name for path in original.home_path.parent.iterdir()] == [original.home_path.name]
    assert find_other_homes(original) == []


def test_a_copy_reads_and_writes_only_in_its_own_home(original: Settings, copy: Settings) -> None:
    before = read_files(original.home_path)
    _, run_id, artifacts = _resolve(copy)
    folder = find_local_path(artifacts)
    assert folder is not None
    assert folder.is_relative_to(copy.home_path)
    assert (folder / "treelite" / "model.tl").is_file()
    assert read_champion(copy).run_id == run_id == read_champion(original).run_id
    assert read_files(copy.home_path).keys() == before.keys()  # Reading writes no file.

    registered = register_model(fit(facts().example, 3, seed=7), facts(), copy)
    set_champion(registered.version, copy)
    assert (registered.version, read_champion(copy).run_id) == (2, registered.run_id)
    assert read_files(original.home_path) == before
    root = copy.mlflow_artifacts.as_uri()
    assert all(location.startswith((f"{root}/", "models:/")) or location == root for location in stored_locations(copy))
    assert (copy.mlflow_artifacts / registered.run_id / "artifacts" / "treelite" / "model.tl").is_file()


def test_a_moved_home_works_for_the_platform_and_for_mlflow(
    copy: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fraud-assets setup` updates the locations that MLflow stores, so no training is needed."""
    import mlflow

    relocate_registry(copy)
    before = read_champion(copy)
    moved = load_home(tmp_path / "moved away ß")
    copy.home_path.rename(moved.home_path)
    assert read_champion(moved).model is not before.model
    assert read_champion(moved).model.serialize_bytes() == before.model.serialize_bytes()
    (finding,) = [finding for finding in check_registry(moved) if finding.state == "WARN"]
    assert copy.mlflow_artifacts.as_uri() in finding.text
    assert "fraud-assets setup" in finding.fix

    assert any(copy.mlflow_artifacts.as_uri() in message for message in prepare_home(moved))
    assert prepare_home(moved) == []
    assert [finding.state for finding in check_registry(moved)] == ["OK"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", moved.mlflow_uri)
    forest = mlflow.sklearn.load_model("models:/isolation_forest@champion")
    assert forest.predict(facts().example.select(MODEL_INPUTS).to_pandas()).shape == (20,)


def test_locations_that_a_user_chose_do_not_change(copy: Settings) -> None:
    chosen = ["s3://bucket/mlflow/artifacts", "file:///elsewhere/models", "/elsewhere/models"]
    with sqlite3.connect(copy.mlflow_database) as connection:
        for number, location in enumerate(chosen):
            connection.execute(
                "insert into experiments (experiment_id, name, artifact_location) values (?, ?, ?)",
                (100 + number, f"mine {number}", location),
            )
    assert len(relocate_registry(copy)) == 1
    with sqlite3.connect(copy.mlflow_database) as connection:
        kept = connection.execute("select artifact_location from experiments where experiment_id >= 100 order by 1")
        assert [location for (location,) in kept] == sorted(chosen)


def test_a_symbolic_link_to_a_home_is_the_same_home(original: Settings, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(original.home_path)
    linked = load_home(tmp_path / "link")
    assert find_other_homes(linked) == []
    assert read_champion(linked).run_id == read_champion(original).run_id


def test_a_registry_outside_the_home_is_not_changed(copy: Settings, tmp_path: Path) -> None:
    database = tmp_path / "shared.db"
    shutil.copy(copy.mlflow_database, database)
    before = database.read_bytes()
    settings = load_settings(home=copy.home_path, mlflow_tracking_uri=f"sqlite:///{database}")
    assert find_other_homes(settings) == relocate_registry(settings) == []
    assert database.read_bytes() == before
