"""The books: every landed message is in exactly one of features and quarantine."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import (
    TIME,
    Table,
    fraud_labels,
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.engines.duckdb import connect
from fraud_assets.lake.retention import retained_from
from fraud_assets.lake.scan import register
from fraud_assets.lake.tables import Lake, add_actions, read
from fraud_assets.settings import Settings

_COUNTED = (raw_transactions, transaction_features, quarantined_transactions, fraud_labels, fraud_predictions)


def compared_from(lake: Lake) -> date | None:
    """First day of ingest that the books count: from then on retention has removed nothing. None: all are counted."""
    floors = [retained_from(lake.open(table)) for table in _COUNTED if lake.exists(table)]
    return max((floor for floor in floors if floor is not None), default=None)


def books(lake: Lake, settings: Settings) -> dict[str, int]:
    """Rows of each table; `landed` = `features` + `quarantined` + `duplicates` once nothing is pending.

    Where retention removed rows, only messages ingested from `compared_from` on are counted. Counts come from file
    statistics, those of quarantine from its reasons (bad labels are counted apart).
    """
    since = compared_from(lake)
    reasons: dict[str, int] = {}
    if lake.exists(quarantined_transactions):
        with connect(settings) as connection:
            register(connection, "quarantine", lake.open(quarantined_transactions))
            recent = f"where {_since(since)}" if since else ""
            reasons = dict(connection.sql(f"select reason, count(*) from quarantine {recent} group by 1").fetchall())
    labels = sum(count for reason, count in reasons.items() if reason.startswith("label_"))
    duplicates = reasons.get("duplicate", 0)
    return {
        "landed": _rows(lake, raw_transactions, since, settings),
        "features": _rows(lake, transaction_features, since, settings),
        "quarantined": sum(reasons.values()) - duplicates - labels,
        "duplicates": duplicates,
        # Some of `quarantined`, and no bad data.
        "tombstones": reasons.get("tombstone", 0),
        "labels": _rows(lake, fraud_labels, since, settings),
        "quarantined_labels": labels,
        "scored": _rows(lake, fraud_predictions, since, settings),
    }


def alerts(lake: Lake, last: timedelta | None = None) -> int:
    """Predictions at or above their threshold; with `last` those of the newest stretch of `tx_datetime` alone."""
    scored = read(lake.open(fraud_predictions), ["tx_datetime"], pc.field("is_alert"))
    times = scored["tx_datetime"]
    if last is None or not len(times):
        return len(times)
    since = pc.max(times).as_py() - last
    return pc.sum(pc.greater(times, pa.scalar(since, times.type))).as_py()


def _rows(lake: Lake, table: Table, since: date | None, settings: Settings) -> int:
    """Rows ingested from a day on; only files that hold both older and younger ones are read."""
    if not lake.exists(table):
        return 0
    handle = lake.open(table)
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
        register(connection, "mixed", handle, mixed)
        return whole + connection.sql(f"select count(*) from mixed where {_since(since)}").fetchall()[0][0]


def _since(day: date) -> str:
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return f"epoch_us(ingested_at) >= {midnight.timestamp() * 1_000_000:.0f}"
