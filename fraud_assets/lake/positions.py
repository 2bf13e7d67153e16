"""Source positions: which messages of a source partition a table already contains.

A position is (topic, topic_id, partition, offset). Each table stores the last offset per source partition as a Delta
application transaction, so that rows and positions are one commit.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from fraud_assets.core.schema import SOURCE_PARTITION_COLUMNS

FILE_TOPIC = "file:"
FILE_LABELS_TOPIC = "file-labels:"
NOTHING = -1
AFTER_ALL_OFFSETS = 2**62
"""Larger than every offset: as a committed offset, nothing of the partition is pending."""
"""Committed offset of a source partition without rows in the table."""


class SourcePartition(NamedTuple):
    """A partition of a topic with a certain id, or the content of one file."""

    topic: str
    topic_id: str
    partition: int

    @property
    def app_id(self) -> str:
        """The Delta application id. A file is identified by its content only, not by its name."""
        topic = self.topic.split(":", 1)[0] if self.topic.startswith((FILE_TOPIC, FILE_LABELS_TOPIC)) else self.topic
        return f"{topic}:{self.topic_id}:{self.partition}"


Positions = Mapping[SourcePartition, int]
TableOrBatch = TypeVar("TableOrBatch", pa.Table, pa.RecordBatch)

RETRIED_TRANSACTIONS = SourcePartition("retry:transactions", "retry", 0)
RETRIED_LABELS = SourcePartition("retry:labels", "retry", 0)
"""Messages that are retried from quarantine. A Kafka topic cannot have a colon in its name."""


def committed_offset(handle: DeltaTable, source: SourcePartition) -> int:
    """Returns the last offset of the source partition that the handle's version contains; -1 if none."""
    version = handle.transaction_version(source.app_id)
    return NOTHING if version is None else version


def find_largest_positions(rows: pa.Table) -> dict[SourcePartition, int]:
    """Returns the largest offset per source partition in rows with positions."""
    return {source: largest for source, (_, largest) in _spans(rows).items()}


def select_uncommitted(rows: pa.Table, handle: DeltaTable) -> pa.Table:
    """Returns the rows that the handle's version does not contain yet."""
    return select_after(rows, {source: committed_offset(handle, source) for source in _spans(rows)})


def select_after(rows: pa.Table, positions: Positions) -> pa.Table:
    """Returns the rows after the position of their source partition, and all rows of partitions without a position."""
    keep = None
    for source, (smallest, _) in _spans(rows).items():
        known = positions.get(source, NOTHING)
        if smallest > known:
            continue
        same = _is_of(rows, source)
        is_new = pc.invert(pc.and_(same, pc.less_equal(rows["offset"], known)))
        keep = is_new if keep is None else pc.and_(keep, is_new)
    return rows if keep is None else rows.filter(keep)


def select_between(rows: TableOrBatch, start: Positions, target: Positions) -> TableOrBatch:
    """Returns the rows after `start` and up to `target`, of the source partitions in `target`."""
    outside = None
    for source, (smallest, largest) in _spans(rows).items():
        low, high = (start[source], target[source]) if source in target else (NOTHING, NOTHING)
        if low < smallest and largest <= high:
            continue
        same = _is_of(rows, source)
        beyond = pc.or_(pc.less_equal(rows["offset"], low), pc.greater(rows["offset"], high))
        outside = pc.and_(same, beyond) if outside is None else pc.or_(outside, pc.and_(same, beyond))
    return rows if outside is None else rows.filter(pc.invert(outside))


def _is_of(rows: pa.Table | pa.RecordBatch, source: SourcePartition) -> pa.ChunkedArray | pa.Array:
    """Returns, for each row, whether it belongs to the source partition."""
    same_topic = pc.and_(pc.equal(rows["topic"], source.topic), pc.equal(rows["topic_id"], source.topic_id))
    return pc.and_(same_topic, pc.equal(rows["partition"], source.partition))


def _spans(rows: pa.Table | pa.RecordBatch) -> dict[SourcePartition, tuple[int, int]]:
    """Returns the smallest and the largest offset per source partition."""
    if rows.num_rows == 0:
        return {}
    positions = pa.table({name: rows[name] for name in (*SOURCE_PARTITION_COLUMNS, "offset")})
    grouped = positions.group_by(list(SOURCE_PARTITION_COLUMNS))
    spans = grouped.aggregate([("offset", "min"), ("offset", "max")]).to_pylist()
    return {
        SourcePartition(row["topic"], row["topic_id"], row["partition"]): (row["offset_min"], row["offset_max"])
        for row in spans
    }


def build_partition_arrays(partitions: Collection[SourcePartition]) -> dict[str, pa.Array]:
    """Returns source partitions as Arrow columns `topic`, `topic_id` (strings) and `partition` (int32)."""
    return {
        "topic": pa.array([partition.topic for partition in partitions], pa.string()),
        "topic_id": pa.array([partition.topic_id for partition in partitions], pa.string()),
        "partition": pa.array([partition.partition for partition in partitions], pa.int32()),
    }


def digest(positions: Positions) -> str:
    """Returns a short stable name of a set of positions, for run keys and tags: 16 hexadecimal digits."""
    text = json.dumps(sorted([source.app_id, offset] for source, offset in positions.items()))
    return sha256(text.encode()).hexdigest()[:16]
