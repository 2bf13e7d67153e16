"""Processes the rows of a training window on Spark's executors."""

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
    spark: SparkSession, window: TrainingWindow, columns: Sequence[str], function: RowFunction, schema: pa.Schema
) -> pa.Table:
    """Runs a function on each part of the window, each in a separate task. See `Engine.map_window`."""
    location, where = window.lake.location(transaction_features), window.where
    inputs = pa.schema([TRANSACTION_FEATURES.field(name) for name in columns])

    def run(slices: Sequence[Slice]) -> Iterator[pa.RecordBatch]:
        return function(read_slices(location, slices, inputs, transaction_features.partition_by, where))

    slices = list_slices(window.handle, window.files, transaction_features)
    return run_tasks(spark, group_slices(spark, slices), run, schema).toArrow().cast(schema)
