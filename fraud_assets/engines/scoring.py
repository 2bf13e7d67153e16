"""Scores rows in memory, for both engines."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import FEATURE_VERSION, FRAUD_PREDICTIONS
from fraud_assets.core.scoring import Scorer
from fraud_assets.engines.base import ScoringResult


def score_rows(rows: pa.Table, scorer: Scorer) -> ScoringResult:
    """Scores rows with the columns PREDICTION_INPUTS. If one has another feature version, no row is scored."""
    others = find_other_versions(rows)
    scored = FRAUD_PREDICTIONS.empty_table() if others else scorer.score(rows)
    return ScoringResult(scored, count_alerts(scored), others)


def find_other_versions(rows: pa.Table) -> frozenset[str]:
    """Returns the feature versions of the rows that this release cannot score."""
    return frozenset(pc.unique(rows["feature_version"]).to_pylist()) - {FEATURE_VERSION}


def count_alerts(scored: pa.Table) -> int:
    """Counts the predictions that alert."""
    return pc.sum(scored["is_alert"]).as_py() or 0
