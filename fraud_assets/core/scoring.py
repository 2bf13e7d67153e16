"""Scores rows with a treelite Isolation Forest. Scores are bit-equal in batches of one row and of a million rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fraud_assets.core.schema import FRAUD_PREDICTIONS, MODEL_INPUTS, POSITION_COLUMNS

if TYPE_CHECKING:
    import treelite

CHUNK_ROWS = 65_536
"""Number of rows that are scored at a time: 4 MB of inputs for a batch of any size."""

PREDICTION_INPUTS = ("transaction_id", "tx_datetime", *MODEL_INPUTS, "feature_version", *POSITION_COLUMNS,
                     "ingested_at", "tx_date")  # fmt: skip
"""The columns of TRANSACTION_FEATURES that `predict` needs."""

_THREADS_FROM_ROWS = 8_192
_ALL_THREADS = -1
"""The number of threads that OpenMP allows: OMP_NUM_THREADS, which Spark sets for its tasks, else one per core."""
_LARGEST = float(np.finfo(np.float32).max)


def to_matrix(features: pa.Table, dtype: Any = np.float32) -> np.ndarray:
    """Returns MODEL_INPUTS of the features in order, shape (rows, 15).

    Values beyond float32, such as a valid amount of 1e39, become its largest value: trees only compare, and
    scikit-learn rejects infinity.
    """
    inputs = np.empty((features.num_rows, len(MODEL_INPUTS)), dtype)
    for column, name in enumerate(MODEL_INPUTS):
        inputs[:, column] = np.clip(features[name].to_numpy(), -_LARGEST, _LARGEST)
    return inputs


def score(model: treelite.Model, features: pa.Table) -> np.ndarray:
    """Computes anomaly scores; a higher score is more suspicious.

    The score is 2^(-E[h(x)] / c(n)) of Liu, Ting and Zhou, "Isolation Forest" (2008), eq. 2. It equals
    `-score_samples` of the original scikit-learn forest to 1e-8.

    Returns:
        Scores in (0, 1], float64, shape (rows,).
    """
    import treelite.gtil

    scores = np.empty(features.num_rows, np.float64)
    for first in range(0, features.num_rows, CHUNK_ROWS):
        inputs = to_matrix(features.slice(first, CHUNK_ROWS))
        # For a few rows, starting threads takes longer than scoring.
        threads = _ALL_THREADS if len(inputs) >= _THREADS_FROM_ROWS else 1
        scores[first : first + len(inputs)] = treelite.gtil.predict(model, inputs, nthread=threads).reshape(-1)
    return scores


def predict(
    features: pa.Table,
    model: treelite.Model,
    threshold: float,
    model_version: int,
    model_run_id: str,
    scored_at: datetime,
) -> pa.Table:
    """Scores feature rows.

    Args:
        features: Rows with the columns PREDICTION_INPUTS.
        model: The model.
        threshold: A row with this score or a higher one alerts.
        model_version: The model's version in its registry.
        model_run_id: The MLflow run that trained the model.
        scored_at: The time of scoring, with time zone.

    Returns:
        A row of FRAUD_PREDICTIONS for each feature row, in their order.
    """
    scores = score(model, features)
    rows = features.num_rows
    table = features.select([name for name in PREDICTION_INPUTS if name not in MODEL_INPUTS])
    for name, values in (
        ("score", pa.array(scores)),
        ("threshold", pa.repeat(threshold, rows)),
        ("is_alert", pa.array(scores >= threshold)),
        ("model_version", pa.repeat(pa.scalar(model_version, pa.int64()), rows)),
        ("model_run_id", pa.repeat(pa.scalar(model_run_id, pa.string()), rows)),
        ("scored_at", pa.repeat(pa.scalar(scored_at, FRAUD_PREDICTIONS.field("scored_at").type), rows)),
    ):
        table = table.append_column(name, values)
    return table.select(FRAUD_PREDICTIONS.names).cast(FRAUD_PREDICTIONS)


@dataclass(frozen=True)
class ModelVersion:
    """A registered model: `version` of FRAUD_MODEL_NAME, trained by the MLflow run `run_id`.

    Two registries may both have a version 1; the run id is unique.
    """

    version: int
    run_id: str


@dataclass(frozen=True)
class Scorer:
    """Scores rows with a model, its version, its threshold and one time of scoring."""

    model: treelite.Model
    model_version: ModelVersion
    threshold: float
    scored_at: datetime

    def score(self, rows: pa.Table) -> pa.Table:
        """Returns the predictions of rows with the columns PREDICTION_INPUTS, in their order."""
        version = self.model_version
        return predict(rows, self.model, self.threshold, version.version, version.run_id, self.scored_at)
