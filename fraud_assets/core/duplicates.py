"""Finds transactions with a repeated id. Within the horizon, the first one that landed counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class LandedTransaction(NamedTuple):
    """A transaction id, its landing time (microseconds since 1970) and its source position."""

    transaction_id: str
    landed_us: int
    topic: str
    partition: int
    offset: int


def find_duplicates(
    known: Iterable[LandedTransaction], landed: Iterable[LandedTransaction], horizon_us: int
) -> list[str | None]:
    """Finds the rows of `landed` that repeat an id.

    Rows are compared one by one, because each is compared with the last accepted row of its id, which may be part of
    the same batch.

    Args:
        known: All earlier rows of the ids in `landed`, in landing order.
        landed: The new rows, in landing order, all after `known`.
        horizon_us: Microseconds within which a repeated id is a duplicate.

    Returns:
        For each row of `landed`, a sentence that names the first position of its id, or None if it is not a duplicate.
    """
    accepted = {row.transaction_id: row for row in known}
    details: list[str | None] = []
    for row in landed:
        before = accepted.get(row.transaction_id)
        if before is not None and row.landed_us - before.landed_us <= horizon_us:
            details.append(f"its transaction_id landed first as {before.topic} {before.partition}/{before.offset}")
        else:
            accepted[row.transaction_id] = row
            details.append(None)
    return details
