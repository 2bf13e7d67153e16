"""Messages and labels that go to quarantine."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from fraud_assets.core.schema import (
    raw_transactions,
)
from fraud_assets_tests.support.landed import bodies


def other_names(count: int, first_id: int) -> list[bytes]:
    """Transactions whose field for the amount is named `amt`."""
    return [body.replace(b"tx_amount", b"amt") for body in bodies(count, first_id=first_id)]


def label_rows(values: list[bytes]) -> pa.Table:
    """Labels as landing reads them from the topic."""
    count = len(values)
    columns: dict[str, Any] = {
        "topic": ["fraud-labels"] * count,
        "topic_id": ["topic-id"] * count,
        "partition": [0] * count,
        "offset": list(range(count)),
        "timestamp": [None] * count,
        "key": [None] * count,
        "value": values,
        "headers": [None] * count,
    }
    return pa.table({name: pa.array(column, raw_transactions.schema.field(name).type)
                     for name, column in columns.items()})  # fmt: skip
