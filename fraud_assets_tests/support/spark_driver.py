"""A driver on a Spark cluster: copies `raw_transactions` to a second lake, once per source position.

Run as `python spark_driver.py COPY [--gate FOLDER] [--late FOLDER] [--die]`, with the platform's settings.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

from fraud_assets.core.schema import raw_transactions
from fraud_assets.engines.spark.session import convert_spark_errors, spark_session
from fraud_assets.engines.spark.tables import scan, write
from fraud_assets.errors import FraudAssetsError
from fraud_assets.lake.append import commit_append
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.positions import SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import load_settings

PARTITION = SourcePartition("transactions", "topic-id", 0)
PATIENCE = 60
HALFWAY = 5

Batches = Iterator[pa.RecordBatch]


def appears(file: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{file} did not appear")
        time.sleep(0.02)


def through(gate: Path) -> Callable[[Batches], Batches]:
    """Each task writes its first rows, creates a file with the name of its worker and waits for `gate/open`."""

    def run(batches: Batches) -> Batches:
        for number, batch in enumerate(batches):
            if number == HALFWAY:
                # The executor's folder is `worker-n/app-…/<executor>`.
                (gate / Path.cwd().parents[1].name).touch()
                appears(gate / "open")
            yield batch

    return run


def late(folder: Path) -> Callable[[Batches], Batches]:
    """The first attempt at one task waits until another attempt has read all rows of the task."""

    def run(batches: Batches) -> Batches:
        from pyspark import TaskContext

        task = TaskContext.get()
        assert task is not None
        for number, batch in enumerate(batches):
            if number == HALFWAY and task.partitionId() == 0 and task.attemptNumber() == 0:
                appears(folder / "overtaken")
            yield batch
        if task.partitionId() == 0 and task.attemptNumber() > 0:
            (folder / "overtaken").touch()

    return run


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("copy")
    parser.add_argument("--gate", type=Path)
    parser.add_argument("--late", type=Path)
    parser.add_argument("--die", action="store_true")
    asked = parser.parse_args()
    settings = load_settings()
    source, target = Lake.of(settings), Lake(asked.copy)
    handle = target.open(raw_transactions)
    origin = source.open(raw_transactions)
    new = ds.field("offset") > committed_offset(handle, PARTITION)
    with spark_session(settings) as spark, convert_spark_errors(settings):
        files = add_actions(origin)["path"].to_pylist()
        frame = scan(spark, source, raw_transactions, origin, files, where=new)
        for folder, way in ((asked.gate, through), (asked.late, late)):
            if folder is not None:
                frame = frame.mapInArrow(way(folder), frame.schema)
        written = write(frame, target, raw_transactions)
        if asked.die:
            os.kill(os.getpid(), signal.SIGKILL)
        commit_append(handle, raw_transactions, written, {PARTITION: committed_offset(origin, PARTITION)})


if __name__ == "__main__":
    try:
        main()
    except FraudAssetsError as error:
        sys.exit(str(error))
