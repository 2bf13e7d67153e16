"""Fits the Isolation Forest without labels: fraud labels arrive days late, and only evaluation uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fraud_assets.core.schema import MODEL_INPUTS
from fraud_assets.core.scoring import to_matrix

if TYPE_CHECKING:
    import pandas as pd
    import treelite

TREES = 100
SEED = 42


def to_frame(features: pa.Table, dtype: Any = np.float32) -> pd.DataFrame:
    """Returns MODEL_INPUTS as a DataFrame, so that the forest knows its inputs by name and rejects another order."""
    import pandas as pd

    return pd.DataFrame(to_matrix(features, dtype), columns=list(MODEL_INPUTS))


def fit(features: pa.Table, trees: int = TREES, seed: int = SEED, *, scaled: bool = False) -> Any:
    """Fits a scikit-learn `IsolationForest` on the same unscaled float32 inputs that treelite scores.

    Args:
        features: Rows with MODEL_INPUTS.
        trees: Number of trees.
        seed: Random seed.
        scaled: Whether to fit a pipeline that first standardizes with the mean and standard deviation of `features`,
            as the handbook does (chapter 7). Scaling does not change which rows a tree can separate, so the
            platform's model does not use it.
    """
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(n_estimators=trees, random_state=seed)
    if not scaled:
        return forest.fit(to_frame(features))
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # The scaler returns plain arrays, so the forest does not get the names.
    return make_pipeline(StandardScaler(), forest).fit(to_frame(features, np.float64))


def score_samples(model: Any, features: pa.Table) -> np.ndarray:
    """Scores rows with a model from `fit`: float64, shape (rows,); a higher score is more suspicious."""
    scaled = hasattr(model, "steps")
    return -model.score_samples(to_frame(features, np.float64 if scaled else np.float32))


def to_treelite(forest: Any) -> treelite.Model:
    """Converts the forest to the form that `core.scoring.score` uses."""
    import treelite.sklearn

    return treelite.sklearn.import_model(forest)
