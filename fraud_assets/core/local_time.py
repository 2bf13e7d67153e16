"""Times as text and as the clocks of a time zone show them, without Arrow's own time zone database.

Arrow reads the database of the operating system, which slim containers lack, even for UTC. `zoneinfo` falls back to the
`tzdata` package, so that both find the same zones everywhere.
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
    """What a clock in the time zone shows at UTC times.

    Args:
        times: Arrow array of `timestamp[us, UTC]`, without nulls.
        time_zone: IANA name.

    Returns:
        Array of `timestamp[us]` without a zone, in the same order.
    """
    naive = times.cast(pa.timestamp("us"))
    if time_zone == "UTC" or not len(naive):
        return naive
    utc = naive.cast(pa.int64()).to_numpy(zero_copy_only=False)
    days, day_of_row = np.unique(utc // (_DAY * _SECOND), return_inverse=True)
    before, change, after = np.array([_day(time_zone, day) for day in days.tolist()], np.int64).T
    seconds = np.where(utc < change[day_of_row] * _SECOND, before[day_of_row], after[day_of_row])
    return pc.add(naive, pa.array(seconds * _SECOND, pa.duration("us")))


def iso_text(times: Any) -> Any:
    """ISO 8601 text of Arrow times, cut to microseconds: in UTC with a Z if their type has a zone.

    A time outside the years that Arrow can write stays what Arrow makes of it.
    """
    text = times.cast(pa.timestamp("us"), safe=False).cast(pa.string())
    zone = "Z" if times.type.tz else ""
    return pc.replace_substring_regex(text, r"^(-?\d+-\d+-\d+) (.*)$", rf"\1T\2{zone}")


@lru_cache(maxsize=65_536)
def _day(time_zone: str, day: int) -> tuple[int, int, int]:
    """A UTC day (number since 1970): its first offset, the moment of the change, and the offset from then on.

    Offsets are in seconds east of UTC, the moment in seconds since 1970. No zone changes twice within a day.
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
    """Seconds east of UTC at a moment, given in seconds since 1970."""
    offset = (_EPOCH + timedelta(seconds=second)).astimezone(zone).utcoffset()
    return 0 if offset is None else round(offset.total_seconds())
