"""DuckDB in the process against Spark local[2], stage by stage: python benchmarks/spark.py [--quick | --full]

Both engines work off the same landed messages, in batches of FRAUD_BATCH_ROWS and on Spark also in one batch of all;
Spark's start is measured apart. 1 million rows by default, 100,000 with --quick, 1 and 10 million with --full.
"""

import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import _lakes as lakes
import numpy as np
import pyarrow as pa

from fraud_assets.core.schema import fraud_predictions, transaction_features
from fraud_assets.engines.spark.features import features_on
from fraud_assets.engines.spark.scoring import scoring_on
from fraud_assets.engines.spark.session import spark_session
from fraud_assets.lake.tables import Lake, row_count
from fraud_assets.pipeline.features import process_landed
from fraud_assets.pipeline.scoring import score_pending
from fraud_assets.pipeline.training import train
from fraud_assets.settings import load_settings

DAYS = 60
ROWS_A_DAY_OF_A_CUSTOMER = 2
CHUNK = 500_000


@dataclass(frozen=True)
class Engine:
    """How an engine takes its batches, and what it took."""

    name: str
    batch_rows: int
    on_spark: bool


def fill(lake: Lake, rows: int) -> None:
    """Lands a stream of so many transactions in event order, with a label for each, known seven days later."""
    chance = np.random.default_rng(7)
    customers = max(rows // (DAYS * ROWS_A_DAY_OF_A_CUSTOMER), 10)
    begin, day = 1_767_225_600_000_000, 86_400_000_000
    for first in range(0, rows, CHUNK):
        count = min(CHUNK, rows - first)
        ids = np.arange(first, first + count)
        times = begin + ids * (DAYS * day) // rows
        who, where = chance.integers(0, customers, count), chance.integers(0, customers * 2, count)
        amounts = chance.exponential(50, count).round(2)
        stamps = pa.array(times, pa.timestamp("us")).cast(pa.string()).to_pylist()
        bodies = [
            f'{{"transaction_id":{n},"tx_datetime":"{stamp}Z","customer_id":{c},"terminal_id":{t},"tx_amount":{a}}}'
            for n, stamp, c, t, a in zip(ids, stamps, who, where, amounts, strict=True)
        ]
        lakes.land(
            lake,
            "transactions",
            pa.array([body.replace(" ", "T", 1).encode() for body in bodies], pa.binary()),
            pa.array(ids).cast(pa.string()),
            pa.array(chance.random(count) < 0.01),
            pa.array(times + 7 * day, pa.timestamp("us", "UTC")),
            first,
        )
        lakes.say(f"landed {first + count:,} of {rows:,}")


def measure(rows: int, folder: Path) -> None:
    """Prints a table of both engines for so many rows."""
    base = load_settings(home=folder / "home", mlflow_tracking_uri="", spark_master="local[2]")
    fill(Lake.of(base), rows)
    engines = [
        Engine("DuckDB", base.batch_rows, on_spark=False),
        Engine("Spark", base.batch_rows, on_spark=True),
        *([Engine("Spark, one batch", rows, on_spark=True)] if rows > base.batch_rows else []),
    ]
    # Trained once: both engines score with the same model.
    results: dict[str, tuple[float, float]] = {}
    began = time.perf_counter()
    with spark_session(base) as spark:
        start = time.perf_counter() - began
        warm = load_settings(home=folder / "warm", mlflow_tracking_uri="")
        fill(Lake.of(warm), 2_000)
        warming = lakes.seconds(lambda: process_landed(Lake.of(warm), warm, compute=features_on(lambda: spark)))
        for engine in engines:
            home = folder / engine.name.replace(" ", "-").replace(",", "")
            shutil.copytree(base.home_path / "lake", home / "lake")
            settings = load_settings(home=home, mlflow_tracking_uri=base.mlflow_uri, batch_rows=engine.batch_rows)
            lake = Lake.of(settings)
            compute = features_on(lambda: spark) if engine.on_spark else None
            features = lakes.seconds(lambda: process_landed(lake, settings, lakes.say, compute))  # noqa: B023
            assert row_count(lake.open(transaction_features)) == rows
            train(lake, settings)
            score = scoring_on(lambda: spark) if engine.on_spark else None
            scores = lakes.seconds(lambda: score_pending(lake, settings, lakes.say, score))  # noqa: B023
            assert row_count(lake.open(fraud_predictions)) == rows
            results[engine.name] = (features, scores)
            shutil.rmtree(home)
    print(
        f"{rows:,} transactions, {DAYS} days; Spark's session up after {start:.1f} s, first batch {warming:.1f} s more"
    )
    print(f"  {'engine':<18}{'features, s':>12}{'rows/s':>10}{'share':>7}{'scores, s':>11}{'rows/s':>10}{'share':>7}")
    first = results[engines[0].name]
    for name, (features, scores) in results.items():
        print(
            f"  {name:<18}{features:>12.1f}{rows / features:>10,.0f}{first[0] / features:>7.2f}"
            f"{scores:>11.1f}{rows / scores:>10,.0f}{first[1] / scores:>7.2f}"
        )


def main() -> None:
    sizes = [100_000] if "--quick" in sys.argv else [1_000_000, 10_000_000] if "--full" in sys.argv else [1_000_000]
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            measure(rows, Path(folder))


if __name__ == "__main__":
    main()
