"""Scoring and the training sample on Spark equal those in the process: bits, rows and messages, exactly once."""

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
from fraud_assets.stages.scoring import score_pending
from fraud_assets.stages.training import read_training_rows, recalibrate, train
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


def files(lake: Lake) -> set[Path]:
    """The table's data files, committed or not."""
    return set(Path(lake.uri(fraud_predictions)).rglob("part-*.parquet"))


def committed(lake: Lake) -> set[Path]:
    return {Path(uri) for uri in lake.open(fraud_predictions).file_uris()}


def test_the_same_bits_and_the_same_report(
    spark: SparkSession, lake: Lake, settings: Settings, on_spark: Engine, tmp_path: Path
) -> None:
    """In batches that cut files and streams in the middle, next to a lake that this process scores."""
    other = Lake(str(tmp_path / "other"))
    commit_features(other, read(lake.open(transaction_features)))
    recalibrate(other, settings)
    bounded = settings.model_copy(update={"batch_rows": 1_500, "spark_batch_rows": 1_500})
    with logged() as lines:
        report = score_pending(lake, bounded, SparkEngine(bounded, lambda: spark))
    expected = score_pending(other, bounded)
    assert (report.rows, report.batches, report.alerts) == (ROWS, 3, expected.alerts)
    assert lines[0].startswith("scored 1,500 of 4,000 ")
    assert predictions(lake).equals(predictions(other))
    assert files(lake) == committed(lake)
    facts = [commit["model_version"] for commit in lake.open(fraud_predictions).history() if "model_version" in commit]
    assert facts == ["1"] * 3
    # Either engine continues from there.
    commit_features(lake, features(30, first_offset=2 * ROWS, partitions=3))
    assert score_pending(lake, settings).rows == 30
    # So many in one file as are scored by several threads, where Spark lets a task have them.
    many = features(9_000, first_offset=3 * ROWS, partitions=1, days=0.9)
    commit_features(lake, many)
    assert score_pending(lake, settings, on_spark).rows == 9_000
    found = predictions(lake)
    assert len(set(found["transaction_id"].to_pylist())) == found.num_rows == ROWS + 9_030
    of_many = found.filter(pc.is_in(found["transaction_id"], many["transaction_id"])).sort_by("offset")
    assert (of_many["score"].to_numpy() == score(read_champion(settings).model, many)).all()


def test_nothing_pending_and_no_champion_start_no_session(lake: Lake, settings: Settings) -> None:
    def never() -> SparkSession:
        raise AssertionError("a session was asked for")

    with pytest.raises(NoChampionError):
        score_pending(lake, settings.model_copy(update={"model_name": "never_trained"}), SparkEngine(settings, never))
    score_pending(lake, settings)
    assert score_pending(lake, settings, SparkEngine(settings, never)).rows == 0


def test_a_run_on_spark_and_one_in_the_process_score_each_row_once(
    lake: Lake, settings: Settings, on_spark: Engine
) -> None:
    """Both have computed the first batch before either commits it."""
    both, totals = Barrier(2), []

    def race(engine: Engine) -> None:
        first, score = True, engine.score

        def together(batch: ScoringBatch) -> ScoringResult:
            nonlocal first
            scored = score(batch)
            if first:
                both.wait(60)
                first = False
            return scored

        engine.score = together
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


