"""A batch of predictions on Spark: executors score the pending rows of their files and write them, in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa
from pyarrow.dataset import field as column

from fraud_assets.core.schema import TRANSACTION_FEATURES, fraud_predictions, transaction_features
from fraud_assets.core.scoring import PREDICTION_INPUTS
from fraud_assets.engines.base import ScoringBatch, ScoringResult
from fraud_assets.engines.scoring import count_alerts, find_other_versions
from fraud_assets.engines.spark.tables import DATA_FILE, run_tasks
from fraud_assets.lake.data_files import DataFile, Slice, list_slices, read_slices, write_data_files
from fraud_assets.lake.positions import rows_between
from fraud_assets.lake.scan import files_within

if TYPE_CHECKING:
    import treelite
    from pyspark import Broadcast
    from pyspark.sql import SparkSession

_TASK_BYTES = 8_000_000
"""Of feature files for a task: about 80,000 rows, half a second of scoring."""
_FILE_BYTES = 100_000
"""What opening a file costs beside its bytes, in bytes."""
_INPUTS = pa.schema([TRANSACTION_FEATURES.field(name) for name in PREDICTION_INPUTS])
_REPORT = pa.schema(
    [
        pa.field("files", pa.list_(pa.struct(DATA_FILE))),
        pa.field("alerts", pa.int64()),
        pa.field("other_versions", pa.list_(pa.string())),
    ]
)


def score_batch(spark: SparkSession, batch: ScoringBatch, model: Broadcast[bytes]) -> ScoringResult:
    """Scores the rows of a batch with the model and writes data files."""
    source, bounds = batch.work.source, batch.bounds
    source_place, target_place = batch.lake.location(transaction_features), batch.lake.location(fraud_predictions)
    first, last = min(bounds.start.values()) + 1, max(bounds.target.values())
    # Row groups beyond all streams' bounds need not be read.
    where = (column("offset") >= first) & (column("offset") <= last)
    # The model is not for pickling, and so is no part of what travels with the task.
    without_model = replace(batch.scorer, model=None)  # type: ignore[arg-type]

    def score(slices: Sequence[Slice]) -> Iterator[pa.RecordBatch]:
        scorer = replace(without_model, model=_deserialised(model))
        alerts, others = 0, set[str]()

        def scored() -> Iterator[pa.RecordBatch]:
            nonlocal alerts
            for read in read_slices(source_place, slices, _INPUTS, transaction_features.partition_by, where):
                rows = pa.Table.from_batches([rows_between(read, bounds.start, bounds.target)])
                others.update(find_other_versions(rows))
                if not others:
                    predictions = scorer.score(rows)
                    alerts += count_alerts(predictions)
                    yield from predictions.to_batches()

        files = list(write_data_files(target_place, fraud_predictions, scored()))
        report = {"files": [vars(file) for file in files], "alerts": alerts, "other_versions": sorted(others)}
        yield pa.RecordBatch.from_pylist([report], schema=_REPORT)

    near = set(files_within(source, {"offset": (first, last)}))
    slices = list_slices(source, [path for path in batch.work.files if path in near], transaction_features)
    reports = run_tasks(spark, group_slices_by_day(spark, slices), score, _REPORT).toArrow().to_pylist()
    return ScoringResult(
        [DataFile(**file) for report in reports for file in report["files"]],
        sum(report["alerts"] for report in reports),
        frozenset(version for report in reports for version in report["other_versions"]),
    )


def group_slices_by_day(spark: SparkSession, slices: Sequence[Slice]) -> list[list[Slice]]:
    """The slices as the work of tasks, each with about the same bytes and with neighbouring days.

    A task writes a file for every day that it meets, so that of D days and T tasks come fewer than D + T files, and
    few rows are the work of one task.
    """
    ordered = sorted(slices, key=lambda part: (str(part.partition), part.path, part.number))
    loads = [part.size // part.count + _FILE_BYTES for part in ordered]
    most = 4 * spark.sparkContext.defaultParallelism
    share = max(_TASK_BYTES, -(-sum(loads) // most))
    tasks: list[list[Slice]] = []
    reached = 0
    for part, load in zip(ordered, loads, strict=True):
        if not tasks or reached + load // 2 >= share * len(tasks):
            tasks.append([])
        tasks[-1].append(part)
        reached += load
    return tasks


@lru_cache(maxsize=1)
def _deserialised(model: Broadcast[bytes]) -> treelite.Model:
    """The model, once for all tasks of a Python worker: it meets the same broadcast object in each."""
    import treelite

    return treelite.Model.deserialize_bytes(model.value)
