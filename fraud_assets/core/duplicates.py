"""Which transactions repeat an id: the first that landed counts, for as long as the horizon lasts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class LandedTransaction(NamedTuple):
    """A transaction id and where and when (microseconds since 1970) it landed."""

    transaction_id: str
    landed_us: int
    topic: str
    partition: int
    offset: int


def find_duplicates(
    known: Iterable[LandedTransaction], landed: Iterable[LandedTransaction], horizon_us: int
) -> list[str | None]:
    """For each of `landed` the sentence that says where its id landed first, None where it is the first itself.

    Both are in landing order, `known` before `landed`; all rows of an id must be there. One by one, for a row is
    judged by the last one accepted before it, which may be of this very batch.
    """
    accepted = {row.transaction_id: row for row in known}
    verdicts: list[str | None] = []
    for row in landed:
        before = accepted.get(row.transaction_id)
        if before is not None and row.landed_us - before.landed_us <= horizon_us:
            verdicts.append(f"its transaction_id landed first as {before.topic} {before.partition}/{before.offset}")
        else:
            accepted[row.transaction_id] = row
            verdicts.append(None)
    return verdicts
