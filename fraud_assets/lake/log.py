"""What the log of a table says of its data files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from deltalake import DeltaTable


def add_actions(handle: DeltaTable) -> pa.Table:
    """The table's live files with their statistics, a row each, flattened as `min.offset`."""
    return pa.table(handle.get_add_actions(flatten=True))


def row_count(handle: DeltaTable) -> int:
    """Rows of the handle's version, from file statistics."""
    return sum(add_actions(handle).column("num_records").to_pylist())
