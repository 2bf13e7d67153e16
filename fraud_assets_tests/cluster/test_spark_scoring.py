"""Spark and the local engine compute the same scores and the same training sample, exactly once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from threading import Barrier, Thread
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from fraud_assets.assets.model import model
from fraud_assets.assets.predictions import fraud_predictions as fraud_predictions_asset
from fraud_assets.core.schema import FRAUD_PREDICTIONS, fraud_predictions, transaction_features
from fraud_assets.core.scoring import score
from fraud_assets.engines.base import Engine, ScoringBatch, ScoringResult, TrainingWindow
from fraud_assets.engines.local.engine import LocalEngine
from fraud_assets.engines.spark.engine import SparkEngine
from fraud_assets.engines.spark.scoring import group_slices_by_day
from fraud_assets.errors import LakeError, NoChampionError
from fraud_assets.lake.data_files import Slice
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake, read
from fraud_assets.registry.models import read_champion
from fraud_assets.resources import EngineResource, PlatformResource
from fraud_assets.settings import BatchLimits, Settings, load_settings
from fraud_assets.stages import scoring
from fraud_assets.stages.calibration import recalibrate
from fraud_assets.stages.scoring import score_pending
from fraud_assets.stages.training import read_training_rows, train
from fraud_assets_tests.support.logged import logged
from fraud_assets_tests.support.synthetic import FIRST, commit_features, features

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.xdist_group("spark")

ROWS = 4_000
DAYS = 5


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a champion, trained once for all tests of this module."""
    home = tmp_path_factory.mktemp("registry")
    settings = load_settings(_env_file=None, home=home, lake_uri="", mlflow_tracking_uri="", train_trees=5)
    lake = Lake.of(settings)
    commit_features(lake, features(1_200))
    train(lake, settings)
    return home


@pytest.fixture
def settings(make_settings: Callable[..., Settings], registry: Path, tmp_path: Path) -> Settings:
    return make_settings(home=registry, lake_uri=str(tmp_path / "lake"), train_trees=5, engine="spark")


