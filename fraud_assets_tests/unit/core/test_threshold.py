from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud_assets.core.threshold import count_scores_needed, find_lowest_threshold, merge_traffic, summarize_traffic


def calibrate(scores: np.ndarray, tx_datetime: np.ndarray, budget_per_day: float, max_rate: float) -> float:
    """Computes the threshold of transactions that are all in memory."""
    return find_lowest_threshold(summarize_traffic(scores, tx_datetime, len(scores)), budget_per_day, max_rate)


def times(rows: int, days: float) -> np.ndarray:
    span = int(days * 86_400_000_000)
    return np.datetime64("2026-01-01", "us") + np.linspace(0, span, rows).astype("timedelta64[us]")


def test_the_threshold_uses_the_whole_alert_budget():
    scores = np.random.default_rng(0).random(70_000)
    threshold = calibrate(scores, times(70_000, 7), 100, 1.0)
    assert (scores >= threshold).sum() == 700


def test_the_maximum_rate_limits_the_alerts_of_little_traffic():
    scores = np.random.default_rng(0).random(50)
    threshold = calibrate(scores, times(50, 1), 100, 0.05)
    assert (scores >= threshold).sum() == 2


def test_a_part_of_a_day_has_the_budget_of_a_day():
    scores = np.random.default_rng(0).random(1_000)
    assert (scores >= calibrate(scores, times(1_000, 0.1), 10, 1.0)).sum() == 10


def test_equal_scores_that_exceed_the_budget_do_not_alert():
    scores = np.array([0.1] * 90 + [0.5] * 8 + [0.9] * 2)
    assert calibrate(scores, times(100, 1), 5, 1.0) == 0.9
    assert calibrate(scores, times(100, 1), 10, 1.0) == 0.5


@pytest.mark.parametrize(("budget", "rate"), [(5, 1.0), (0.5, 1.0), (100, 0.001)])
def test_nothing_alerts_if_all_scores_are_equal_or_the_budget_is_below_one(budget, rate):
    scores = np.full(100, 0.4)
    threshold = calibrate(scores, times(100, 1), budget, rate)
    assert not (scores >= threshold).any()
    assert threshold == pytest.approx(0.4)


def test_everything_alerts_if_the_limits_allow_it():
    scores = np.random.default_rng(0).random(10)
    assert calibrate(scores, times(10, 1), 100, 1.0) == scores.min()


@given(
    st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.35, 0.9]) | st.floats(0, 1), min_size=1, max_size=200),
    st.floats(0.01, 300),
    st.floats(0.001, 1),
    st.floats(0, 20),
)
def test_the_threshold_is_the_lowest_one_within_both_limits(scores, budget, rate, days):
    values, tx_times = np.array(scores), times(len(scores), days)
    limit = min(budget * summarize_traffic(values, tx_times, 1).days, rate * len(values))
    threshold = calibrate(values, tx_times, budget, rate)
    assert (values >= threshold).sum() <= limit
    lower = values[values < threshold]
    assert not len(lower) or (values >= lower.max()).sum() > np.floor(limit)


@given(
    st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.35, 0.9]) | st.floats(0, 1), min_size=1, max_size=200),
    st.floats(0.01, 300),
    st.floats(0.001, 1),
    st.floats(0, 7),
    st.integers(1, 50),
)
def test_traffic_summarized_in_parts_gives_the_same_threshold(scores, budget, rate, days, size):
    values, tx_times = np.array(scores), times(len(scores), days)
    keep = count_scores_needed(budget, 7)
    parts = [
        summarize_traffic(values[first : first + size], tx_times[first : first + size], keep)
        for first in range(0, len(values), size)
    ]
    traffic = merge_traffic(parts, keep)
    threshold = find_lowest_threshold(traffic, budget, rate)
    assert threshold == calibrate(values, tx_times, budget, rate)
    assert traffic.alerts(threshold) == (values >= threshold).sum()
    assert len(traffic.highest) <= keep
