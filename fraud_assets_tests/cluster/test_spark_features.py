"""Features on Spark equal those of DuckDB to 1e-9, with the same quarantine, exactly once."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fraud_assets.core.schema import (
    TRANSACTION_FEATURES,
    Table,
    quarantined_transactions,
    transaction_features,
)
from fraud_assets.engines.landing_tables import append_labels
from fraud_assets.engines.spark import features as on_spark
from fraud_assets.engines.spark.engine import SparkEngine
from fraud_assets.errors import LakeError
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.reconciliation import reconcile
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed, recompute
from fraud_assets_tests.support.engine_comparison import START, assert_equal, content, copy_of, labels, land, messages

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.xdist_group("spark")


def test_spark_gives_what_duckdb_gives_and_finishes_what_was_killed_between_its_two_commits(
    spark: SparkSession, lake: Lake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"batch_rows": 400, "spark_batch_rows": 400})
    land(lake, settings, seed=1, part=0)  # 600 messages: the killed batch is cut in their middle
    from fraud_assets.stages import features as pipeline

    commit = pipeline.commit_append

    def killed(handle: object, table: Table, *rest: object) -> None:
        if table is transaction_features:
            raise LakeError("killed here")
        commit(handle, table, *rest)

    monkeypatch.setattr(pipeline, "commit_append", killed)
    with pytest.raises(LakeError):
        process_landed(lake, settings, SparkEngine(settings, lambda: spark))
    monkeypatch.setattr(pipeline, "commit_append", commit)
    land(lake, settings, seed=1, part=3, count=100)  # what landed meanwhile is no part of the begun batch
    other = copy_of(lake, tmp_path / "other")
    mine = process_landed(lake, settings, SparkEngine(settings, lambda: spark))
    theirs = process_landed(other, settings)
    assert (mine.landed, mine.features, mine.reasons) == (theirs.landed, theirs.features, theirs.reasons)
    assert mine.landed == mine.features + mine.quarantined + mine.duplicates == 800
    assert mine.batches == theirs.batches == 2
    assert {"duplicate", "tombstone", "negative_amount", "wrong_type"} <= set(mine.reasons)
    assert_equal(lake, other)
    assert reconcile(lake, settings) == reconcile(other, settings)


def test_a_race_of_both_engines_counts_nothing_twice(
    spark: SparkSession, lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(lake, settings, seed=4, part=0)
    raced = []
    write = on_spark.write

    def write_while_another_runs(*arguments: object) -> object:
        files = write(*arguments)
        if not raced:
            raced.append(process_landed(lake, settings))
        return files

    monkeypatch.setattr(on_spark, "write", write_while_another_runs)
    report = process_landed(lake, settings, SparkEngine(settings, lambda: spark))
    assert raced[0].landed == 600
    assert report.landed == 0
    assert read_row_count(lake.open(transaction_features)) + read_row_count(lake.open(quarantined_transactions)) == 600


def test_a_range_is_recomputed_as_duckdb_recomputes_it(
    spark: SparkSession, lake: Lake, settings: Settings, tmp_path: Path
) -> None:
    land(lake, settings, seed=5, part=0)
    process_landed(lake, settings)
    chance = random.Random(5)
    append_labels(lake, settings, messages(list(labels(chance, 300, 40, 1200)), 10_000, topic="fraud-labels"))
    other = copy_of(lake, tmp_path / "other")
    before = content(lake, transaction_features, TRANSACTION_FEATURES)
    start, end = START + timedelta(days=20, hours=7), START + timedelta(days=30, hours=3)
    rows = recompute(lake, settings, start, end, engine=SparkEngine(settings, lambda: spark))
    assert rows == recompute(other, settings, start, end)
    assert not content(lake, transaction_features, TRANSACTION_FEATURES).equals(before)
    assert_equal(lake, other)
    # Positions did not move: nothing is taken for new.
    assert process_landed(lake, settings).landed == 0


def test_nothing_new_starts_no_session(lake: Lake, settings: Settings) -> None:
    def never() -> SparkSession:
        raise AssertionError("started")

    assert process_landed(lake, settings, SparkEngine(settings, never)).landed == 0
