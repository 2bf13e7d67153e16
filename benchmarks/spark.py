"""Compares DuckDB in the process with Spark local[2] by stage: python benchmarks/spark.py [--quick | --full]

For landing, both landers read the same Apache Kafka topic with 4 partitions up to its end. For features and scores,
both engines process the same landed messages, in batches of FRAUD_BATCH_ROWS and FRAUD_SPARK_BATCH_ROWS. The start of
Spark is measured separately. The number of rows is 1 million, 100,000 with --quick, and both 1 and 10 million with
--full.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import _lakes as lakes
import numpy as np
import pyarrow as pa

from fraud_assets.core.schema import fraud_predictions, raw_transactions, transaction_features
from fraud_assets.engines.choice import choose_engine
from fraud_assets.engines.spark.session import spark_session
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import load_settings
from fraud_assets.stages.features import process_landed
from fraud_assets.stages.scoring import score_pending
from fraud_assets.stages.training import train

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
from fraud_assets.testing.apache_kafka import apache_kafka, describe_obstacle

DAYS = 60
ROWS_A_DAY_OF_A_CUSTOMER = 2
CHUNK = 500_000
PARTITIONS = 4
FEW = 2_000
"""Rows of each engine's first batch, which is measured separately."""


@dataclass(frozen=True)
class Chunk:
    """Transactions in event order: numbers, times in microseconds since 1970, bodies, and which are fraud."""

    ids: np.ndarray
    times: np.ndarray
    bodies: list[bytes]
    frauds: np.ndarray


