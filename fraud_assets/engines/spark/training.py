"""Work on the rows of a training window, done by Spark's executors where the rows are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from fraud_assets.core.schema import TRANSACTION_FEATURES, transaction_features
from fraud_assets.engines.spark.session import spark_faults
from fraud_assets.engines.spark.tables import each, shared_out
from fraud_assets.lake.data_files import Slice, place_of, read_slices, slices_of
from fraud_assets.stages.training_window import Gather, Window, Work

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def gather_on(session: Callable[[], SparkSession]) -> Gather:
    """The engine for `train` and `recalibrate`; the session is asked for when there is work.

    Raises (when it is called):
        EngineError: a job failed.
    """

    def gather(window: Window, columns: Sequence[str], work: Work, schema: pa.Schema) -> pa.Table:
        place, where = place_of(window.lake, transaction_features), window.where
        wanted = pa.schema([TRANSACTION_FEATURES.field(name) for name in columns])

        def run(slices: Sequence[Slice]) -> Iterator[pa.RecordBatch]:
            return work(read_slices(place, slices, wanted, transaction_features.partition_by, where))

        spark = session()
        slices = slices_of(window.handle, window.files, transaction_features)
        with spark_faults(window.settings):
            return each(spark, shared_out(spark, slices), run, schema).toArrow().cast(schema)

    return gather
