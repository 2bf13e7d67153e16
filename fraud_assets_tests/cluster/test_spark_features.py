"""Spark and DuckDB compute the same features, to 1e-9, and the same quarantine, exactly once."""

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


def test_spark_equals_duckdb_after_a_kill_between_its_two_commits(
    spark: SparkSession, lake: Lake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"batch_rows": 400, "spark_batch_rows": 400})
    land(lake, settings, seed=1, part=0)  # 600 messages: the killed batch ends in the middle of them
    from fraud_assets.stages import features as feature_stage

    commit = feature_stage.commit_append

    def fail_at_features(handle: object, table: Table, *rest: object) -> None:
        if table is transaction_features:
            raise LakeError("killed here")
        commit(handle, table, *rest)

    monkeypatch.setattr(feature_stage, "commit_append", fail_at_features)
    with pytest.raises(LakeError):
        process_landed(lake, settings, SparkEngine(settings, lambda: spark))
    monkeypatch.setattr(feature_stage, "commit_append", commit)
    land(lake, settings, seed=1, part=3, count=100)  # not part of the killed batch
    duckdb_lake = copy_of(lake, tmp_path / "other")
    spark_report = process_landed(lake, settings, SparkEngine(settings, lambda: spark))
    duckdb_report = process_landed(duckdb_lake, settings)
    assert (spark_report.landed, spark_report.features, spark_report.reasons) == (
        duckdb_report.landed,
        duckdb_report.features,
        duckdb_report.reasons,
    )
    assert spark_report.landed == spark_report.features + spark_report.quarantined + spark_report.duplicates == 800
    assert spark_report.batches == duckdb_report.batches == 2
    assert {"duplicate", "tombstone", "negative_amount", "wrong_type"} <= set(spark_report.reasons)
    assert_equal(lake, duckdb_lake)
    assert reconcile(lake, settings) == reconcile(duckdb_lake, settings)


def test_a_race_between_the_engines_counts_no_row_twice(
    spark: SparkSession, lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(lake, settings, seed=4, part=0)
    competing_reports = []
    write = on_spark.write

    def write_while_another_runs(*arguments: object) -> object:
        files = write(*arguments)
        if not competing_reports:
            competing_reports.append(process_landed(lake, settings))
        return files

    monkeypatch.setattr(on_spark, "write", write_while_another_runs)
    report = process_landed(lake, settings, SparkEngine(settings, lambda: spark))
    assert competing_reports[0].landed == 600
    assert report.landed == 0
    assert read_row_count(lake.open(transaction_features)) + read_row_count(lake.open(quarantined_transactions)) == 600


def test_spark_and_duckdb_recompute_a_range_to_the_same_features(
    spark: SparkSession, lake: Lake, settings: Settings, tmp_path: Path
) -> None:
    land(lake, settings, seed=5, part=0)
    process_landed(lake, settings)
    rng = random.Random(5)
    append_labels(lake, settings, messages(list(labels(rng, 300, 40, 1200)), 10_000, topic="fraud-labels"))
    duckdb_lake = copy_of(lake, tmp_path / "other")
    before = content(lake, transaction_features, TRANSACTION_FEATURES)
    start, end = START + timedelta(days=20, hours=7), START + timedelta(days=30, hours=3)
    rows = recompute(lake, settings, start, end, engine=SparkEngine(settings, lambda: spark))
    assert rows == recompute(duckdb_lake, settings, start, end)
    assert not content(lake, transaction_features, TRANSACTION_FEATURES).equals(before)
    assert_equal(lake, duckdb_lake)
    # Positions did not move: no row is pending again.
    assert process_landed(lake, settings).landed == 0


def test_a_run_without_pending_rows_starts_no_session(lake: Lake, settings: Settings) -> None:
    def must_not_start() -> SparkSession:
        raise AssertionError("started")

    assert process_landed(lake, settings, SparkEngine(settings, must_not_start)).landed == 0