def test_a_conflict_removes_the_files_and_starts_over(
    lake: Lake, settings: Settings, on_spark: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = on_spark.score

    def overtaken(batch: ScoringBatch) -> ScoringResult:
        scored = compute(batch)
        assert score_pending(lake, settings).rows == ROWS  # the other run takes it all
        return scored

    monkeypatch.setattr(on_spark, "score", overtaken)
    with logged() as lines:
        assert score_pending(lake, settings, on_spark).rows == 0
    assert "starts over" in lines[-1]
    assert read_row_count(lake.open(fraud_predictions)) == ROWS
    assert files(lake) == committed(lake)


def test_a_run_killed_between_its_files_and_its_commit_is_completed_by_the_next(
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
    orphans = files(lake)
    assert orphans
    assert read_row_count(lake.open(fraud_predictions)) == 0
    assert score_pending(lake, settings, on_spark).rows == ROWS
    assert (
        len(set(predictions(lake)["transaction_id"].to_pylist()))
        == read_row_count(lake.open(fraud_predictions))
        == ROWS
    )
    assert not orphans & committed(lake)
    lake.open(fraud_predictions).vacuum(0, enforce_retention_duration=False, dry_run=False, full=True)
    assert files(lake) == committed(lake)


def test_features_of_another_version_stop_the_chain_with_the_same_sentence(
    lake: Lake, settings: Settings, on_spark: Engine
) -> None:
    rows = features(10, first_offset=2 * ROWS)
    index = rows.column_names.index("feature_version")
    commit_features(lake, rows.set_column(index, rows.schema.field(index), pa.array(["0", "00"] * 5)))
    said = []
    for engine in (on_spark, LocalEngine(settings)):
        with pytest.raises(
            LakeError, match=r"feature version 0, 00, but the champion supports only version 1"
        ) as refused:
            score_pending(lake, settings, engine)
        said.append(str(refused.value))
    assert said[0] == said[1]
    assert files(lake) == set()


def test_few_rows_are_one_task_and_a_backlog_makes_few_files(spark: SparkSession) -> None:
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


def test_the_sample_is_the_same_on_both_engines_and_whatever_the_files(
    spark: SparkSession, lake: Lake, settings: Settings, tmp_path: Path
) -> None:
    few = settings.model_copy(update={"train_max_rows": 700})
    here, there = (sample(lake, few, engine) for engine in (LocalEngine(few), SparkEngine(few, lambda: spark)))
    assert here.num_rows == 700
    assert here.equals(there)
    lake.open(transaction_features).optimize.compact()
    assert sample(lake, few, SparkEngine(few, lambda: spark)).equals(here)
    reseeded = sample(lake, few.model_copy(update={"train_seed": 7}))
    shared = set(here["transaction_id"].to_pylist()) & set(reseeded["transaction_id"].to_pylist())
    assert 60 < len(shared) < 200  # of 4,000 two samples of 700 have about 122 in common
    days = np.unique(here["tx_datetime"].to_numpy().astype("datetime64[D]"), return_counts=True)[1]
    assert len(days) == DAYS
    assert (abs(days - 140) < 50).all()


def test_the_sample_is_recorded_and_the_threshold_is_that_of_all_the_traffic(
    spark: SparkSession, make_settings: Callable[..., Settings]
) -> None:
    from mlflow import MlflowClient

    settings = make_settings(train_trees=5, train_max_rows=600, train_seed=3, alert_budget_per_day=20.0)
    lake = Lake.of(settings)
    commit_features(lake, features(ROWS, days=DAYS))

    report = train(lake, settings, engine=SparkEngine(settings, lambda: spark))
    assert (report.rows, report.window_rows, report.seed) == (600, ROWS, 3)
    assert {"rows": 600, "window_rows": ROWS, "seed": 3}.items() <= report.metadata().items()
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


def test_the_assets_run_on_spark_by_the_setting(spark: SparkSession, lake: Lake, settings: Settings) -> None:
    overrides = {
        "home": str(settings.home),
        "lake_uri": settings.lake,
        "engine": "spark",
        "train_max_rows": "500",
        "train_trees": "3",
        "model_name": "trained_on_spark",
    }
    done = dg.materialize(
        [model, fraud_predictions_asset],
        resources={"platform": PlatformResource(overrides=overrides), "engines": EngineResource()},
        instance=dg.DagsterInstance.ephemeral(),
    )
    told = {
        event.asset_key.to_user_string(): {name: value.value for name, value in event.materialization.metadata.items()}
        for event in done.filter_events(lambda event: event.is_step_materialization)
    }
    assert (told["isolation_forest"]["rows"], told["isolation_forest"]["window_rows"]) == (500, ROWS)
    assert (told["fraud_predictions"]["rows"], told["fraud_predictions"]["batches"]) == (ROWS, 1)
    # Executors name their files without a number.
    assert all(file.name.count("-") == 5 for file in committed(lake))
    assert spark.range(1).count() == 1  # a session that was there before is not stopped


def test_the_lake_may_be_on_an_object_store(
    spark: SparkSession, s3_settings: Settings, registry: Path, on_spark: Engine
) -> None:
    settings = s3_settings.model_copy(update={"home": registry, "train_trees": 5, "train_max_rows": 300})
    lake = Lake.of(settings)
    commit_features(lake, features(600, days=2))
    assert recalibrate(lake, settings, engine=SparkEngine(settings, lambda: spark)).rows == 600
    assert score_pending(lake, settings, on_spark).rows == 600
    assert read_row_count(lake.open(fraud_predictions)) == 600
    assert score_pending(lake, settings).rows == 0
