"""The books: every landed message is in exactly one of features and quarantine."""

from __future__ import annotations

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


def alerts(lake: Lake) -> int:
    """Predictions at or above their threshold."""
    return dataset_of(lake.open(fraud_predictions)).count_rows(filter=pc.field("is_alert"))