def stream(rows: int) -> Iterator[Chunk]:
    """Yields a stream of `rows` transactions; the number of days does not depend on `rows`."""
    chance = np.random.default_rng(7)
    customers = max(rows // (DAYS * ROWS_A_DAY_OF_A_CUSTOMER), 10)
    begin, day = 1_767_225_600_000_000, 86_400_000_000
    for first in range(0, rows, CHUNK):
        count = min(CHUNK, rows - first)
        ids = np.arange(first, first + count)
        times = begin + ids * (DAYS * day // rows)
        who, where = chance.integers(0, customers, count), chance.integers(0, customers * 2, count)
        amounts = chance.exponential(50, count).round(2)
        stamps = pa.array(times, pa.timestamp("us")).cast(pa.string()).to_pylist()
        bodies = [
            f'{{"transaction_id":{n},"tx_datetime":"{stamp}Z","customer_id":{c},"terminal_id":{t},"tx_amount":{a}}}'
            for n, stamp, c, t, a in zip(ids, stamps, who, where, amounts, strict=True)
        ]
        encoded = [body.replace(" ", "T", 1).encode() for body in bodies]
        yield Chunk(ids, times, encoded, chance.random(count) < 0.01)


def fill(lake: Lake, rows: int) -> None:
    """Lands a stream with a label for each transaction, known seven days later."""
    for chunk in stream(rows):
        lakes.land(
            lake,
            "transactions",
            pa.array(chunk.bodies, pa.binary()),
            pa.array(chunk.ids).cast(pa.string()),
            pa.array(chunk.frauds),
            pa.array(chunk.times + lakes.FEEDBACK_DELAY_US, pa.timestamp("us", "UTC")),
            int(chunk.ids[0]),
        )
        lakes.log_progress(f"landed {chunk.ids[-1] + 1:,} of {rows:,}")


def produce(bootstrap: str, topic: str, rows: int) -> None:
    """Produces a stream to a new topic."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    settings = {"bootstrap.servers": bootstrap, "linger.ms": 50, "batch.size": 1_000_000, "compression.type": "lz4"}
    topics = [NewTopic(topic, PARTITIONS), NewTopic(f"{topic}-labels", 1)]
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in admin.create_topics(topics).values():
        future.result(30)
    producer = Producer({**settings, "queue.buffering.max.messages": 2 * CHUNK})
    for chunk in stream(rows):
        for number, body in zip(chunk.ids.tolist(), chunk.bodies, strict=True):
            producer.produce(topic, body, b"%d" % number)
        producer.flush()
    lakes.log_progress(f"produced {rows:,}")


def measure(rows: int, folder: Path) -> None:
    """Prints the time that both engines take for a number of rows."""
    base = load_settings(home=folder / "home", mlflow_tracking_uri="", spark_master="local[2]")
    began = time.perf_counter()
    with spark_session(base) as spark:
        print(f"{rows:,} transactions, {DAYS} days; Spark's session started after {time.perf_counter() - began:.1f} s")
        if reason := describe_obstacle():
            print(f"  landing is skipped: {reason}")
        else:
            with apache_kafka(folder / "kafka", jvm=("-Xmx1g",)) as cluster:
                measure_landing(rows, folder, cluster.bootstrap, lambda: spark)
            shutil.rmtree(folder / "kafka")
        fill(Lake.of(base), rows)
        for name, kind in (("DuckDB", "duckdb"), ("Spark", "spark")):
            warm = load_settings(home=folder / f"warm-{name}", mlflow_tracking_uri="", engine=kind)
            engine = choose_engine(warm, lambda: spark)
            fill(Lake.of(warm), FEW)
            warming = lakes.seconds(lambda: process_landed(Lake.of(warm), warm, engine))  # noqa: B023
            print(f"  the first batch of features on {name}, of {FEW:,} rows, took {warming:.1f} s")
        features, scores = {}, {}
        for name in ("DuckDB", "Spark"):
            home = folder / "engine"
            shutil.copytree(base.home_path / "lake", home / "lake")
            # The model is trained once, so that both engines score with the same model.
            settings = load_settings(home=home, mlflow_tracking_uri=base.mlflow_uri, engine=name.lower())
            lake, engine = Lake.of(settings), choose_engine(settings, lambda: spark)
            features[name] = lakes.seconds(lambda: process_landed(lake, settings, engine))  # noqa: B023
            assert read_row_count(lake.open(transaction_features)) == rows
            train(lake, settings)
            scores[name] = lakes.seconds(lambda: score_pending(lake, settings, engine))  # noqa: B023
            assert read_row_count(lake.open(fraud_predictions)) == rows
            shutil.rmtree(home)
    tell("features", rows, features)
    tell("scores", rows, scores)


def measure_landing(rows: int, folder: Path, bootstrap: str, session: Callable[[], SparkSession]) -> None:
    """Prints the time that both landers take for the same topic, and that of Spark's first few messages."""

    def took(name: str, topic: str, count: int) -> float:
        settings = load_settings(
            home=folder / "landing",
            kafka_bootstrap_servers=bootstrap,
            transactions_topic=topic,
            labels_topic=f"{topic}-labels",
            engine="spark" if name == "Spark" else "duckdb",
        )
        lake = Lake.of(settings)
        taken = lakes.seconds(lambda: choose_engine(settings, session).land_topics(lake))
        assert read_row_count(lake.open(raw_transactions)) == count, name
        shutil.rmtree(settings.home_path)
        return taken

    for topic, count in (("few", FEW), ("all", rows)):
        produce(bootstrap, topic, count)
    first = took("Spark", "few", FEW)
    print(f"  the first {FEW:,} messages on Spark took {first:.1f} s")
    tell("landing", rows, {name: took(name, "all", rows) for name in ("Python", "Spark")})


def tell(what: str, rows: int, taken: dict[str, float]) -> None:
    """Prints a table; `share` is the rate divided by the first engine's rate."""
    print(f"  {what:<18}{'s':>9}{'rows/s':>11}{'share':>7}")
    first = next(iter(taken.values()))
    for name, seconds in taken.items():
        print(f"  {name:<18}{seconds:>9.1f}{rows / seconds:>11,.0f}{first / seconds:>7.2f}", flush=True)


def main() -> None:
    sizes = [100_000] if "--quick" in sys.argv else [1_000_000, 10_000_000] if "--full" in sys.argv else [1_000_000]
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            measure(rows, Path(folder))


if __name__ == "__main__":
    main()
