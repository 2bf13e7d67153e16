"""Reads a column of values of one field. Values that are not plain go through `core.field_values` one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.field_values import EARLIEST, LATEST, READERS, WrongValueError, read_amount
from fraud_assets.core.message_contract import ValueKind
from fraud_assets.core.schema import TIME

ARROW_TYPES: dict[ValueKind, Any] = {"id": pa.string(), "time": pa.int64(), "amount": pa.float64(), "flag": pa.bool_()}

# The pattern is narrow, because a time that Arrow cannot cast sends its whole chunk to the reader of single values.
_PLAIN_TIME = (
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"[T ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
)
_PLAIN_LOCAL = _PLAIN_TIME + r"$"
_PLAIN_ZONED = _PLAIN_TIME + r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"


# Each reader returns an Arrow array, with nulls for values that are not certainly valid, and a mask of the valid values
# (None if all are valid).


def _read_ids(values: Sequence[Any]) -> tuple[Any, np.ndarray | None]:
    types = set(map(type, values))
    if types == {int}:
        try:
            return pa.array(values, pa.int64()).cast(pa.string()), None
        except (pa.ArrowInvalid, OverflowError):
            pass
    elif types == {str} and all(values) and not any(map(str.isspace, values)) and "\0" not in "".join(values):
        return pa.array(values, pa.string()), None
    return _read_column("id", values)


def _read_amounts(values: Sequence[Any]) -> tuple[Any, np.ndarray]:
    plain = set(map(type, values)) <= {float, int}
    try:
        amounts = np.array(values if plain else list(map(_amount_or_nan, values)), dtype=np.float64)
    except OverflowError:
        amounts = np.array(list(map(_amount_or_nan, values)), dtype=np.float64)
    # Adding 0.0 turns -0.0 into 0.0.
    return pa.array(amounts + 0.0), np.isfinite(amounts) & (amounts >= 0)


def _amount_or_nan(value: Any) -> float:
    try:
        return read_amount(value)
    except WrongValueError:
        return math.nan


def _read_times(values: Sequence[Any]) -> tuple[Any, np.ndarray | None]:
    if set(map(type, values)) != {str}:
        values = [value if type(value) is str else None for value in values]
    texts = pa.array(values, pa.string())
    for pattern, kind in ((_PLAIN_LOCAL, pa.timestamp("us")), (_PLAIN_ZONED, TIME)):
        plain = pc.match_substring_regex(texts, pattern)
        if plain.true_count == 0:
            continue
        try:
            times = pc.if_else(plain, texts, None).cast(kind).cast(pa.int64())
        except pa.ArrowInvalid:  # One of the days does not exist; the reader of single values finds it.
            continue
        within = pc.and_(pc.greater_equal(times, EARLIEST), pc.less_equal(times, LATEST))
        times = pc.if_else(within, times, None)
        if times.null_count == 0:
            return times, None
        left = pc.is_null(times)
        others, _ = _read_column("time", texts.filter(left).to_pylist())
        times = pc.replace_with_mask(times, left, others)
        return times, times.is_valid().to_numpy(zero_copy_only=False)
    return _read_column("time", values)


def _read_flags(values: Sequence[Any]) -> tuple[Any, np.ndarray | None]:
    if set(map(type, values)) == {bool}:
        return pa.array(values, pa.bool_()), None
    return _read_column("flag", values)


def _read_column(kind: ValueKind, values: Sequence[Any]) -> tuple[Any, np.ndarray]:
    array = pa.array(map(partial(_read_or_none, READERS[kind]), values), ARROW_TYPES[kind])
    return array, array.is_valid().to_numpy(zero_copy_only=False)


def _read_or_none(reader: Callable[[Any], Any], value: Any) -> Any:
    if value is None:
        return None
    try:
        return reader(value)
    except WrongValueError:
        return None


COLUMN_READERS: dict[ValueKind, Callable[[Sequence[Any]], tuple[Any, np.ndarray | None]]] = {
    "id": _read_ids,
    "time": _read_times,
    "amount": _read_amounts,
    "flag": _read_flags,
}
