"""Work on the rows of a training window, done by Spark's executors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from fraud_assets.core.schema import TRANSACTION_FEATURES, transaction_features
from fraud_assets.engines.base import RowFunction, TrainingWindow
from fraud_assets.engines.spark.tables import group_slices, run_tasks
from fraud_assets.lake.data_files import Slice, list_slices, read_slices

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def map_window(
    spark: SparkSession, window: TrainingWindow, columns: Sequence[str], work: RowFunction, schema: pa.Schema
) -> pa.Table:
    """Does the work on each part of the window, a task each; see `Engine.map_window`."""
    location, where = window.lake.location(transaction_features), window.where
    wanted = pa.schema([TRANSACTION_FEATURES.field(name) for name in columns])

    def run(slices: Sequence[Slice]) -> Iterator[pa.RecordBatch]:
        return work(read_slices(location, slices, wanted, transaction_features.partition_by, where))

    slices = list_slices(window.handle, window.files, transaction_features)
    return run_tasks(spark, group_slices(spark, slices), run, schema).toArrow().cast(schema)
