"""Reconciles the tables: every landed message is in exactly one of features and quarantine, or waits."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from fraud_assets.core.bodies import TOMBSTONE
from fraud_assets.core.quarantine_reasons import DUPLICATE, LABEL_PREFIX
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
from fraud_assets.lake.positions import NOTHING, Positions, SourcePartition, build_partition_arrays, committed_offset
from fraud_assets.lake.scan import register_view
from fraud_assets.lake.tables import Lake, read
from fraud_assets.operations.retention import read_retained_from
from fraud_assets.settings import Settings

_DOWNSTREAM_FIRST = (
    fraud_predictions,
    transaction_features,
    quarantined_transactions,
    raw_transactions,
    fraud_labels,
)
"""The order in which versions are pinned. Each table then contains all source rows of the table before it.

A batch of features is two commits, quarantine first. Quarantine is pinned after features and may be ahead of it. Its
rows beyond the positions of features count as waiting.
"""

Handles = Mapping[str, DeltaTable]


def pin_versions(lake: Lake) -> Handles:
    """Pins one version of every counted table that exists, so that the totals balance.

    Returns:
        The pinned versions, by table name.

    Raises:
        LakeError: a table cannot be read.
    """
    found = {table.name: lake.find(table) for table in _DOWNSTREAM_FIRST}
    return {name: handle for name, handle in found.items() if handle is not None}


def find_first_counted_day(handles: Handles) -> date | None:
    """Returns the first day of ingest from which on retention has removed nothing; None if all days are counted."""
    floors = [read_retained_from(handle) for handle in handles.values()]
    return max((floor for floor in floors if floor is not None), default=None)


def reconcile(lake: Lake, settings: Settings) -> dict[str, int]:
    """Counts the totals of the current versions; see `count_totals`.

    Raises:
        LakeError: a table cannot be read.
    """
    return count_totals(pin_versions(lake), settings)


def count_totals(handles: Handles, settings: Settings) -> dict[str, int]:
    """Counts the rows of each table, and the rows that wait, in one set of pinned versions.

    `landed` = `features` + `quarantined` + `duplicates` + `waiting`, and `features` = `scored` + `unscored`. This
    holds even if other processes commit at the same time. If retention removed rows, only messages that were ingested
    on or after the first counted day are counted. Counts come from file statistics, except those of quarantine, which
    come from its reasons. Bad labels are counted separately.

    Args:
        handles: result of `pin_versions`.
        settings: configure the DuckDB session that counts.

    Returns:
        The number of rows, by name.

    Raises:
        LakeError: a file cannot be read.
    """
    since = find_first_counted_day(handles)
    reasons = _count_reasons(handles, since, settings)
    labels = sum(count for reason, count in reasons.items() if reason.startswith(LABEL_PREFIX))
    duplicates = reasons.get(DUPLICATE, 0)
    return {
        "landed": _count_rows(handles, raw_transactions, since, settings),
        "features": _count_rows(handles, transaction_features, since, settings),
        "quarantined": sum(reasons.values()) - duplicates - labels,
        "duplicates": duplicates,
        "waiting": _count_pending(handles, raw_transactions, transaction_features, settings),
        # Tombstones are part of `quarantined` but are not bad data.
        "tombstones": reasons.get(TOMBSTONE, 0),
        "labels": _count_rows(handles, fraud_labels, since, settings),
        "quarantined_labels": labels,
        "scored": _count_rows(handles, fraud_predictions, since, settings),
        "unscored": _count_pending(handles, transaction_features, fraud_predictions, settings),
    }


def count_quarantined(handles: Handles, settings: Settings, since: date) -> tuple[int, int]:
    """Counts bad messages, and all messages that features has processed.

    Args:
        handles: result of `pin_versions`.
        settings: configure the DuckDB session that counts.
        since: first day of ingest (UTC) that is counted.

    Returns:
        The number of quarantined transactions without duplicates and tombstones, and the number of messages.

    Raises:
        LakeError: a file cannot be read.
    """
    reasons = _count_reasons(handles, since, settings)
    bad = sum(count for reason, count in reasons.items() if _is_bad(reason))
    processed = _count_rows(handles, transaction_features, since, settings)
    processed += sum(count for reason, count in reasons.items() if not reason.startswith(LABEL_PREFIX))
    return bad, processed


def _is_bad(reason: str) -> bool:
    """Returns whether a quarantined transaction with this reason is bad data."""
    return reason not in (DUPLICATE, TOMBSTONE) and not reason.startswith(LABEL_PREFIX)


def _count_reasons(handles: Handles, since: date | None, settings: Settings) -> dict[str, int]:
    """Counts the rows of quarantine by reason: all labels, and the transactions up to the positions of features."""
    quarantine = handles.get(quarantined_transactions.name)
    if quarantine is None:
        return {}
    features = handles.get(transaction_features.name)
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
            if not reason.startswith(LABEL_PREFIX):
                source = SourcePartition(topic, topic_id, partition)
                reached[source] = max(last, reached.get(source, NOTHING))
        ahead = _find_ahead(reached, features)
        if not ahead:
            return reasons
        # A batch is between its two commits: quarantine contains its rows, features does not yet.
        connection.register("ahead", _positions_table(ahead))
        waiting = connection.sql(
            f"""select reason, count(*) from (select * from quarantine {recent}) q join ahead
            on {same_source_partition("q", "ahead")}
            where q."offset" > ahead."offset" and not starts_with(reason, '{LABEL_PREFIX}') group by 1"""
        ).fetchall()
    for reason, count in waiting:
        reasons[reason] -= count
    return reasons


def _find_ahead(reached: Positions, features: DeltaTable | None) -> dict[SourcePartition, int]:
    """Returns the positions of features in the source partitions in which `reached` is ahead of it."""
    committed = {source: NOTHING if features is None else committed_offset(features, source) for source in reached}
    return {source: offset for source, offset in committed.items() if offset < reached[source]}


def _positions_table(positions: Positions) -> pa.Table:
    return pa.table({**build_partition_arrays(positions), "offset": pa.array(positions.values(), pa.int64())})


def _count_pending(handles: Handles, source: Table, target: Table, settings: Settings) -> int:
    """Counts the rows of the source that the target has not processed."""
    if source.name not in handles:
        return 0
    handle = handles.get(target.name)
    return find_pending(
        handles[source.name],
        lambda partition: NOTHING if handle is None else committed_offset(handle, partition),
        settings,
    ).rows


def count_alerts(lake: Lake, last: timedelta | None = None) -> int:
    """Counts the predictions at or above their threshold.

    Args:
        lake: the lake that contains the predictions.
        last: count only alerts whose `tx_datetime` is within this time of the newest alert.

    Raises:
        LakeError: the predictions cannot be read.
    """
    scored = read(lake.open(fraud_predictions), ["tx_datetime"], pc.field("is_alert"))
    times = scored["tx_datetime"]
    if last is None or not len(times):
        return len(times)
    since = pc.max(times).as_py() - last
    return pc.sum(pc.greater(times, pa.scalar(since, times.type))).as_py()


def _count_rows(handles: Handles, table: Table, since: date | None, settings: Settings) -> int:
    """Counts the rows that were ingested on a day or later. Reads only files that hold both older and newer rows."""
    handle = handles.get(table.name)
    if handle is None:
        return 0
    actions = add_actions(handle)
    if not actions.num_rows:
        return 0
    if since is None:
        return pc.sum(actions["num_records"]).as_py()
    midnight = pa.scalar(datetime(since.year, since.month, since.day, tzinfo=UTC), TIME)
    # Without statistics, a file is neither new nor old and is read.
    new = pc.fill_null(pc.greater_equal(actions["min.ingested_at"].cast(TIME), midnight), False)
    old = pc.fill_null(pc.less(actions["max.ingested_at"].cast(TIME), midnight), False)
    whole = pc.sum(actions.filter(new)["num_records"]).as_py() or 0
    mixed = actions.filter(pc.invert(pc.or_(new, old)))["path"].to_pylist()
    if not mixed:
        return whole
    with connect(settings) as connection:
        register_view(connection, "mixed", handle, mixed)
        return whole + connection.sql(f"select count(*) from mixed where {_since(since)}").fetchall()[0][0]


def _since(day: date) -> str:
    """Returns the SQL condition that a row was ingested on a day or later."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return f"epoch_us(ingested_at) >= {midnight.timestamp() * 1_000_000:.0f}"
