"""The registry registers models, reads the champion and rejects damaged files."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time

import pytest

from fraud_assets.core.training import fit
from fraud_assets.errors import FeatureVersionError, ModelRegistryError, NoChampionError
from fraud_assets.registry import models as registry
from fraud_assets.registry import registration
from fraud_assets.registry.client import mask_credentials, open_client
from fraud_assets.registry.files import ModelRecord, read_model
from fraud_assets.registry.home import find_local_path, find_sqlite_path
from fraud_assets.registry.models import find_champion_version, read_champion
from fraud_assets.registry.registration import register_model, set_champion
from fraud_assets.settings import load_settings
from fraud_assets_tests.support.models import assert_first_trainings_are_quiet, facts, run


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A registry in a folder whose name needs quoting. It has versions 1 and 2, and version 2 is the champion."""
    settings = load_settings(home=tmp_path_factory.mktemp("a registry #1 äöü 20% "), mlflow_tracking_uri="")
    forest = fit(facts().example, 3)
    for version in (1, 2):
        assert register_model(forest, facts(), settings).version == version
        with pytest.raises(NoChampionError):
            read_champion(settings)  # registering a version does not set the alias
    set_champion(2, settings)
    return settings


def test_the_database_and_the_mlflow_client_give_the_same_champion(settings, monkeypatch):
    by_file, by_client = registry._resolve(settings), registry._resolve_by_client(settings)
    assert by_file[1]
    assert by_file[:2] == by_client[:2]
    by_database = read_champion(settings)
    monkeypatch.setattr(registry, "find_sqlite_path", lambda uri: None)
    through_client = read_champion(settings)
    assert (
        (by_database.version, by_database.feature_version)
        == (through_client.version, through_client.feature_version)
        == (2, "1")
    )
    assert by_database.run_id == through_client.run_id == by_file[1]
    assert by_database.model is not through_client.model
    assert by_database.model.serialize_bytes() == through_client.model.serialize_bytes()


def test_both_lookups_follow_the_alias(settings):
    set_champion(1, settings)
    assert find_champion_version(settings) == registry._resolve_by_client(settings)[0] == 1
    set_champion(2, settings)
    assert read_champion(settings).version == 2


def test_a_missing_champion_is_reported(settings, tmp_path):
    empty = load_settings(home=tmp_path, mlflow_tracking_uri="")
    for call in (read_champion, find_champion_version):
        with pytest.raises(NoChampionError, match="FRAUD_TRAIN_MIN_ROWS"):
            call(empty)
    assert not list(tmp_path.iterdir())  # the lookup creates no files
    other = settings.model_copy(update={"model_name": "another"})
    with pytest.raises(NoChampionError, match="another"):
        read_champion(other)
    assert registry._resolve_by_client(other) is None


def test_an_empty_database_has_no_champion_and_an_invalid_database_is_reported(tmp_path):
    settings = load_settings(home=tmp_path, mlflow_tracking_uri="")
    path = find_sqlite_path(settings.mlflow_uri)
    path.parent.mkdir()
    sqlite3.connect(path).close()
    with pytest.raises(NoChampionError):
        find_champion_version(settings)
    path.write_bytes(b"no database" * 500)
    with pytest.raises(ModelRegistryError, match=r"cannot be read.*FRAUD_HOME"):
        find_champion_version(settings)


def test_an_error_about_another_feature_version_names_the_fix(settings, monkeypatch):
    monkeypatch.setattr(registry, "FEATURE_VERSION", "2")
    with pytest.raises(FeatureVersionError, match=r"Version 2 .*feature version 1, .*have version 2. Train a new"):
        read_champion(settings)
    assert find_champion_version(settings) == 2


@pytest.fixture
def copied(settings, tmp_path):
    """A copy of the champion's files, and the facts about them that its run recorded."""
    _, run_id, artifacts = registry._resolve(settings)
    folder = tmp_path / "treelite"
    shutil.copytree(find_local_path(artifacts) / "treelite", folder)
    return folder, registry._load(settings.mlflow_uri, run_id, artifacts)[1]


