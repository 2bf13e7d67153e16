"""Records which topics a landing table knows, and the log starts of their partitions at that time.

When a table is used with a topic for the first time, a commit without rows records the topic's name, and the position
before the log start of every partition. From then on, a partition without a position must start at offset 0.
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
from fraud_assets.lake.tables import Lake, open_dataset

LogStarts = Callable[[], Positions | None]
"""Returns the current log start of every partition of a topic; None from an embedded broker."""

_EMBEDDED_TOPIC_ID = re.compile(r"[0-9a-f]{32}")
"""Topic id of an embedded broker. Its topics differ from those of an external broker with the same names."""


def find_positions(
    lake: Lake, table: Table, sources: Collection[SourcePartition], log_starts: LogStarts
) -> dict[SourcePartition, int]:
    """Returns the last offset of each source partition that the table holds, -1 if none; records a new topic.

    Args:
        lake: The lake of the table.
        table: A landing table.
        sources: Partitions of one topic.
        log_starts: Called if the topic is new to the table. If it returns None, nothing is recorded.

    Raises:
        LakeError: The table cannot be read or written.
        BrokerError: Raised by `log_starts`.
    """
    handle = lake.open(table)
    for topic in {source.topic for source in sources}:
        handle = _record_topic(lake, table, handle, topic, sources, log_starts)
    return {source: committed_offset(handle, source) for source in sources}


def is_known(handle: DeltaTable, topic: str, sources: Collection[SourcePartition]) -> bool:
    """Returns whether the handle's version knows the topic: the topic is recorded, or landed before topics were.

    Args:
        handle: A landing table.
        topic: Name of the topic.
        sources: Its current partitions.
    """
    return _is_recorded(handle, topic) or _contains_topic(handle, topic, sources)


def _record_topic(
    lake: Lake,
    table: Table,
    handle: DeltaTable,
    topic: str,
    sources: Collection[SourcePartition],
    log_starts: LogStarts,
) -> DeltaTable:
    """Records the topic if the table does not know it; returns a handle whose version knows the topic."""
    known: DeltaTable | None = handle

    @retry_conflicts
    def record() -> DeltaTable:
        nonlocal known
        # After a conflict, another lander may have recorded the topic.
        handle, known = known or lake.open(table), None
        if _is_recorded(handle, topic):
            return handle
        starts = {} if _contains_topic(handle, topic, sources) else log_starts()
        if starts is None:
            return handle
        # Partitions that start at 0 need no position. Partitions with a position landed before topics were recorded.
        before = {
            source: low - 1 for source, low in starts.items() if low > 0 and committed_offset(handle, source) == NOTHING
        }
        empty = table.schema.empty_table()
        commit_append(handle, table, empty, before, {"first_sight": topic}, marks=[_mark(topic)])
        return lake.open(table)

    return record()


def _mark(topic: str) -> str:
    """Returns the Delta application id that records a topic. Application ids of positions have two colons."""
    return f"topic:{topic}"


def _is_recorded(handle: DeltaTable, topic: str) -> bool:
    return handle.transaction_version(_mark(topic)) is not None


def _contains_topic(handle: DeltaTable, topic: str, sources: Collection[SourcePartition]) -> bool:
    """Returns whether the table has a position or a row of the topic; reads file statistics first."""
    if any(committed_offset(handle, source) != NOTHING for source in sources):
        return True
    actions = add_actions(handle)
    if not actions.num_rows:
        return False
    names = ("path", "min.topic", "max.topic", "min.topic_id", "max.topic_id")
    uncertain = []
    for path, low, high, topic_id, topic_id_high in zip(*(actions[name].to_pylist() for name in names), strict=True):
        if low == high == topic and topic_id == topic_id_high and topic_id is not None:
            if not _EMBEDDED_TOPIC_ID.fullmatch(topic_id):
                return True
        # Statistics truncate long names, so a maximum that is a prefix of the topic may stand for the topic.
        elif low is None or (low <= topic and (topic <= high or topic.startswith(high))):
            uncertain.append(path)
    for path in uncertain:
        rows = open_dataset(handle, [path]).to_table(columns=["topic_id"], filter=pc.field("topic") == topic)
        if any(not _EMBEDDED_TOPIC_ID.fullmatch(topic_id) for topic_id in rows["topic_id"].unique().to_pylist()):
            return True
    return False
