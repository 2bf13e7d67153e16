"""Draws the times of payments: the same distribution on each day, mostly around noon (UTC), as in the handbook."""

from __future__ import annotations

import math
from datetime import datetime
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

NOON, NOON_DEVIATION, DAY = 43_200.0, 20_000.0, 86_400
_WITHIN_THE_DAY = math.erf(NOON / (NOON_DEVIATION * math.sqrt(2)))
"""Share of the normal distribution around noon that is within the day. Draws outside the day are rejected."""

Times: TypeAlias = NDArray[np.datetime64]


def compute_share_per_second(moment: datetime) -> float:
    """Returns the share of a day's payments in the second at `moment`, which has a time zone."""
    distance = (moment.timestamp() % DAY - NOON) / NOON_DEVIATION
    return math.exp(-distance * distance / 2) / (NOON_DEVIATION * math.sqrt(2 * math.pi) * _WITHIN_THE_DAY)


def draw_times_of_days(rng: np.random.Generator, count: int, days: int, end: datetime) -> Times:
    """Draws exactly `count` times from the `days` whole days before `end`'s day and from that day until `end`.

    Returns:
        Ascending whole seconds, shape (count,), datetime64[us], UTC.
    """
    last = int(end.timestamp())
    today = last // DAY * DAY
    found = np.empty(0, np.int64)
    while len(found) < count:
        wanted = count - len(found)
        second = rng.normal(NOON, NOON_DEVIATION, wanted)
        time = today - rng.integers(0, days + 1, wanted) * DAY + np.floor(second).astype(np.int64)
        found = np.concatenate([found, time[(second >= 0) & (second < DAY) & (time <= last)]])
    return _ascending(found)


def draw_times_between(rng: np.random.Generator, per_day: float, start: datetime, end: datetime) -> Times:
    """Draws times in (start, end], on average `per_day` in a whole day.

    Returns:
        Ascending whole seconds, shape (n,), datetime64[us], UTC.
    """
    after, last = int(start.timestamp()), int(end.timestamp())
    first_day = after // DAY
    days = last // DAY - first_day + 1
    # Payments of whole days are drawn and those outside the range dropped, so that a part of a day gets its share.
    drawn = rng.normal(NOON, NOON_DEVIATION, rng.poisson(per_day / _WITHIN_THE_DAY * max(days, 0)))
    second = drawn[(drawn >= 0) & (drawn < DAY)]
    time = (first_day + rng.integers(0, max(days, 1), len(second))) * DAY + np.floor(second).astype(np.int64)
    return _ascending(time[(time > after) & (time <= last)])


def _ascending(seconds: NDArray[np.int64]) -> Times:
    return np.sort(seconds).astype("datetime64[s]").astype("datetime64[us]")
