"""The alert threshold: from what the analysts can review in a day, not from the model's `contamination`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_DAY = np.timedelta64(1, "D") / np.timedelta64(1, "us")


@dataclass(frozen=True)
class ScoredTraffic:
    """What of scored transactions a threshold depends on, whatever their number.

    `first` and `last` are times (datetime64[us]), `highest` are the highest scores, ascending.
    """

    rows: int
    first: np.datetime64
    last: np.datetime64
    highest: np.ndarray

    @property
    def days(self) -> float:
        """Days between the first and the last transaction, at least one."""
        # As long as less than a day is known, its traffic counts as that of a whole day: the budget is a day's.
        return float(max(1.0, float((self.last - self.first) / np.timedelta64(1, "us")) / _DAY))

    def alerts(self, threshold: float) -> int:
        """Transactions with a score of at least a threshold that `lowest_threshold` gave."""
        return int((self.highest >= threshold).sum())


def count_scores_needed(budget_per_day: float, days: float) -> int:
    """How many of the highest scores the threshold of so many days (at least one) can depend on."""
    return math.floor(budget_per_day * days) + 1


def summarize_traffic(scores: np.ndarray, tx_datetime: np.ndarray, keep: int) -> ScoredTraffic:
    """The traffic of some transactions, at least one, with the `keep` highest of its scores (`count_scores_needed`)."""
    return ScoredTraffic(len(scores), tx_datetime.min(), tx_datetime.max(), _highest(scores, keep))


def merge_traffic(parts: Iterable[ScoredTraffic], keep: int) -> ScoredTraffic:
    """The traffic of all parts, at least one."""
    known = list(parts)
    return ScoredTraffic(
        sum(part.rows for part in known),
        min(part.first for part in known),
        max(part.last for part in known),
        _highest(np.concatenate([part.highest for part in known]), keep),
    )


def calibrate(scores: np.ndarray, tx_datetime: np.ndarray, budget_per_day: float, max_rate: float) -> float:
    """`lowest_threshold` of transactions that are all in memory.

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
    return lowest_threshold(summarize_traffic(scores, tx_datetime, len(scores)), budget_per_day, max_rate)


def lowest_threshold(traffic: ScoredTraffic, budget_per_day: float, max_rate: float) -> float:
    """The lowest threshold at which, in this traffic, alerts (score >= threshold) keep to both limits.

    - their mean per day is at most `budget_per_day`;
    - they are at most `max_rate` of the transactions, so that a stream with less traffic than the budget does
      not alert everything.

    Equal scores alert together or not at all: where they would exceed a limit, the next higher score is the
    threshold. Where nothing may alert, it lies just above the highest score.
    """
    allowed = math.floor(min(budget_per_day * traffic.days, max_rate * traffic.rows))
    ordered = traffic.highest
    above = math.nextafter(float(ordered[-1]), math.inf)
    if allowed < 1:
        return above
    if allowed >= traffic.rows:
        return float(ordered[0])
    candidate, next_lower = ordered[-allowed], ordered[-allowed - 1]
    if candidate > next_lower:
        return float(candidate)
    higher = ordered[np.searchsorted(ordered, candidate, side="right") :]
    return float(higher[0]) if len(higher) else above


def _highest(scores: np.ndarray, keep: int) -> np.ndarray:
    if len(scores) > keep:
        scores = np.partition(scores, len(scores) - keep)[-keep:]
    return np.sort(scores)
