"""Computes the alert threshold from the number of alerts that analysts can review, not from `contamination`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_DAY = np.timedelta64(1, "D") / np.timedelta64(1, "us")


@dataclass(frozen=True)
class ScoredTraffic:
    """A summary of scored transactions that determines a threshold. Its size does not depend on their number.

    Attributes:
        rows: Number of transactions.
        first: Earliest time, datetime64[us].
        last: Latest time, datetime64[us].
        highest: The highest scores, ascending, float64.
    """

    rows: int
    first: np.datetime64
    last: np.datetime64
    highest: np.ndarray

    @property
    def days(self) -> float:
        """Days between the first and the last transaction, at least one."""
        # The traffic of less than a day counts as that of a whole day, because the budget is per day.
        return float(max(1.0, float((self.last - self.first) / np.timedelta64(1, "us")) / _DAY))

    def alerts(self, threshold: float) -> int:
        """Counts the transactions that alert at a threshold from `find_lowest_threshold`."""
        return int((self.highest >= threshold).sum())


def count_scores_needed(budget_per_day: float, days: float) -> int:
    """Returns the number of highest scores on which the threshold of `days` (at least one) can depend."""
    return math.floor(budget_per_day * days) + 1


def summarize_traffic(scores: np.ndarray, tx_datetime: np.ndarray, keep: int) -> ScoredTraffic:
    """Summarizes scored transactions.

    Args:
        scores: float64, shape (rows,), at least one row.
        tx_datetime: datetime64[us], shape (rows,), in any order.
        keep: Number of highest scores to keep; see `count_scores_needed`.
    """
    return ScoredTraffic(len(scores), tx_datetime.min(), tx_datetime.max(), _select_highest(scores, keep))


def merge_traffic(parts: Iterable[ScoredTraffic], keep: int) -> ScoredTraffic:
    """Merges the summaries of at least one part, with the `keep` highest scores."""
    known = list(parts)
    return ScoredTraffic(
        sum(part.rows for part in known),
        min(part.first for part in known),
        max(part.last for part in known),
        _select_highest(np.concatenate([part.highest for part in known]), keep),
    )


def find_lowest_threshold(traffic: ScoredTraffic, budget_per_day: float, max_rate: float) -> float:
    """Returns the lowest threshold at which the alerts of this traffic (score >= threshold) stay within both limits.

    The mean number of alerts per day is at most `budget_per_day`. Alerts are at most the share `max_rate` of the
    transactions; otherwise all transactions would alert if there were fewer than the budget.

    Equal scores alert together or not at all: if they would exceed a limit, the next higher score is the threshold. If
    the limits allow no alert, the threshold is just above the highest score.

    Args:
        traffic: The scored transactions.
        budget_per_day: Alerts per day.
        max_rate: Share of the transactions, 0 < max_rate <= 1.
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


def _select_highest(scores: np.ndarray, keep: int) -> np.ndarray:
    if len(scores) > keep:
        scores = np.partition(scores, len(scores) - keep)[-keep:]
    return np.sort(scores)
