"""The alert threshold: from what the analysts can review in a day, not from the model's `contamination`."""

from __future__ import annotations

import math

import numpy as np

_DAY = np.timedelta64(1, "D") / np.timedelta64(1, "us")


def days_covered(tx_datetime: np.ndarray) -> float:
    """Days between the first and the last transaction (datetime64), at least one."""
    if not len(tx_datetime):
        return 1.0
    # As long as less than a day is known, its traffic counts as that of a whole day: the budget is a day's.
    return float(max(1.0, float((tx_datetime.max() - tx_datetime.min()) / np.timedelta64(1, "us")) / _DAY))


def calibrate(scores: np.ndarray, tx_datetime: np.ndarray, budget_per_day: float, max_rate: float) -> float:
    """The lowest threshold at which, in this window, alerts (score >= threshold) keep to both limits.

    - their mean per day is at most `budget_per_day`;
    - they are at most `max_rate` of the transactions, so that a stream with less traffic than the budget does
      not alert everything.

    Equal scores alert together or not at all: where they would exceed a limit, the next higher score is the
    threshold. Where nothing may alert, it lies just above the highest score.

    Args:
        scores: float64, shape (rows,).
        tx_datetime: datetime64[us], shape (rows,); in any order.
        budget_per_day: alerts per day.
        max_rate: share, 0 < max_rate <= 1.

    Raises:
        ValueError: the window is empty.
    """
    if not len(scores):
        raise ValueError("a threshold needs at least one scored transaction")
    allowed = math.floor(min(budget_per_day * days_covered(tx_datetime), max_rate * len(scores)))
    above = math.nextafter(float(scores.max()), math.inf)
    if allowed < 1:
        return above
    if allowed >= len(scores):
        return float(scores.min())
    ordered = np.sort(scores)
    candidate, next_lower = ordered[-allowed], ordered[-allowed - 1]
    if candidate > next_lower:
        return float(candidate)
    higher = ordered[np.searchsorted(ordered, candidate, side="right") :]
    return float(higher[0]) if len(higher) else above
