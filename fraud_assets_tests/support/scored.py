"""Commits predictions without a model."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fraud_assets.core.schema import (
    FRAUD_PREDICTIONS,
    fraud_predictions,
    transaction_features,
)
from fraud_assets.lake.append import commit_append
from fraud_assets.lake.positions import find_largest_positions
from fraud_assets.lake.tables import Lake, open_dataset


def score_all(lake: Lake) -> None:
    """Commits a prediction for each feature row, as the scoring stage does."""
    features = open_dataset(lake.open(transaction_features)).to_table()
    constants = {"score": 0.5, "threshold": 0.6, "is_alert": False, "model_version": 1, "model_run_id": "a" * 32}
    columns: dict[str, Any] = {
        name: features[name] for name in FRAUD_PREDICTIONS.names if name in features.column_names
    }
    columns |= {name: pa.repeat(pa.scalar(value), features.num_rows) for name, value in constants.items()}
    columns["scored_at"] = features["ingested_at"]
    rows = pa.table({name: columns[name] for name in FRAUD_PREDICTIONS.names})
    commit_append(lake.open(fraud_predictions), fraud_predictions, rows, find_largest_positions(rows))
