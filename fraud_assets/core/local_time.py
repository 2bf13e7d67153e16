"""Converts times to text and to local times, without Arrow's own time zone database.

Arrow needs the database of the operating system, even for UTC, and slim containers lack it. `zoneinfo` falls back to
the `tzdata` package, so that the same zones are found everywhere.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_SECOND = 1_000_000
_DAY = 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_local_times(times: Any, time_zone: str) -> Any:
    """Converts UTC times to the local times of a time zone.

    Args:
        times: Arrow array of `timestamp[us, UTC]`, without nulls.
        time_zone: IANA name.

    Returns:
        Array of `timestamp[us]` without a time zone, in the same order.
    """
    naive = times.cast(pa.timestamp("us"))
    if time_zone == "UTC" or not len(naive):
        return naive
    utc = naive.cast(pa.int64()).to_numpy(zero_copy_only=False)
    days, day_of_row = np.unique(utc // (_DAY * _SECOND), return_inverse=True)
    before, change, after = np.array([_find_offsets(time_zone, day) for day in days.tolist()], np.int64).T
    seconds = np.where(utc < change[day_of_row] * _SECOND, before[day_of_row], after[day_of_row])
    return pc.add(naive, pa.array(seconds * _SECOND, pa.duration("us")))


def format_iso(times: Any) -> Any:
    """Converts Arrow times to ISO 8601 text, cut to microseconds: in UTC with a Z if their type has a time zone.

    For a time outside the years that Arrow can format, the result is Arrow's own text.
    """
    text = times.cast(pa.timestamp("us"), safe=False).cast(pa.string())
    zone = "Z" if times.type.tz else ""
    return pc.replace_substring_regex(text, r"^(-?\d+-\d+-\d+) (.*)$", rf"\1T\2{zone}")


@lru_cache(maxsize=65_536)
def _find_offsets(time_zone: str, day: int) -> tuple[int, int, int]:
    """Finds the offsets of a UTC day (number since 1970). No time zone changes its offset twice within a day.

    Returns:
        The first offset and the offset after a change, in seconds east of UTC; between them the time of the change, in
        seconds since 1970.
    """
    zone = ZoneInfo(time_zone)
    low, high = day * _DAY, (day + 1) * _DAY
    before, after = _offset(zone, low), _offset(zone, high)
    if before == after:
        return before, high, after
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(zone, middle) == before:
            low = middle
        else:
            high = middle
    return before, high, after


def _offset(zone: ZoneInfo, second: int) -> int:
    """Returns the seconds east of UTC at a time, given in seconds since 1970."""
    offset = (_EPOCH + timedelta(seconds=second)).astimezone(zone).utcoffset()
    return 0 if offset is None else round(offset.total_seconds())
