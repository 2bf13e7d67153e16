"""Measures a micro-batch of 1,000 messages on growing lakes: python benchmarks/micro_batch.py [--quick | --full]

The daily traffic is the same over longer and longer periods. The lakes hold 100,000, 1 million and 3 million
transactions; with --full 10 million instead of 3 million, with --quick at most 1 million. The benchmark fills the lakes
by commits, not by the pipeline.
"""

import json
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import _lakes as lakes
import numpy as np
import pyarrow as pa

from fraud_assets.core.schema import (
    FEATURE_VERSION,
    FRAUD_LABELS,
    RAW_TRANSACTIONS,
    TRANSACTION_FEATURES,
    fraud_labels,
    raw_transactions,
    transaction_features,
)
from fraud_assets.lake.append import append_landed, commit_append
from fraud_assets.lake.positions import SourcePartition
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.maintenance import maintain_lake
from fraud_assets.settings import load_settings
from fraud_assets.stages.features import process_landed

PER_DAY, CUSTOMERS, TERMINALS, BATCH = 9_600, 5_000, 10_000, 1_000
DAYS_PER_COMMIT = 50
US = timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def fill(lake: Lake, rows: int) -> None:
    """Commits features, messages and labels of a history that ends yesterday, as from a topic with one partition."""
    days = -(-rows // PER_DAY)
    first = datetime.now(UTC).date() - timedelta(days=days)
    generator = np.random.default_rng(0)
    for start in range(0, rows, PER_DAY * DAYS_PER_COMMIT):
        count = min(PER_DAY * DAYS_PER_COMMIT, rows - start)
        offsets = np.arange(start, start + count)
        moments = (datetime(first.year, first.month, first.day, tzinfo=UTC) - EPOCH) // US + offsets * (
            86_400_000_000 // PER_DAY
        )
        ids = pa.array(offsets).cast(pa.string())
        shared = {
            "transaction_id": ids,
            "customer_id": pa.array(generator.integers(0, CUSTOMERS, count)).cast(pa.string()),
            "terminal_id": pa.array(generator.integers(0, TERMINALS, count)).cast(pa.string()),
            "tx_amount": pa.array(generator.gamma(2.0, 30.0, count)),
            "tx_datetime": times(moments),
            "feature_version": pa.repeat(FEATURE_VERSION, count),
            "topic_id": pa.repeat("benchmark", count),
            "partition": pa.repeat(pa.scalar(0, pa.int32()), count),
            "offset": pa.array(offsets),
            "is_fraud": pa.array(generator.random(count) < 0.01),
            "value": pa.array([b'{"transaction_id": %d, "filled": true}' % number for number in offsets]),
        }
        for table, schema, topic, late in (
            (raw_transactions, RAW_TRANSACTIONS, "transactions", 1_000_000),
            (fraud_labels, FRAUD_LABELS, "fraud-labels", 7 * 86_400_000_000),
            (transaction_features, TRANSACTION_FEATURES, "transactions", 1_000_000),
        ):
            landed = times(moments + late)
            columns = {
                **shared,
                "topic": pa.repeat(topic, count),
                "labelled_at": landed,
                "ingested_at": landed,
                "ingest_date": landed.cast(pa.date32()),
                "tx_date": shared["tx_datetime"].cast(pa.date32()),
            }
            for field in schema:
                if field.name not in columns:
                    whole = generator.integers(0, 9, count)
                    columns[field.name] = (
                        pa.nulls(count, field.type) if field.nullable else pa.array(whole).cast(field.type)
                    )
            rows_of_table = pa.table({field.name: columns[field.name].cast(field.type) for field in schema})
            reached = {SourcePartition(topic, "benchmark", 0): int(offsets[-1])}
            commit_append(lake.open(table), table, rows_of_table, reached)


def times(microseconds: np.ndarray) -> pa.Array:
    return pa.array(microseconds).cast(pa.timestamp("us", tz="UTC"))


def land_batch(lake: Lake, offset: int) -> None:
    """Lands BATCH new messages with the current time, for random cards and terminals."""
    generator = np.random.default_rng(offset)
    now = datetime.now(UTC)
    bodies = [
        json.dumps(
            {
                "transaction_id": offset + number,
                "tx_datetime": (now + number * timedelta(milliseconds=1)).isoformat(),
                "customer_id": int(generator.integers(CUSTOMERS)),
                "terminal_id": int(generator.integers(TERMINALS)),
                "tx_amount": 10.0 + number % 90,
            }
        ).encode()
        for number in range(BATCH)
    ]
    columns = {
        "topic": pa.repeat("transactions", BATCH),
        "topic_id": pa.repeat("benchmark", BATCH),
        "partition": pa.repeat(pa.scalar(0, pa.int32()), BATCH),
        "offset": pa.array(range(offset, offset + BATCH), pa.int64()),
        "value": pa.array(bodies, pa.binary()),
    }
    missing = {
        f.name: pa.nulls(BATCH, f.type) for f in RAW_TRANSACTIONS if f.name not in columns and "ingest" not in f.name
    }
    append_landed(lake, raw_transactions, pa.table({**columns, **missing}))


def main() -> None:
    sizes = [100_000, 1_000_000]
    if "--quick" not in sys.argv:
        sizes.append(10_000_000 if "--full" in sys.argv else 3_000_000)
    with tempfile.TemporaryDirectory() as folder:
        homes = {f"{size:,}": load_settings(home=Path(folder) / str(size)) for size in sizes}
        reached = {}
        used: dict[str, list[float]] = {name: [] for name in homes}
        for size, (name, settings) in zip(sizes, homes.items(), strict=True):
            began = time.perf_counter()
            lake = Lake.of(settings)
            fill(lake, size)
            maintain_lake(lake, settings)
            reached[name] = size
            lakes.log_progress(f"{name} transactions of history: lake filled in {time.perf_counter() - began:.0f} s")

        def micro_batch(name: str) -> float:
            settings = homes[name]
            lake = Lake.of(settings)
            land_batch(lake, reached[name])
            reached[name] += BATCH
            cpu = time.process_time()
            spent = lakes.seconds(lambda: process_landed(lake, settings))
            used[name].append(time.process_time() - cpu)
            return spent

        for name in homes:
            micro_batch(name)  # The first call imports libraries and compiles the features to SQL.
        used = {name: [] for name in homes}
        actions = {name: (lambda name=name: micro_batch(name)) for name in homes}
        wall = lakes.alternately(5 if "--quick" in sys.argv else 9, **actions)
    cpu = {name: sorted(values)[len(values) // 2] for name, values in used.items()}
    print(f"The feature stage for {BATCH:,} new messages, by transactions of history ({PER_DAY:,} a day)")
    names = list(homes)
    for less, more in pairwise(names):
        ratio = wall[more] / wall[less]
        aim = "" if less != "1,000,000" else f" ({lakes.describe_aim(ratio, 1.5, least=False)} at 10 million)"
        print(f"  {more} take {ratio:.2f} times as long as {less}{aim}; by CPU time {cpu[more] / cpu[less]:.2f}.")
    print("  On this machine now: " + ", ".join(f"{name}: {wall[name]:.2f} s" for name in names) + ".")


if __name__ == "__main__":
    main()
