"""Counts the scores of the newest day, for the page of the predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow.compute as pc
from deltalake import DeltaTable

from fraud_assets.lake.log import add_actions
from fraud_assets.lake.tables import read

BINS = 12


@dataclass(frozen=True)
class ScoreHistogram:
    """The scores of one day.

    Attributes:
        day: Day of `tx_datetime` (UTC).
        threshold: Newest threshold of the day.
        counts: Number of scores by range, as text from low to high.
    """

    day: date
    threshold: float
    counts: Mapping[str, int]


def count_scores(predictions: DeltaTable) -> ScoreHistogram | None:
    """Counts the scores of the newest day with predictions, in BINS ranges of equal width.

    It reads only three columns of the files of this day.

    Args:
        predictions: The version of `fraud_predictions`.

    Returns:
        The counts, or None if there are no predictions.

    Raises:
        LakeError: A file cannot be read.
    """
    files = add_actions(predictions)
    if not files.num_rows:
        return None
    day = pc.max(files["partition.tx_date"]).as_py()
    rows = read(predictions, ["score", "threshold", "scored_at"], pc.field("tx_date") == day)
    if not rows.num_rows:
        return None
    counts, edges = np.histogram(rows["score"].to_numpy(), bins=BINS)
    last = pc.index(rows["scored_at"], pc.max(rows["scored_at"])).as_py()
    named = {f"{edges[n]:.3f} to {edges[n + 1]:.3f}": int(count) for n, count in enumerate(counts)}
    return ScoreHistogram(day, rows["threshold"][last].as_py(), named)