@pytest.fixture
def lake(settings: Settings) -> Lake:
    """Features of five days and three partitions, in two commits, and a threshold of the champion."""
    lake = Lake.of(settings)
    commit_features(lake, features(ROWS // 2, days=DAYS, partitions=3))
    commit_features(lake, features(ROWS // 2, days=DAYS, partitions=3, first_offset=ROWS // 2 + 1))
    recalibrate(lake, settings)
    return lake


@pytest.fixture
def on_spark(spark: SparkSession, settings: Settings) -> Engine:
    return SparkEngine(settings, lambda: spark)


def predictions(lake: Lake) -> pa.Table:
    rows = read(lake.open(fraud_predictions)).cast(FRAUD_PREDICTIONS).drop_columns(["scored_at"])
    return rows.sort_by([("partition", "ascending"), ("offset", "ascending")])


def data_files(lake: Lake) -> set[Path]:
    """The data files in the folder of the table, committed or not."""
    return set(Path(lake.uri(fraud_predictions)).rglob("part-*.parquet"))


def committed_files(lake: Lake) -> set[Path]:
    return {Path(uri) for uri in lake.open(fraud_predictions).file_uris()}


def test_both_engines_compute_identical_scores_and_reports(
    spark: SparkSession, lake: Lake, settings: Settings, on_spark: Engine, tmp_path: Path
) -> None:
    """The batches end in the middle of files and source partitions. The local engine scores a second lake."""
    local_lake = Lake(str(tmp_path / "other"))
    commit_features(local_lake, read(lake.open(transaction_features)))
    recalibrate(local_lake, settings)
    small_batches = settings.model_copy(update={"batch_rows": 1_500, "spark_batch_rows": 1_500})
    with logged() as lines:
        report = score_pending(lake, small_batches, SparkEngine(small_batches, lambda: spark))
    expected = score_pending(local_lake, small_batches)
    assert (report.rows, report.batches, report.alerts) == (ROWS, 3, expected.alerts)
    assert lines[0].startswith("scored 1,500 of 4,000 ")
    assert predictions(lake).equals(predictions(local_lake))
    assert data_files(lake) == committed_files(lake)
    model_versions = [
        commit["model_version"] for commit in lake.open(fraud_predictions).history() if "model_version" in commit
    ]
    assert model_versions == ["1"] * 3
    # Either engine continues after the committed rows.
    commit_features(lake, features(30, first_offset=2 * ROWS, partitions=3))
    assert score_pending(lake, settings).rows == 30
    # One file has enough rows for several threads, if Spark allows a task more than one.
    many = features(9_000, first_offset=3 * ROWS, partitions=1, days=0.9)
    commit_features(lake, many)
    assert score_pending(lake, settings, on_spark).rows == 9_000
    found = predictions(lake)
    assert len(set(found["transaction_id"].to_pylist())) == found.num_rows == ROWS + 9_030
    scores_of_many = found.filter(pc.is_in(found["transaction_id"], many["transaction_id"])).sort_by("offset")
    assert (scores_of_many["score"].to_numpy() == score(read_champion(settings).model, many)).all()


def test_a_run_without_pending_rows_or_without_a_champion_starts_no_session(lake: Lake, settings: Settings) -> None:
    def must_not_start() -> SparkSession:
        raise AssertionError("a session was asked for")

    with pytest.raises(NoChampionError):
        score_pending(
            lake, settings.model_copy(update={"model_name": "never_trained"}), SparkEngine(settings, must_not_start)
        )
    score_pending(lake, settings)
    assert score_pending(lake, settings, SparkEngine(settings, must_not_start)).rows == 0


def test_concurrent_runs_on_both_engines_score_each_row_once(lake: Lake, settings: Settings, on_spark: Engine) -> None:
    """Both have computed the first batch before either commits it."""
    barrier, totals = Barrier(2), []

    def race(engine: Engine) -> None:
        is_first, real_score = True, engine.score

        def score_and_wait(batch: ScoringBatch) -> ScoringResult:
            nonlocal is_first
            scored = real_score(batch)
            if is_first:
                barrier.wait(60)
                is_first = False
            return scored

        engine.score = score_and_wait
        engine.limits = BatchLimits(1_000, 1_000_000)
        totals.append(score_pending(lake, settings, engine).rows)

    threads = [Thread(target=race, args=(engine,)) for engine in (on_spark, LocalEngine(settings))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(totals) == ROWS
    scored, source = predictions(lake), read(lake.open(transaction_features))
    assert sorted(scored["transaction_id"].to_pylist()) == sorted(source["transaction_id"].to_pylist())


def test_a_run_with_a_commit_conflict_removes_its_files_and_starts_over(
    lake: Lake, settings: Settings, on_spark: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_score = on_spark.score

    def score_after_another_run(batch: ScoringBatch) -> ScoringResult:
        scored = real_score(batch)
        assert score_pending(lake, settings).rows == ROWS  # the other run scores all rows
        return scored

    monkeypatch.setattr(on_spark, "score", score_after_another_run)
    with logged() as lines:
        assert score_pending(lake, settings, on_spark).rows == 0
    assert "starts over" in lines[-1]
    assert read_row_count(lake.open(fraud_predictions)) == ROWS
    assert data_files(lake) == committed_files(lake)


def test_the_next_run_completes_a_run_that_was_killed_before_its_commit(
    lake: Lake, settings: Settings, on_spark: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(scoring, "commit_append", kill)
        with pytest.raises(Killed):
            score_pending(lake, settings, on_spark)
    orphans = data_files(lake)
    assert orphans
    assert read_row_count(lake.open(fraud_predictions)) == 0
    assert score_pending(lake, settings, on_spark).rows == ROWS
    assert (
        len(set(predictions(lake)["transaction_id"].to_pylist()))
        == read_row_count(lake.open(fraud_predictions))
        == ROWS
    )
    assert not orphans & committed_files(lake)
    lake.open(fraud_predictions).vacuum(0, enforce_retention_duration=False, dry_run=False, full=True)
    assert data_files(lake) == committed_files(lake)


def test_both_engines_refuse_features_of_another_version_with_the_same_error(
    lake: Lake, settings: Settings, on_spark: Engine
) -> None:
    rows = features(10, first_offset=2 * ROWS)
    index = rows.column_names.index("feature_version")
    commit_features(lake, rows.set_column(index, rows.schema.field(index), pa.array(["0", "00"] * 5)))
    errors = []
    for engine in (on_spark, LocalEngine(settings)):
        with pytest.raises(
            LakeError, match=r"feature version 0, 00, but the champion supports only version 1"
        ) as refused:
            score_pending(lake, settings, engine)
        errors.append(str(refused.value))
    assert errors[0] == errors[1]
    assert data_files(lake) == set()


def test_few_rows_make_one_task_and_a_backlog_makes_few_files(spark: SparkSession) -> None:
    def size(slices: list[Slice]) -> int:
        return sum(part.size for part in slices)

    small = [Slice(f"{day}/{n}", 20_000, FIRST.date() + timedelta(days=day)) for n in range(5) for day in range(3)]
    assert [len(task) for task in group_slices_by_day(spark, small)] == [15]
    large = [Slice(f"{day}/{n}", 3_000_000, FIRST.date() + timedelta(days=day)) for n in range(20) for day in range(9)]
    tasks = group_slices_by_day(spark, large)
    assert sorted((part for task in tasks for part in task), key=str) == sorted(large, key=str)
    assert len(tasks) == 8
    assert max(map(size, tasks)) < 1.2 * min(map(size, tasks))
    assert sum(len({part.partition for part in task}) for task in tasks) < 9 + 8
    assert group_slices_by_day(spark, []) == []


# --- The training sample ------------------------------------------------------------------------------------------


def sample(lake: Lake, settings: Settings, engine: Engine | None = None) -> pa.Table:
    window = TrainingWindow.of(lake, FIRST, FIRST + timedelta(days=DAYS))
    return read_training_rows(window, ROWS, settings, engine or LocalEngine(settings))


def test_the_sample_depends_on_neither_the_engine_nor_the_files(
    spark: SparkSession, lake: Lake, settings: Settings, tmp_path: Path
) -> None:
    small_sample = settings.model_copy(update={"train_max_rows": 700})
    local_sample, spark_sample = (
        sample(lake, small_sample, engine)
        for engine in (LocalEngine(small_sample), SparkEngine(small_sample, lambda: spark))
    )
    assert local_sample.num_rows == 700
    assert local_sample.equals(spark_sample)
    lake.open(transaction_features).optimize.compact()
    assert sample(lake, small_sample, SparkEngine(small_sample, lambda: spark)).equals(local_sample)
    reseeded = sample(lake, small_sample.model_copy(update={"train_seed": 7}))
    shared = set(local_sample["transaction_id"].to_pylist()) & set(reseeded["transaction_id"].to_pylist())
    assert 60 < len(shared) < 200  # two samples of 700 of 4,000 rows share about 122 rows
    days = np.unique(local_sample["tx_datetime"].to_numpy().astype("datetime64[D]"), return_counts=True)[1]
    assert len(days) == DAYS
    assert (abs(days - 140) < 50).all()


def test_the_sample_is_recorded_and_calibration_uses_all_traffic(
    spark: SparkSession, make_settings: Callable[..., Settings]
) -> None:
    from mlflow import MlflowClient

    settings = make_settings(train_trees=5, train_max_rows=600, train_seed=3, alert_budget_per_day=20.0)
    lake = Lake.of(settings)
    commit_features(lake, features(ROWS, days=DAYS))

    report = train(lake, settings, engine=SparkEngine(settings, lambda: spark))
    assert (report.rows, report.window_rows, report.seed) == (600, ROWS, 3)
    assert (report.rows, report.window_rows, report.seed) == (600, ROWS, 3)
    client = MlflowClient(settings.mlflow_uri, settings.mlflow_uri)
    run = client.get_run(client.get_model_version(settings.model_name, str(report.version)).run_id)
    assert {"rows": "600", "window_rows": str(ROWS), "seed": "3"}.items() <= run.data.params.items()

    assert report.calibration.rows == ROWS
    assert 15 < report.calibration.alerts_per_day <= 20
    assert recalibrate(lake, settings).threshold == report.calibration.threshold
    assert score_pending(lake, settings).alerts == round(report.calibration.alert_rate * ROWS)
    forest = read_champion(settings).model.serialize_bytes()
    assert train(lake, settings).rows == 600
    assert read_champion(settings).model.serialize_bytes() == forest


def test_the_engine_setting_runs_the_assets_on_spark(spark: SparkSession, lake: Lake, settings: Settings) -> None:
    overrides = {
        "home": str(settings.home),
        "lake_uri": settings.lake,
        "engine": "spark",
        "train_max_rows": "500",
        "train_trees": "3",
        "model_name": "trained_on_spark",
    }
    result = dg.materialize(
        [model, fraud_predictions_asset],
        resources={"platform": PlatformResource(overrides=overrides), "engines": EngineResource()},
        instance=dg.DagsterInstance.ephemeral(),
    )
    reported = {
        event.asset_key.to_user_string(): {name: value.value for name, value in event.materialization.metadata.items()}
        for event in result.filter_events(lambda event: event.is_step_materialization)
    }
    assert (reported["isolation_forest"]["rows"], reported["isolation_forest"]["rows_in_window"]) == (500, ROWS)
    assert reported["fraud_predictions"]["rows_added"] == ROWS
    # File names of executors contain no number.
    assert all(file.name.count("-") == 5 for file in committed_files(lake))
    assert spark.range(1).count() == 1  # a session that existed before is not stopped


def test_scoring_on_spark_works_on_an_object_store(
    spark: SparkSession, s3_settings: Settings, registry: Path, on_spark: Engine
) -> None:
    settings = s3_settings.model_copy(update={"home": registry, "train_trees": 5, "train_max_rows": 300})
    lake = Lake.of(settings)
    commit_features(lake, features(600, days=2))
    assert recalibrate(lake, settings, engine=SparkEngine(settings, lambda: spark)).rows == 600
    assert score_pending(lake, settings, on_spark).rows == 600
    assert read_row_count(lake.open(fraud_predictions)) == 600
    assert score_pending(lake, settings).rows == 0
