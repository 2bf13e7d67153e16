"""Scores a batch on Spark: executors read feature files, score the pending rows and write data files in one pass."""

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
from fraud_assets.lake.positions import select_between
from fraud_assets.lake.scan import find_files_within

if TYPE_CHECKING:
    import treelite
    from pyspark import Broadcast
    from pyspark.sql import SparkSession

_TASK_BYTES = 8_000_000
"""Minimum bytes of feature files per task: about 80,000 rows, which take half a second to score."""
_FILE_BYTES = 100_000
"""Cost of opening a file, in bytes that are read in the same time."""
_INPUTS = pa.schema([TRANSACTION_FEATURES.field(name) for name in PREDICTION_INPUTS])
_REPORT = pa.schema(
    [
        pa.field("files", pa.list_(pa.struct(DATA_FILE))),
        pa.field("alerts", pa.int64()),
        pa.field("other_versions", pa.list_(pa.string())),
    ]
)


def score_batch(spark: SparkSession, batch: ScoringBatch, model: Broadcast[bytes]) -> ScoringResult:
    """Scores the rows of a batch and writes data files, without committing them.

    Args:
        spark: The Spark session.
        batch: The rows.
        model: The serialized treelite model.

    Returns:
        The data files, the number of alerts and the unsupported feature versions.
    """
    source, bounds = batch.pending.source, batch.bounds
    source_location, target_location = batch.lake.location(transaction_features), batch.lake.location(fraud_predictions)
    first, last = min(bounds.start.values()) + 1, max(bounds.target.values())
    # Row groups outside the bounds of all source partitions need not be read.
    where = (column("offset") >= first) & (column("offset") <= last)
    # The model cannot be pickled, so it is removed from the scorer that is sent to the tasks.
    without_model = replace(batch.scorer, model=None)  # type: ignore[arg-type]

    def score(slices: Sequence[Slice]) -> Iterator[pa.RecordBatch]:
        scorer = replace(without_model, model=_deserialize(model))
        alerts, others = 0, set[str]()

        def scored() -> Iterator[pa.RecordBatch]:
            nonlocal alerts
            for read in read_slices(source_location, slices, _INPUTS, transaction_features.partition_by, where):
                rows = pa.Table.from_batches([select_between(read, bounds.start, bounds.target)])
                others.update(find_other_versions(rows))
                if not others:
                    predictions = scorer.score(rows)
                    alerts += count_alerts(predictions)
                    yield from predictions.to_batches()

        files = list(write_data_files(target_location, fraud_predictions, scored()))
        report = {"files": [vars(file) for file in files], "alerts": alerts, "other_versions": sorted(others)}
        yield pa.RecordBatch.from_pylist([report], schema=_REPORT)

    near = set(find_files_within(source, {"offset": (first, last)}))
    slices = list_slices(source, [path for path in batch.pending.files if path in near], transaction_features)
    reports = run_tasks(spark, group_slices_by_day(spark, slices), score, _REPORT).toArrow().to_pylist()
    return ScoringResult(
        [DataFile(**file) for report in reports for file in report["files"]],
        sum(report["alerts"] for report in reports),
        frozenset(version for report in reports for version in report["other_versions"]),
    )


def group_slices_by_day(spark: SparkSession, slices: Sequence[Slice]) -> list[list[Slice]]:
    """Groups slices into tasks with about the same bytes and with adjacent days.

    A task writes a file for every day that it reads. With adjacent days, D days and T tasks make fewer than D + T
    files. A small number of rows becomes one task.
    """
    ordered = sorted(slices, key=lambda part: (str(part.partition), part.path, part.number))
    loads = [part.size // part.count + _FILE_BYTES for part in ordered]
    max_tasks = 4 * spark.sparkContext.defaultParallelism
    share = max(_TASK_BYTES, -(-sum(loads) // max_tasks))
    tasks: list[list[Slice]] = []
    reached = 0
    for part, load in zip(ordered, loads, strict=True):
        if not tasks or reached + load // 2 >= share * len(tasks):
            tasks.append([])
        tasks[-1].append(part)
        reached += load
    return tasks


@lru_cache(maxsize=1)
def _deserialize(model: Broadcast[bytes]) -> treelite.Model:
    """Deserializes the model once per Python worker, whose tasks all get the same broadcast object."""
    import treelite

    return treelite.Model.deserialize_bytes(model.value)
