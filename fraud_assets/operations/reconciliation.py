"""The books: every landed message is in exactly one of features and quarantine."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from fraud_assets.core.schema import (
    TIME,
    Table,
    fraud_labels,
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.lake.batches import find_pending
from fraud_assets.lake.duckdb_session import connect
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.position_sql import same_source_partition, source_partition_columns
from fraud_assets.lake.positions import NOTHING, Positions, SourcePartition, committed_offset, partition_arrays
from fraud_assets.lake.scan import register_view
from fraud_assets.lake.tables import Lake, read
from fraud_assets.operations.retention import retained_from
from fraud_assets.settings import Settings

_DOWNSTREAM_FIRST = (
    fraud_predictions,
    transaction_features,
    quarantined_transactions,
    raw_transactions,
    fraud_labels,
)
"""The order in which the books pin versions, so that each table holds all that the one before it was made from.

A batch of features is two commits, quarantine first. Quarantine is pinned after features and may be ahead of it; what
lies beyond the positions of features still counts as waiting.
"""

Handles = Mapping[str, DeltaTable]


def pin_versions(lake: Lake) -> Handles:
    """One version of every counted table that exists, by name, such that the books balance. Raises `LakeError`."""
    found = {table.name: lake.find(table) for table in _DOWNSTREAM_FIRST}
    return {name: handle for name, handle in found.items() if handle is not None}


def compared_from(handles: Handles) -> date | None:
    """First day of ingest that the books count: from then on retention has removed nothing. None: all are counted."""
    floors = [retained_from(handle) for handle in handles.values()]
    return max((floor for floor in floors if floor is not None), default=None)


def reconcile(lake: Lake, settings: Settings) -> dict[str, int]:
    """`totals` of the versions of now. Raises `LakeError`."""
    return totals(pin_versions(lake), settings)


def totals(handles: Handles, settings: Settings) -> dict[str, int]:
    """Rows of each table, and what waits, all from one set of pinned versions.

    `landed` = `features` + `quarantined` + `duplicates` + `waiting`, and `features` = `scored` + `unscored`, whatever
    other processes commit meanwhile. Where retention removed rows, only messages ingested from `compared_from` on are
    counted. Counts come from file statistics, those of quarantine from its reasons (bad labels are counted apart).

    Args:
        handles: what `pinned` gave.
        settings: of the session that counts.

    Raises:
        LakeError: a file cannot be read.
    """
    since = compared_from(handles)
    reasons = _reasons(handles, since, settings)
    labels = sum(count for reason, count in reasons.items() if reason.startswith("label_"))
    duplicates = reasons.get("duplicate", 0)
    return {
        "landed": _rows(handles, raw_transactions, since, settings),
        "features": _rows(handles, transaction_features, since, settings),
        "quarantined": sum(reasons.values()) - duplicates - labels,
        "duplicates": duplicates,
        "waiting": _beyond(handles, raw_transactions, transaction_features, settings),
        # Some of `quarantined`, and no bad data.
        "tombstones": reasons.get("tombstone", 0),
        "labels": _rows(handles, fraud_labels, since, settings),
        "quarantined_labels": labels,
        "scored": _rows(handles, fraud_predictions, since, settings),
        "unscored": _beyond(handles, transaction_features, fraud_predictions, settings),
    }


def _reasons(handles: Handles, since: date | None, settings: Settings) -> dict[str, int]:
    """Rows of quarantine by reason: labels, and of the transactions those that features has taken too."""
    quarantine = handles.get(quarantined_transactions.name)
    if quarantine is None:
        return {}
    taken = handles.get(transaction_features.name)
    with connect(settings) as connection:
        register_view(connection, "quarantine", quarantine)
        recent = f"where {_since(since)}" if since else ""
        counted = connection.sql(
            f"""select {source_partition_columns()}, reason, count(*), max("offset")
            from quarantine {recent} group by all"""
        ).fetchall()
        reasons: dict[str, int] = {}
        reached: dict[SourcePartition, int] = {}
        for topic, topic_id, partition, reason, count, last in counted:
            reasons[reason] = reasons.get(reason, 0) + count
            if not reason.startswith("label_"):
                stream = SourcePartition(topic, topic_id, partition)
                reached[stream] = max(last, reached.get(stream, NOTHING))
        ahead = _ahead(reached, taken)
        if not ahead:
            return reasons
        # A batch is between its two commits.
        connection.register("ahead", _positions(ahead))
        waiting = connection.sql(
            f"""select reason, count(*) from (select * from quarantine {recent}) q join ahead
            on {same_source_partition("q", "ahead")}
            where q."offset" > ahead."offset" and not starts_with(reason, 'label_') group by 1"""
        ).fetchall()
    for reason, count in waiting:
        reasons[reason] -= count
    return reasons


def _ahead(reached: Positions, taken: DeltaTable | None) -> dict[SourcePartition, int]:
    """Positions that `taken` has stored, of the streams of which it has not stored all."""
    known = {stream: NOTHING if taken is None else committed_offset(taken, stream) for stream in reached}
    return {stream: offset for stream, offset in known.items() if offset < reached[stream]}


def _positions(positions: Positions) -> pa.Table:
    return pa.table({**partition_arrays(positions), "offset": pa.array(positions.values(), pa.int64())})


def _beyond(handles: Handles, source: Table, target: Table, settings: Settings) -> int:
    """Rows of the source that the target has not taken."""
    if source.name not in handles:
        return 0
    taken = handles.get(target.name)
    return find_pending(
        handles[source.name], lambda stream: NOTHING if taken is None else committed_offset(taken, stream), settings
    ).rows


def count_alerts(lake: Lake, last: timedelta | None = None) -> int:
    """Predictions at or above their threshold; with `last` those of the newest stretch of `tx_datetime` alone."""
    scored = read(lake.open(fraud_predictions), ["tx_datetime"], pc.field("is_alert"))
    times = scored["tx_datetime"]
    if last is None or not len(times):
        return len(times)
    since = pc.max(times).as_py() - last
    return pc.sum(pc.greater(times, pa.scalar(since, times.type))).as_py()


def _rows(handles: Handles, table: Table, since: date | None, settings: Settings) -> int:
    """Rows ingested from a day on; only files that hold both older and younger ones are read."""
    handle = handles.get(table.name)
    if handle is None:
        return 0
    actions = add_actions(handle)
    if not actions.num_rows:
        return 0
    if since is None:
        return pc.sum(actions["num_records"]).as_py()
    midnight = pa.scalar(datetime(since.year, since.month, since.day, tzinfo=UTC), TIME)
    # A file without statistics is read.
    young = pc.fill_null(pc.greater_equal(actions["min.ingested_at"].cast(TIME), midnight), False)
    old = pc.fill_null(pc.less(actions["max.ingested_at"].cast(TIME), midnight), False)
    whole = pc.sum(actions.filter(young)["num_records"]).as_py() or 0
    mixed = actions.filter(pc.invert(pc.or_(young, old)))["path"].to_pylist()
    if not mixed:
        return whole
    with connect(settings) as connection:
        register_view(connection, "mixed", handle, mixed)
        return whole + connection.sql(f"select count(*) from mixed where {_since(since)}").fetchall()[0][0]


def _since(day: date) -> str:
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return f"epoch_us(ingested_at) >= {midnight.timestamp() * 1_000_000:.0f}"
