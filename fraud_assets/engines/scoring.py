"""Scores rows in memory; both engines use it."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import FEATURE_VERSION, FRAUD_PREDICTIONS
from fraud_assets.core.scoring import Scorer
from fraud_assets.engines.base import ScoringResult


def score_rows(rows: pa.Table, scorer: Scorer) -> ScoringResult:
    """The rows (columns PREDICTION_INPUTS), scored; none of them where one has another feature version."""
    others = find_other_versions(rows)
    scored = FRAUD_PREDICTIONS.empty_table() if others else scorer.score(rows)
    return ScoringResult(scored, count_alerts(scored), others)


def find_other_versions(rows: pa.Table) -> frozenset[str]:
    """Feature versions of the rows that no champion of this release scores."""
    return frozenset(pc.unique(rows["feature_version"]).to_pylist()) - {FEATURE_VERSION}


def count_alerts(scored: pa.Table) -> int:
    """How many of the predictions alert."""
    return pc.sum(scored["is_alert"]).as_py() or 0
