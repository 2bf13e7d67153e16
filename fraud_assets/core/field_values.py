"""Reads single values of a field: identifiers, times, amounts and flags."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from fraud_assets.core.bodies import LongInteger
from fraud_assets.core.message_contract import ValueKind

EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - local times are compared before their zone is applied
MICROSECOND = timedelta(microseconds=1)
EARLIEST = (datetime.min - EPOCH) // MICROSECOND
LATEST = (datetime.max - EPOCH) // MICROSECOND
_NUMERIC = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NOT_A_NUMBER = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]+))?)?"
    r"(?:([Zz])|([+-])([0-9]{2})(?::?([0-9]{2}))?)?"
)
_FLAGS = {"false": False, "true": True}
_FLAG_NUMBER = re.compile(r"([01])(?:\.0*)?")  # pandas writes a fraction if the column has missing values.


class WrongValueError(Exception):
    """A value cannot be read. It carries the reason and the expected value."""

    def __init__(self, reason: str, expected: str) -> None:
        super().__init__(reason, expected)
        self.reason = reason
        self.expected = expected


def _read_id(value: Any) -> str:
    if type(value) is int:
        try:
            return str(value)
        except ValueError:
            raise WrongValueError("wrong_type", "an integer of fewer digits or a string") from None
    if type(value) is not str:
        raise WrongValueError("wrong_type", "an integer or a string")
    if not value or value.isspace():
        raise WrongValueError("invalid_id", "a string that is not blank")
    if "\0" in value:
        raise WrongValueError("invalid_id", "a string without NUL characters")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise WrongValueError("invalid_id", "a string without lone surrogates") from None
    return value


def read_amount(value: Any) -> float:
    """Reads a finite amount of zero or more.

    Raises:
        WrongValueError: The value is not such an amount.
    """
    kind = type(value)
    if kind is float:
        amount = float(value)
    elif kind is int:
        try:
            amount = float(value)
        except OverflowError:
            amount = math.inf
    elif kind is LongInteger:
        amount = math.inf
    elif kind is str and _NUMERIC.fullmatch(value):
        amount = float(value)
    elif kind is str and _NOT_A_NUMBER.fullmatch(value):
        amount = math.nan
    else:
        raise WrongValueError("wrong_type", "a number")
    if not math.isfinite(amount):
        raise WrongValueError("not_finite", "a finite number")
    if amount < 0:
        raise WrongValueError("negative_amount", "zero or more")
    return amount + 0.0  # Adding 0.0 turns -0.0 into 0.0.


def _read_time(value: Any) -> int:
    """Reads a time as microseconds since 1970 in UTC. Digits beyond the microsecond are dropped."""
    if type(value) is not str:
        raise WrongValueError("wrong_type", "an ISO 8601 string such as 2018-04-01T00:00:31Z")
    match = _TIME.fullmatch(value)
    if match is None:
        raise WrongValueError("invalid_time", "ISO 8601 with date and time of day, such as 2018-04-01T00:00:31Z")
    year, month, day, hour, minute, second, fraction, _, sign, zone_hours, zone_minutes = match.groups()
    microsecond = int((fraction or "0")[:6].ljust(6, "0"))
    try:
        clock = int(hour), int(minute), int(second or 0), microsecond
        local = datetime(int(year), int(month), int(day), *clock)  # noqa: DTZ001 - its zone follows
    except ValueError:
        raise WrongValueError("invalid_time", "a date and time of day that exist") from None
    offset = 0
    if sign:
        hours, minutes = int(zone_hours), int(zone_minutes or 0)
        if hours > 23 or minutes > 59:
            raise WrongValueError("invalid_time", "an offset below 24 hours")
        offset = (hours * 60 + minutes) * 60_000_000 * (-1 if sign == "-" else 1)
    time = (local - EPOCH) // MICROSECOND - offset
    if not EARLIEST <= time <= LATEST:
        raise WrongValueError("invalid_time", "a year from 1 to 9999 in UTC")
    return time


def _read_flag(value: Any) -> bool:
    if type(value) is bool:
        return value
    if type(value) in (int, float) and value in (0, 1):
        return bool(value == 1)
    if type(value) is str:
        number = _FLAG_NUMBER.fullmatch(value)
        if number is not None:
            return number[1] == "1"
        if value.lower() in _FLAGS:
            return _FLAGS[value.lower()]
    raise WrongValueError("wrong_type", "true, false, 0 or 1")


READERS: dict[ValueKind, Callable[[Any], Any]] = {
    "id": _read_id,
    "time": _read_time,
    "amount": read_amount,
    "flag": _read_flag,
}
