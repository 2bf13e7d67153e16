"""Computes the range of history that the feature windows need."""

from __future__ import annotations

from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.settings import WindowPolicy

CLOCKS_DIFFER = timedelta(days=1)
"""Maximum difference between clocks. A label can seem to be earlier than its transaction by up to this time."""


def find_history_span(times: pa.ChunkedArray, policy: WindowPolicy) -> tuple[datetime, datetime]:
    """Returns the range of `tx_datetime` that the windows of some transactions cover.

    Args:
        times: `tx_datetime` of at least one transaction, timestamp[us, UTC].
        policy: The number of days that windows look back.

    Returns:
        The start of the range (exclusive) and its end (inclusive).
    """
    first, last = (edge.as_py() for edge in pc.min_max(times).values())
    return first - timedelta(days=policy.history_days), last
