"""Writes messages directly to the landing tables, for tests of later stages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from fraud_assets.core.schema import HEADERS, TIME, raw_transactions
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.tables import Lake

FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def bodies(count: int, *, first_id: int = 0) -> list[bytes]:
    """Valid transactions, twenty minutes apart."""
    return [
        json.dumps(
            {
                "transaction_id": number,
                "tx_datetime": (FIRST + timedelta(minutes=20 * number)).isoformat(),
                "customer_id": number % 7,
                "terminal_id": number % 11,
                "tx_amount": 10.0 + number % 13,
            }
        ).encode()
        for number in range(first_id, first_id + count)
    ]


def land(lake: Lake, values: Sequence[bytes], *, first_offset: int = 0, partition: int = 0) -> None:
    """Appends bodies to `raw_transactions`, at offsets that start with `first_offset`."""
    count = len(values)
    rows = pa.table(
        {
            "topic": pa.repeat("transactions", count),
            "topic_id": pa.repeat("topic-id", count),
            "partition": pa.array([partition] * count, pa.int32()),
            "offset": pa.array(range(first_offset, first_offset + count), pa.int64()),
            "timestamp": pa.nulls(count, TIME),
            "key": pa.nulls(count, pa.binary()),
            "value": pa.array(values, pa.binary()),
            "headers": pa.nulls(count, HEADERS),
        }
    )
    assert append_landed(lake, raw_transactions, rows) == count
