from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from fraud_assets.core.schema import MODEL_INPUTS, alert_thresholds, transaction_features
from fraud_assets.core.scoring import score
from fraud_assets.core.training import score_samples
from fraud_assets.errors import LakeError, ModelRegistryError, NoChampionError, NotEnoughDataError, SettingError
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake, open_dataset, read
from fraud_assets.registry.models import ModelVersion, find_champion_version, read_champion
from fraud_assets.settings import load_settings
from fraud_assets.stages import calibration, training
from fraud_assets.stages.calibration import read_threshold, recalibrate
from fraud_assets.stages.training import train
from fraud_assets.stages.training_window import read_features
from fraud_assets_tests.support.synthetic import FIRST, commit_features, features

ROWS = 4_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Settings, a lake with 40 days of features, and the report of one training with few trees."""
    settings = load_settings(
        home=tmp_path_factory.mktemp("trained"), mlflow_tracking_uri="", train_trees=10, alert_budget_per_day=2.0
    )
    lake = Lake.of(settings)
    commit_features(lake, features(ROWS, days=40))
    return settings, lake, train(lake, settings)


def test_the_default_window_is_the_last_days_of_the_lake(trained):
    settings, _, report = trained
    newest = FIRST + timedelta(days=40) * ((ROWS - 1) / ROWS)
    assert report.window_end == newest + timedelta(microseconds=1)
    assert report.window_start == report.window_end - timedelta(days=settings.train_days)
    assert report.rows == 2_800
    assert report.version == report.calibration.model_version == 1


def test_the_champion_has_a_threshold_within_the_alert_budget(trained):
    settings, lake, report = trained
    assert find_champion_version(settings) == report.version
    threshold = read_threshold(lake, read_champion(settings), settings)
    assert threshold == report.calibration.threshold
    week = read_features(lake, report.calibration.window_start, report.calibration.window_end, training._COLUMNS)
    assert week.num_rows == report.calibration.rows == 700
    alerts = (score(read_champion(settings).model, week) >= threshold).sum()
    assert alerts == 13  # almost seven days, with at most two alerts a day
    assert report.calibration.alerts_per_day <= 2.0


def test_users_can_load_the_model_from_mlflow(trained, monkeypatch):
    """The scikit-learn form, loaded by alias, gives the platform's scores. It has a signature, an example and a run."""
    import mlflow

    settings, lake, report = trained
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.mlflow_uri)
    uri = f"models:/{settings.model_name}@champion"
    forest = mlflow.sklearn.load_model(uri)
    rows = read_features(lake, report.window_start, report.window_end, training._COLUMNS)
    np.testing.assert_allclose(
        score_samples(forest, rows), score(read_champion(settings).model, rows), rtol=0, atol=1e-8
    )
    info = mlflow.models.get_model_info(uri)
    assert info.signature.inputs.input_names() == list(MODEL_INPUTS)
    assert info.saved_input_example_info is not None
    assert set(mlflow.pyfunc.load_model(uri).predict(rows.select(MODEL_INPUTS).to_pandas())) == {-1, 1}
    run = mlflow.get_run(info.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["rows"] == "2800"
    assert run.data.params["feature_version"] == "1"
    assert run.data.metrics["threshold"] == report.calibration.threshold


def test_the_same_data_gives_the_same_forest(trained):
    settings, lake, report = trained
    second_forest = training.fit(
        read_features(lake, report.window_start, report.window_end, training._COLUMNS), settings.train_trees, 42
    )
    rows = features(50, seed=9)
    np.testing.assert_allclose(
        score_samples(second_forest, rows), score(read_champion(settings).model, rows), rtol=0, atol=1e-8
    )


def test_recalibration_changes_the_threshold_but_not_the_model(trained):
    settings, lake, report = trained
    generous = settings.model_copy(update={"alert_budget_per_day": 4.0})
    calibration = recalibrate(lake, generous)
    assert calibration.model_version == find_champion_version(settings) == report.version
    assert calibration.threshold < report.calibration.threshold
    assert read_threshold(lake, read_champion(settings), settings) == calibration.threshold
    recalibrate(lake, settings)
    assert read_threshold(lake, read_champion(settings), settings) == report.calibration.threshold
    assert read_row_count(lake.open(alert_thresholds)) == 3


def test_a_short_window_is_calibrated_on_its_own_days_and_records_them(tmp_path):
    settings = load_settings(home=tmp_path, mlflow_tracking_uri="", train_min_rows=10, train_trees=3)
    lake = Lake.of(settings)
    commit_features(lake, features(400, days=10))
    start = FIRST + timedelta(days=7)
    report = train(lake, settings, start)
    assert report.calibration.window_start == start
    assert read(lake.open(alert_thresholds), ["window_start"])["window_start"].to_pylist() == [start]


def test_too_few_rows_are_reported_and_register_no_model(trained):
    settings, lake, report = trained
    with pytest.raises(NotEnoughDataError, match=r"1,000 .*FRAUD_TRAIN_MIN_ROWS.* 100 "):
        train(lake, settings, FIRST, FIRST + timedelta(days=1))
    assert find_champion_version(settings) == report.version


def test_training_and_calibration_need_data(tmp_path):
    settings = load_settings(home=tmp_path, mlflow_tracking_uri="")
    with pytest.raises(NotEnoughDataError, match=r"1,000 .*FRAUD_TRAIN_MIN_ROWS"):
        train(Lake.of(settings), settings)
    with pytest.raises(NoChampionError):
        recalibrate(Lake.of(settings), settings)
    assert not (tmp_path / "mlflow").exists()


def test_an_invalid_window_is_refused(trained):
    settings, lake, _ = trained
    with pytest.raises(SettingError, match="empty"):
        train(lake, settings, FIRST, FIRST)
    with pytest.raises(SettingError, match="zone"):
        train(lake, settings, FIRST.replace(tzinfo=None), None)


def test_rows_of_another_feature_version_are_not_trained_on(tmp_path):
    settings = load_settings(home=tmp_path, mlflow_tracking_uri="")
    lake = Lake.of(settings)
    rows = features(1_500)
    index = rows.column_names.index("feature_version")
    commit_features(lake, rows.set_column(index, rows.schema.field(index), pa.array(["0"] * 1_500)))
    with pytest.raises(NotEnoughDataError, match=r"holds 0 of feature version 1"):
        train(lake, settings)


def test_a_version_without_a_threshold_is_reported_with_the_fix(trained):
    settings, lake, _ = trained
    with pytest.raises(LakeError, match=r"Version 99 .*\(MLflow run r\) has no .* Materialize only alert_thresholds"):
        read_threshold(lake, ModelVersion(99, "r"), settings)


def test_the_alias_does_not_change_if_the_threshold_cannot_be_stored(trained, monkeypatch):
    settings, lake, report = trained

    def fail_with_full_disk(*_):
        raise LakeError("The disk is full")

    monkeypatch.setattr(calibration, "commit_append", fail_with_full_disk)
    with pytest.raises(LakeError):
        train(lake, settings)
    assert find_champion_version(settings) == report.version


def test_a_registry_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "mlflow").write_text("a file where the folder should be")
    settings = load_settings(home=tmp_path, mlflow_tracking_uri="", train_trees=2)
    lake = Lake.of(settings)
    commit_features(lake, features(1_200))
    with pytest.raises(ModelRegistryError, match="FRAUD_HOME"):
        train(lake, settings)
    assert open_dataset(lake.open(transaction_features)).count_rows() == 1_200
