"""Fits the Isolation Forest, unsupervised: fraud labels are known days late and to evaluation only."""

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
    """MODEL_INPUTS as a frame, so that the forest knows its inputs by name and refuses another order."""
    import pandas as pd

    return pd.DataFrame(to_matrix(features, dtype), columns=list(MODEL_INPUTS))


def fit(features: pa.Table, trees: int = TREES, seed: int = SEED, *, scaled: bool = False) -> Any:
    """A scikit-learn `IsolationForest` on the unscaled float32 inputs, as treelite scores them.

    With `scaled`, a pipeline that first standardises with the mean and deviation of `features`: the handbook's
    form (chapter 7). Scaling does not change what a tree can tell apart, so the platform's model does without.
    """
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(n_estimators=trees, random_state=seed)
    if not scaled:
        return forest.fit(to_frame(features))
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # In between, plain arrays: the forest behind the scaler never sees the names.
    return make_pipeline(StandardScaler(), forest).fit(to_frame(features, np.float64))


def score_samples(model: Any, features: pa.Table) -> np.ndarray:
    """Scores of what `fit` gave, float64, shape (rows,); a higher score is more suspicious."""
    scaled = hasattr(model, "steps")
    return -model.score_samples(to_frame(features, np.float64 if scaled else np.float32))


def to_treelite(forest: Any) -> treelite.Model:
    """The forest as the platform scores it (`core.scoring.score`)."""
    import treelite.sklearn

    return treelite.sklearn.import_model(forest)
