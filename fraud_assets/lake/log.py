"""Reads a table's data files and row counts from its log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from deltalake import DeltaTable


TRANSACTIONS = "app_transactions"
"""Key in the metadata of a commit: the number of application transactions in its log entry.

Without it, an entry that is cut off after a whole line would be read as a commit with fewer changes.
"""


def add_actions(handle: DeltaTable) -> pa.Table:
    """Returns the live files with their statistics, one row per file, with flat column names such as `min.offset`."""
    return pa.table(handle.get_add_actions(flatten=True))


def read_row_count(handle: DeltaTable) -> int:
    """Returns the number of rows in the handle's version, from file statistics."""
    return sum(add_actions(handle).column("num_records").to_pylist())
