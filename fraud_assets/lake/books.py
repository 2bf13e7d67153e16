"""The books: every landed message is in exactly one of features and quarantine."""

from __future__ import annotations

from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import (
    fraud_labels,
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.engines.duckdb import connect
from fraud_assets.lake.tables import Lake, dataset_of, row_count
from fraud_assets.settings import Settings


def books(lake: Lake, settings: Settings) -> dict[str, int]:
    """Rows of each table; `landed` = `features` + `quarantined` + `duplicates` once nothing is pending.

    Counts come from file statistics, those of quarantine from its reasons (bad labels are counted apart).
    """
    with connect(settings) as connection:
        connection.register("quarantine", dataset_of(lake.open(quarantined_transactions)))
        reasons = dict(connection.sql("select reason, count(*) from quarantine group by 1").fetchall())
    labels = sum(count for reason, count in reasons.items() if reason.startswith("label_"))
    duplicates = reasons.get("duplicate", 0)
    return {
        "landed": row_count(lake.open(raw_transactions)),
        "features": row_count(lake.open(transaction_features)),
        "quarantined": sum(reasons.values()) - duplicates - labels,
        "duplicates": duplicates,
        "labels": row_count(lake.open(fraud_labels)),
        "quarantined_labels": labels,
        "scored": row_count(lake.open(fraud_predictions)),
    }


def alerts(lake: Lake, last: timedelta | None = None) -> int:
    """Predictions at or above their threshold; with `last` those of the newest stretch of `tx_datetime` alone."""
    scored = dataset_of(lake.open(fraud_predictions)).to_table(columns=["tx_datetime"], filter=pc.field("is_alert"))
    times = scored["tx_datetime"]
    if last is None or not len(times):
        return len(times)
    since = pc.max(times).as_py() - last
    return pc.sum(pc.greater(times, pa.scalar(since, times.type))).as_py()
