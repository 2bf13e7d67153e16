"""Lakes with the same messages, which both engines compute."""

from __future__ import annotations

import json
import random
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from fraud_assets.core.schema import (
    HEADERS,
    MESSAGES,
    QUARANTINED_TRANSACTIONS,
    TIME,
    TRANSACTION_FEATURES,
    Table,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.engines.landing_tables import append_labels
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.tables import Lake, read
from fraud_assets.settings import Settings

START = datetime(2026, 1, 1, tzinfo=UTC)


HEADS = (None, [], [("trace", b"\x00\xff"), ('é"', b""), ("", None)])


def messages(bodies: list[bytes | None], first: int = 0, partition: int = 0, topic: str = "transactions") -> pa.Table:
    count = len(bodies)
    return pa.table(
        {
            "topic": pa.repeat(topic, count),
            "topic_id": pa.repeat("topic-id", count),
            "partition": pa.array([partition] * count, pa.int32()),
            "offset": range(first, first + count),
            "timestamp": pa.nulls(count, TIME),
            "key": pa.nulls(count, pa.binary()),
            "value": pa.array(bodies, pa.binary()),
            "headers": pa.array([HEADS[offset % len(HEADS)] for offset in range(first, first + count)], HEADERS),
        }
    ).cast(MESSAGES)


def draw_bodies(chance: random.Random, count: int, days: int, ids: int) -> list[bytes | None]:
    """Bodies with equal times, late events, repeated ids and nulls; some are no transactions."""
    bodies: list[bytes | None] = []
    for _ in range(count):
        transaction = {
            "transaction_id": chance.randrange(ids),
            "tx_datetime": (START + timedelta(minutes=chance.randrange(days * 24 * 60))).isoformat(),
            "customer_id": chance.randrange(7),
            "terminal_id": chance.choice([0, 0, 0, 1, 2, 3]),
            "tx_amount": round(chance.expovariate(0.01), 2),
        }
        bad = chance.random()
        if bad < 0.03:
            bodies.append(chance.choice([None, b"{", b"[]", b"\xff\xfe"]))
            continue
        if bad < 0.08:
            transaction[chance.choice(list(transaction))] = None
        if bad < 0.10:
            transaction["tx_amount"] = -1
        bodies.append(json.dumps(transaction).encode())
    return bodies


def labels(chance: random.Random, count: int, days: int, ids: int) -> list[bytes]:
    return [
        json.dumps(
            {
                "transaction_id": chance.randrange(ids),
                "is_fraud": chance.random() < 0.7,
                "labelled_at": (START + timedelta(minutes=chance.randrange((days + 5) * 24 * 60))).isoformat(),
            }
        ).encode()
        for _ in range(count)
    ]


def land(lake: Lake, settings: Settings, seed: int, part: int, count: int = 300, days: int = 40) -> None:
    chance = random.Random(seed * 1000 + part)
    ids = count * 4
    for partition in (0, 1):
        append_landed(lake, raw_transactions, messages(draw_bodies(chance, count, days, ids), part * count, partition))
    late = messages(list(labels(chance, count, days, ids)), part * count, topic="fraud-labels")
    append_labels(lake, settings, late)


def copy_of(lake: Lake, to: Path) -> Lake:
    shutil.copytree(lake.root, to)
    return Lake(str(to))


def content(lake: Lake, table: Table, schema: pa.Schema) -> pa.Table:
    order = [(name, "ascending") for name in ("topic", "topic_id", "partition", "offset")]
    return read(lake.open(table)).cast(schema).sort_by(order).combine_chunks()


def assert_equal(first: Lake, second: Lake) -> None:
    mine, theirs = (content(lake, transaction_features, TRANSACTION_FEATURES) for lake in (first, second))
    assert mine.num_rows == theirs.num_rows
    for name in mine.column_names:
        if pa.types.is_floating(mine[name].type):
            np.testing.assert_allclose(mine[name].to_numpy(), theirs[name].to_numpy(), rtol=0, atol=1e-9, err_msg=name)
        else:
            assert mine[name].equals(theirs[name]), name
    quarantined = (content(lake, quarantined_transactions, QUARANTINED_TRANSACTIONS) for lake in (first, second))
    assert next(quarantined).equals(next(quarantined))
