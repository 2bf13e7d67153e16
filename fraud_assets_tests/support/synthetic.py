"""Synthetic feature rows and labels, for tests of the stages after features."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from fraud_assets.core.schema import (
    DERIVED_FEATURES,
    FEATURE_VERSION,
    FRAUD_LABELS,
    TRANSACTION_FEATURES,
    fraud_labels,
    transaction_features,
)
from fraud_assets.lake.append import append_landed, commit_append
from fraud_assets.lake.positions import find_largest_positions
from fraud_assets.lake.tables import Lake

FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def features(rows: int, *, days: float = 10.0, first_offset: int = 0, partitions: int = 2, seed: int = 0) -> pa.Table:
    """Random rows of TRANSACTION_FEATURES, spread evenly over the days; transaction ids are `t0`, `t1`, …"""
    rng = np.random.default_rng(seed + first_offset)
    numbers = np.arange(first_offset, first_offset + rows)
    times = [FIRST + timedelta(days=days) * (k / rows) for k in range(rows)]
    columns = {
        "transaction_id": [f"t{n}" for n in numbers],
        "tx_datetime": times,
        "customer_id": [f"c{n % 50}" for n in numbers],
        "terminal_id": [f"m{n % 80}" for n in numbers],
        "tx_amount": rng.gamma(2.0, 40.0, rows),
        **{
            name: rng.integers(0, 9, rows) if TRANSACTION_FEATURES.field(name).type == pa.int64() else rng.random(rows)
            for name in DERIVED_FEATURES
        },
        "feature_version": [FEATURE_VERSION] * rows,
        "topic": ["transactions"] * rows,
        "topic_id": ["topic-id"] * rows,
        "partition": numbers % partitions,
        "offset": numbers // partitions,
        "ingested_at": [FIRST + timedelta(days=20, milliseconds=int(n)) for n in numbers],
        "tx_date": [time.date() for time in times],
    }
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in TRANSACTION_FEATURES},
                    schema=TRANSACTION_FEATURES)  # fmt: skip


def commit_features(lake: Lake, rows: pa.Table) -> None:
    """Appends rows to `transaction_features` and commits their offsets."""
    commit_append(lake.open(transaction_features), transaction_features, rows, find_largest_positions(rows))


def commit_labels(lake: Lake, labels: Sequence[tuple[str, bool, datetime]], first_offset: int = 0) -> None:
    """Appends labels (transaction_id, is_fraud, labelled_at) to `fraud_labels`."""
    count = len(labels)
    ids, frauds, times = zip(*labels, strict=True)
    rows = pa.table(
        {
            "topic": pa.repeat("fraud-labels", count),
            "topic_id": pa.repeat("topic-id", count),
            "partition": pa.array([0] * count, pa.int32()),
            "offset": pa.array(range(first_offset, first_offset + count), pa.int64()),
            "transaction_id": pa.array(ids),
            "is_fraud": pa.array(frauds),
            "labelled_at": pa.array(times, FRAUD_LABELS.field("labelled_at").type),
            "value": pa.nulls(count, pa.binary()),
        }
    )
    append_landed(lake, fraud_labels, rows)
