"""Which topics a landing table knows, and where their partitions began when it first saw them.

At first sight of a topic the table records, in a commit without rows, that it knows the name and the position before
the log start of every partition. From then on a partition without a position is expected to start at offset 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

import pyarrow.compute as pc
from deltalake import DeltaTable

from fraud_assets.core.schema import Table
from fraud_assets.lake.append import commit_append, retry_conflicts
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.positions import NOTHING, Positions, SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake, dataset_of

LogStarts = Callable[[], Positions | None]
"""Gives the log start of every partition of a topic at this moment; None from an embedded broker."""

_EMBEDDED_TOPIC_ID = re.compile(r"[0-9a-f]{32}")
"""Topic id of an embedded broker. Its topics are other topics than those of a real broker with the same names."""


def positions_in(
    lake: Lake, table: Table, streams: Collection[SourcePartition], log_starts: LogStarts
) -> dict[SourcePartition, int]:
    """Gives the last offset of each stream that the table holds; -1 if none. Records a topic that is new to the table.

    Args:
        lake: the lake of the table.
        table: a landing table.
        streams: partitions of one topic.
        log_starts: called if the topic is new to the table. If it gives None, nothing is recorded.

    Raises:
        LakeError: the table cannot be read or written.
        BrokerError: raised by `log_starts`.
    """
    handle = lake.open(table)
    for topic in {stream.topic for stream in streams}:
        handle = _recorded(lake, table, handle, topic, streams, log_starts)
    return {stream: committed_offset(handle, stream) for stream in streams}


def is_known(handle: DeltaTable, topic: str, streams: Collection[SourcePartition]) -> bool:
    """Whether the handle's version knows the topic: it is recorded, or was landed before topics were recorded.

    Args:
        handle: a landing table.
        topic: name of the topic.
        streams: its present partitions.
    """
    return _is_recorded(handle, topic) or _holds(handle, topic, streams)


def _recorded(
    lake: Lake,
    table: Table,
    handle: DeltaTable,
    topic: str,
    streams: Collection[SourcePartition],
    log_starts: LogStarts,
) -> DeltaTable:
    """A handle whose version has the topic on record."""
    known: DeltaTable | None = handle

    @retry_conflicts
    def record() -> DeltaTable:
        nonlocal known
        # After a conflict, another lander may have recorded the topic.
        handle, known = known or lake.open(table), None
        if _is_recorded(handle, topic):
            return handle
        starts = {} if _holds(handle, topic, streams) else log_starts()
        if starts is None:
            return handle
        # Partitions that start at 0 need no position. Those with one were landed before topics were recorded.
        before = {
            stream: low - 1 for stream, low in starts.items() if low > 0 and committed_offset(handle, stream) == NOTHING
        }
        empty = table.schema.empty_table()
        commit_append(handle, table, empty, before, {"first_sight": topic}, marks=[_mark(topic)])
        return lake.open(table)

    return record()


def _mark(topic: str) -> str:
    """Delta application id that says that the table knows the topic. Those of positions have two colons."""
    return f"topic:{topic}"


def _is_recorded(handle: DeltaTable, topic: str) -> bool:
    return handle.transaction_version(_mark(topic)) is not None


def _holds(handle: DeltaTable, topic: str, streams: Collection[SourcePartition]) -> bool:
    """Whether the table has a position or a row of the topic, from file statistics where they are enough."""
    if any(committed_offset(handle, stream) != NOTHING for stream in streams):
        return True
    actions = add_actions(handle)
    if not actions.num_rows:
        return False
    names = ("path", "min.topic", "max.topic", "min.topic_id", "max.topic_id")
    unsure = []
    for path, low, high, topic_id, topic_id_high in zip(*(actions[name].to_pylist() for name in names), strict=True):
        if low == high == topic and topic_id == topic_id_high and topic_id is not None:
            if not _EMBEDDED_TOPIC_ID.fullmatch(topic_id):
                return True
        # Statistics of long names are cut short: a maximum that begins like the topic may stand for it.
        elif low is None or (low <= topic and (topic <= high or topic.startswith(high))):
            unsure.append(path)
    for path in unsure:
        rows = dataset_of(handle, [path]).to_table(columns=["topic_id"], filter=pc.field("topic") == topic)
        if any(not _EMBEDDED_TOPIC_ID.fullmatch(topic_id) for topic_id in rows["topic_id"].unique().to_pylist()):
            return True
    return False
