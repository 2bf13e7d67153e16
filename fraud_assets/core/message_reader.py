"""Reads a single message. This module defines which messages are valid and why others are rejected.

`core.columnar_parsing` must never accept a message that this module rejects or read a different value.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fraud_assets.core.bodies import Rejected, describe, parse_json_object
from fraud_assets.core.field_paths import MISSING, get_value
from fraud_assets.core.field_values import EPOCH, MICROSECOND, READERS, WrongValueError
from fraud_assets.core.message_contract import MessageContract

# Windows are compared in nanoseconds, and 64-bit nanoseconds cover 1677 to 2262.
_FIRST_YEAR, _LAST_YEAR = 1900, 2199
FIRST_TRANSACTION = (datetime(_FIRST_YEAR, 1, 1) - EPOCH) // MICROSECOND  # noqa: DTZ001
LAST_TRANSACTION = (datetime(_LAST_YEAR + 1, 1, 1) - EPOCH) // MICROSECOND - 1  # noqa: DTZ001


def read_message(body: bytes | None, ingested_at: int | None, contract: MessageContract) -> tuple[Any, ...]:
    """Reads the values of one message.

    Args:
        body: The bytes of the message body.
        ingested_at: The landing time in microseconds since 1970; None if it is unknown.
        contract: The required fields and limits.

    Returns:
        The values in the order of the contract. Times are microseconds since 1970 in UTC.

    Raises:
        Rejected: The message is invalid. It gives the first problem.
    """
    payload = parse_json_object(body, contract.max_body_bytes, [field.payload for field in contract.fields])
    found = [get_value(payload, field.payload) for field in contract.fields]
    for field, value in zip(contract.fields, found, strict=True):
        if value is MISSING:
            raise Rejected("missing_field", f"{field.shown} is missing")
    values = []
    for field, value in zip(contract.fields, found, strict=True):
        try:
            values.append(READERS[field.kind](value))
        except WrongValueError as wrong:
            detail = f"{field.shown} is {describe(value)}; expected {wrong.expected}"
            raise Rejected(wrong.reason, detail) from None
    if contract.skew is not None:
        for field, written, value in zip(contract.fields, found, values, strict=True):
            if field.kind == "time":
                _check_time(value, ingested_at, contract.skew, f"{field.shown} is {describe(written)}")
    return tuple(values)


def _check_time(time: int, ingested_at: int | None, skew: int, shown: str) -> None:
    if ingested_at is not None and time > ingested_at + skew:
        landed = (EPOCH + ingested_at * MICROSECOND).isoformat()
        allowed = f"at most {skew / 1_000_000:g} s after its landing at {landed}Z"
        raise Rejected("future_time", f"{shown}; expected {allowed}")
    if not FIRST_TRANSACTION <= time <= LAST_TRANSACTION:
        raise Rejected("invalid_time", f"{shown}; expected a year from {_FIRST_YEAR} to {_LAST_YEAR} in UTC")
