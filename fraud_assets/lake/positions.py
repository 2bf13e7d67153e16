"""Source positions: what of a stream of messages a table already contains.

A position is (topic, topic_id, partition, offset). Each table carries the last offset per stream as a Delta
application transaction, so that data and position are one commit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from fraud_assets.core.schema import SOURCE_PARTITION_COLUMNS

FILE_TOPIC = "file:"
FILE_LABELS_TOPIC = "file-labels:"
NOTHING = -1


class SourcePartition(NamedTuple):
    """One partition of one life of a topic, or one file's content."""

    topic: str
    topic_id: str
    partition: int

    @property
    def app_id(self) -> str:
        """Its Delta application id. A file is known by its content alone, whatever its name."""
        topic = self.topic.split(":", 1)[0] if self.topic.startswith((FILE_TOPIC, FILE_LABELS_TOPIC)) else self.topic
        return f"{topic}:{self.topic_id}:{self.partition}"


Positions = Mapping[SourcePartition, int]
Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)

RETRIED_TRANSACTIONS = SourcePartition("retry:transactions", "retry", 0)
RETRIED_LABELS = SourcePartition("retry:labels", "retry", 0)
"""What is retried from quarantine. No topic of Kafka has a colon in its name."""


def committed_offset(handle: DeltaTable, stream: SourcePartition) -> int:
    """Last offset of the stream that the handle's version contains; -1 if none."""
    version = handle.transaction_version(stream.app_id)
    return NOTHING if version is None else version


def positions_of(rows: pa.Table) -> dict[SourcePartition, int]:
    """Largest offset per stream in rows that carry a position."""
    return {stream: largest for stream, (_, largest) in _spans(rows).items()}


def beyond(rows: pa.Table, handle: DeltaTable) -> pa.Table:
    """The rows that the handle's version does not contain yet."""
    return rows_after(rows, {stream: committed_offset(handle, stream) for stream in _spans(rows)})


def rows_after(rows: pa.Table, positions: Positions) -> pa.Table:
    """The rows whose offsets are beyond their stream's position; all of a stream that has none."""
    keep = None
    for stream, (smallest, _) in _spans(rows).items():
        known = positions.get(stream, NOTHING)
        if smallest > known:
            continue
        same = pc.and_(
            pc.and_(pc.equal(rows["topic"], stream.topic), pc.equal(rows["topic_id"], stream.topic_id)),
            pc.equal(rows["partition"], stream.partition),
        )
        fresh = pc.invert(pc.and_(same, pc.less_equal(rows["offset"], known)))
        keep = fresh if keep is None else pc.and_(keep, fresh)
    return rows if keep is None else rows.filter(keep)


def rows_between(rows: Rows, start: Positions, target: Positions) -> Rows:
    """Those of the rows (a table or a batch) after `start` and up to `target` of a stream in `target`."""
    outside = None
    for stream, (smallest, largest) in _spans(rows).items():
        low, high = (start[stream], target[stream]) if stream in target else (NOTHING, NOTHING)
        if low < smallest and largest <= high:
            continue
        same = pc.and_(
            pc.and_(pc.equal(rows["topic"], stream.topic), pc.equal(rows["topic_id"], stream.topic_id)),
            pc.equal(rows["partition"], stream.partition),
        )
        apart = pc.or_(pc.less_equal(rows["offset"], low), pc.greater(rows["offset"], high))
        outside = pc.and_(same, apart) if outside is None else pc.or_(outside, pc.and_(same, apart))
    return rows if outside is None else rows.filter(pc.invert(outside))


def _spans(rows: pa.Table | pa.RecordBatch) -> dict[SourcePartition, tuple[int, int]]:
    """Smallest and largest offset per stream."""
    if rows.num_rows == 0:
        return {}
    positions = pa.table({name: rows[name] for name in (*SOURCE_PARTITION_COLUMNS, "offset")})
    grouped = positions.group_by(list(SOURCE_PARTITION_COLUMNS))
    spans = grouped.aggregate([("offset", "min"), ("offset", "max")]).to_pylist()
    return {
        SourcePartition(row["topic"], row["topic_id"], row["partition"]): (row["offset_min"], row["offset_max"])
        for row in spans
    }


def digest(positions: Positions) -> str:
    """Short stable name of a set of positions, for run keys and tags."""
    text = json.dumps(sorted([stream.app_id, offset] for stream, offset in positions.items()))
    return sha256(text.encode()).hexdigest()[:16]