def test_a_flipped_byte_is_rejected_before_treelite_reads_the_model(copied, monkeypatch):
    """Treelite computes wrong scores or hangs if the bytes are damaged."""
    import treelite

    folder, recorded = copied
    original = (folder / "model.tl").read_bytes()
    assert read_model(folder, recorded).serialize_bytes() == original
    monkeypatch.setattr(treelite.Model, "deserialize_bytes", lambda _: pytest.fail("treelite saw damaged bytes"))
    for index in (0, len(original) // 3, len(original) - 1):
        damaged = bytearray(original)
        damaged[index] ^= 4
        (folder / "model.tl").write_bytes(damaged)
        with pytest.raises(ModelRegistryError, match=r"model\.tl is damaged or was changed.*backup.*isolation_forest"):
            read_model(folder, recorded)
    (folder / "model.tl").write_bytes(original[:-1])
    with pytest.raises(ModelRegistryError, match="damaged"):
        read_model(folder, recorded)


def test_model_facts_that_differ_from_the_registry_are_rejected(copied):
    folder, recorded = copied
    described = json.loads((folder / "model.json").read_text())
    assert described["model_sha256"] == recorded.sha256
    changes = ({"features": described["features"][::-1]}, {"feature_version": "2"}, {"model_sha256": "0"})
    for text in [json.dumps({**described, **change}) for change in changes] + ["[]", "{}"]:
        (folder / "model.json").write_text(text)
        with pytest.raises(ModelRegistryError, match=r"model\.json is damaged or was changed"):
            read_model(folder, recorded)


def test_missing_and_truncated_files_are_reported(copied, tmp_path):
    folder, recorded = copied
    (folder / "model.json").write_text("{")
    for path in (folder, tmp_path / "nowhere"):
        with pytest.raises(ModelRegistryError, match=r"cannot be read.*alias champion"):
            read_model(path, recorded)


def test_a_model_without_a_recorded_hash_is_rejected(copied):
    folder, _ = copied
    with pytest.raises(ModelRegistryError, match=r"no SHA-256 .*model_sha256.*train a new champion"):
        read_model(folder, ModelRecord.of({"feature_version": "1"}))


@pytest.mark.parametrize("name", ["model.tl", "model.json"])
def test_damaged_champion_files_are_reported(settings, tmp_path, name):
    """The lookup reads the SQLite database of the registry, without the MLflow client."""
    home = tmp_path / "damaged"
    shutil.copytree(settings.home_path, home)
    damaged = load_settings(home=home, mlflow_tracking_uri="")
    _, _, artifacts = registry._resolve(damaged)
    path = find_local_path(artifacts) / "treelite" / name
    assert path.is_relative_to(home)
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    with pytest.raises(ModelRegistryError, match=f"{name} is damaged"):
        read_champion(damaged)
    assert read_champion(settings).version == 2


def test_an_error_about_an_unreachable_server_does_not_contain_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = load_settings(mlflow_tracking_uri="http://me:geheim@127.0.0.1:9")
    with pytest.raises(ModelRegistryError, match="MLFLOW_TRACKING_URI") as caught:
        find_champion_version(settings)
    assert "geheim" not in str(caught.value)


def test_a_failed_registration_marks_its_run_as_failed_and_registers_no_version(settings, monkeypatch):
    from mlflow import MlflowClient

    def fail(*_):
        raise OSError("the connection is gone")

    client = MlflowClient(settings.mlflow_uri, settings.mlflow_uri)
    monkeypatch.setattr(registration, "_registered_model", fail)
    with pytest.raises(ModelRegistryError, match=r"the connection is gone.*MLFLOW_TRACKING_URI"):
        register_model(fit(facts().example, 3), facts(), settings)
    experiment = client.get_experiment_by_name(settings.model_name)
    assert client.search_runs([experiment.experiment_id])[0].info.status == "FAILED"
    assert len(client.search_model_versions(f"name = '{settings.model_name}'")) == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "custom_model_development"),
        ("genai_development_inferred", "custom_model_development"),
        ("genai_development", "genai_development"),  # chosen by a user
    ],
)
def test_the_experiment_has_the_kind_for_machine_learning(settings, before, after):
    """MLflow stores the kind of an experiment in a tag. An existing experiment gets the tag too."""
    client = open_client(settings)
    experiment = client.get_experiment_by_name(settings.model_name)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    if before is None:
        client.delete_experiment_tag(experiment.experiment_id, "mlflow.experimentKind")
    else:
        client.set_experiment_tag(experiment.experiment_id, "mlflow.experimentKind", before)
    try:
        assert registration._experiment(client, settings) == experiment.experiment_id
        assert client.get_experiment(experiment.experiment_id).tags["mlflow.experimentKind"] == after
    finally:
        client.set_experiment_tag(experiment.experiment_id, "mlflow.experimentKind", "custom_model_development")


def test_reading_the_champion_imports_neither_mlflow_nor_scikit_learn(settings):
    code = (
        "import json, sys, time\n"
        "from fraud_assets.registry.models import find_champion_version, read_champion\n"
        "from fraud_assets.settings import load_settings\n"
        "settings = load_settings(); read_champion(settings)\n"
        "print(json.dumps(sorted({'mlflow', 'sklearn', 'pandas', 'dagster'} & set(sys.modules))))\n"
    )
    result = run(code, settings)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []
    started_at = time.monotonic()
    for _ in range(20):
        read_champion(settings)
    assert time.monotonic() - started_at < 2.0


def test_the_tracking_uri_does_not_leak_into_the_environment(settings):
    assert os.environ.get("MLFLOW_TRACKING_URI") != settings.mlflow_uri
    import mlflow

    assert settings.mlflow_uri != mlflow.get_tracking_uri()


def test_a_first_training_prints_nothing(tmp_path):
    assert_first_trainings_are_quiet(tmp_path, 1)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:geheim@host:5433/mlflow?sslmode=require", "postgresql://…@host:5433/mlflow"),
        ("postgresql://me:ge/heim@host:port/mlflow", "postgresql://…@host:port/mlflow"),
        ("https://me:geheim@[host/", "https://…@[host/"),
        ("http://localhost:5000", "http://localhost:5000"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
    ],
)
def test_credentials_are_masked_even_in_an_address_that_cannot_be_parsed(uri: str, shown: str) -> None:
    """Dagster's definitions show the address, and a faulty one must not keep them from loading."""
    assert mask_credentials(uri) == shown
