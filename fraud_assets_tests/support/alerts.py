"""Commits predictions with alerts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta

import pyarrow as pa

from fraud_assets.core.schema import FRAUD_PREDICTIONS, fraud_predictions
from fraud_assets.lake.append import commit_append
from fraud_assets.lake.tables import Lake
from fraud_assets_tests.support.synthetic import FIRST, features


def commit_alerts(lake: Lake, alerts: Mapping[date, int], per_day: int = 100) -> None:
    """Commits predictions of ten days, `per_day` for each day; `alerts` has the number of alerts per day."""
    rows = features(10 * per_day)
    left = dict(alerts)
    flags = []
    for day in rows["tx_date"].to_pylist():
        left[day] = left.get(day, 0) - 1
        flags.append(left[day] >= 0)
    columns = {name: rows[name] for name in FRAUD_PREDICTIONS.names if name in rows.column_names}
    constants = {"score": 0.5, "threshold": 0.5, "model_version": 1, "model_run_id": "run"}
    columns |= {name: pa.repeat(pa.scalar(value), rows.num_rows) for name, value in constants.items()}
    columns |= {"is_alert": pa.array(flags), "scored_at": rows["ingested_at"]}
    scored = pa.table({name: columns[name] for name in FRAUD_PREDICTIONS.names})
    commit_append(lake.open(fraud_predictions), fraud_predictions, scored, {})


def day(number: int) -> date:
    return (FIRST + timedelta(days=number)).date()
