"""How far the history that the feature windows need reaches back."""

from __future__ import annotations

from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.settings import WindowPolicy

CLOCKS_DIFFER = timedelta(days=1)
"""A label is later than its transaction, unless clocks differ by up to this time."""


def find_history_span(times: pa.ChunkedArray, policy: WindowPolicy) -> tuple[datetime, datetime]:
    """Returns the range of `tx_datetime` that the windows of some transactions cover.

    Args:
        times: `tx_datetime` of at least one transaction, timestamp[us, UTC].
        policy: How far windows reach back.

    Returns:
        The time after which the range starts (exclusive), and its last time (inclusive).
    """
    first, last = (edge.as_py() for edge in pc.min_max(times).values())
    return first - timedelta(days=policy.history_days), last
