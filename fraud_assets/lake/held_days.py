"""Describes the days that a table contains, for a range that matches no rows."""

from __future__ import annotations

from datetime import datetime

import pyarrow.compute as pc

from fraud_assets.core.schema import Table
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.tables import Lake


def describe_held_days(lake: Lake, table: Table) -> str:
    """Returns a description such as `transaction_features holds 1,200 rows from 2026-01-01 to 2026-01-10 (tx_date)`.

    Only the log is read.

    Raises:
        LakeError: The table cannot be read.
    """
    actions = add_actions(lake.open(table)) if lake.exists(table) else None
    rows = 0 if actions is None else pc.sum(actions["num_records"]).as_py() or 0
    if actions is None or not rows:
        return f"{table.name} holds no rows"
    if table.partition_by is None:
        return f"{table.name} holds {rows:,} rows"
    days = pc.min_max(actions[f"partition.{table.partition_by}"]).as_py()
    return f"{table.name} holds {rows:,} rows from {days['min']} to {days['max']} ({table.partition_by})"


def describe_empty_range(lake: Lake, table: Table, start: datetime, end: datetime, doing: str) -> str:
    """Returns the message for a range [start, end) of `tx_datetime` without rows.

    Args:
        lake: The lake.
        table: The table without matching rows.
        start: Start of the range, inclusive.
        end: End of the range, exclusive.
        doing: The purpose, such as "to recompute".

    Raises:
        LakeError: The table cannot be read.
    """
    days = f"from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} (exclusive)"
    return f"There is nothing {doing} {days}: {describe_held_days(lake, table)}."
