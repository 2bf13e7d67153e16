"""The handbook's data set on Spark, and day by day to its end."""

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


def test_on_spark(handbook: tuple[Settings, Lake], book: pa.Table, spark: SparkSession, tmp_path: Path) -> None:
    """Of all rows the same as by the other engine, to 1e-9, in batches that are each other's history."""
    settings, lake = handbook
    other = Lake(str(tmp_path / "lake"))
    for table in (raw_transactions, fraud_labels):
        shutil.copytree(lake.uri(table), other.uri(table))
    process_landed(other, settings, SparkEngine(settings, lambda: spark))
    columns = ["transaction_id", *DERIVED_FEATURES]
    mine, theirs = (
        open_dataset(each.open(transaction_features)).to_table(columns=columns).sort_by("transaction_id")
        for each in (other, lake)
    )
    assert mine["transaction_id"].equals(theirs["transaction_id"])
    for name in DERIVED_FEATURES:
        difference = pc.subtract(mine[name].cast(pa.float64()), theirs[name].cast(pa.float64()))
        assert pc.max(pc.abs(difference)).as_py() < 1e-9, name
    assert_every_cell(mine, book)


def test_every_day_by_day(handbook: tuple[Settings, Lake], book: pa.Table) -> None:
    """Each day is a batch of its own, with only the history and the labels of the days before it."""
    assert_day_by_day(handbook, book, (LAST_DAY - FIRST_DAY).days + 1)
