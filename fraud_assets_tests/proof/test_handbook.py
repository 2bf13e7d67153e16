"""The features of the handbook's data set, computed on Spark and computed day by day."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from fraud_assets.core.schema import DERIVED_FEATURES, fraud_labels, raw_transactions, transaction_features
from fraud_assets.engines.spark.engine import SparkEngine
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed
from fraud_assets_tests.support.handbook import FIRST_DAY, LAST_DAY, assert_day_by_day, assert_every_cell

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("handbook")]


def test_features_on_spark_equal_the_handbook(
    handbook: tuple[Settings, Lake], book: pa.Table, spark: SparkSession, tmp_path: Path
) -> None:
    """Spark also computes the same features as DuckDB, to 1e-9, in several batches that use each other as history."""
    settings, lake = handbook
    spark_lake = Lake(str(tmp_path / "lake"))
    for table in (raw_transactions, fraud_labels):
        shutil.copytree(lake.uri(table), spark_lake.uri(table))
    process_landed(spark_lake, settings, SparkEngine(settings, lambda: spark))
    columns = ["transaction_id", *DERIVED_FEATURES]
    spark_features, duckdb_features = (
        open_dataset(computed.open(transaction_features)).to_table(columns=columns).sort_by("transaction_id")
        for computed in (spark_lake, lake)
    )
    assert spark_features["transaction_id"].equals(duckdb_features["transaction_id"])
    for name in DERIVED_FEATURES:
        difference = pc.subtract(spark_features[name].cast(pa.float64()), duckdb_features[name].cast(pa.float64()))
        assert pc.max(pc.abs(difference)).as_py() < 1e-9, name
    assert_every_cell(spark_features, book)


def test_all_days_computed_day_by_day_equal_the_handbook(handbook: tuple[Settings, Lake], book: pa.Table) -> None:
    """Each day is a separate batch, with only the history and the labels that are known by then."""
    assert_day_by_day(handbook, book, (LAST_DAY - FIRST_DAY).days + 1)
