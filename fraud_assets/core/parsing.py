"""JSON messages to typed rows: the one place where a transaction or a label is read and judged.

`_examine` is the authority: it reads one message with the standard library and says either its values or
why it is rejected. The fast path decodes whole chunks with `msgspec` and Arrow and keeps only rows that
are plainly fine; every other row goes to `_examine`. So the fast path may be timid, but must never accept
what `_examine` rejects, nor read another value. The tests hold it to that.

No judgement depends on the clock, so that a retry says what the first attempt said.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import astuple

from fraud_assets.core.bodies import (
    BYTE_ORDER_MARK,
    FAST_DEPTH,
    LongInteger,
    Rejected,
    bytes_of,
    describe,
    json_object,
    levels,
    most_pairs,
    without_mark,
)
from fraud_assets.core.formats import Decoder
from fraud_assets.core.local_time import local_times
from fraud_assets.core.paths import MISSING, resolve, value_at
from fraud_assets.core.quarantine_reasons import LABEL_PREFIX
from fraud_assets.core.schema import (
    INGESTED_AT,
    LABELS_PARSED,
    POSITION,
    POSITION_COLUMNS,
    QUARANTINED_TRANSACTIONS,
    TIME,
    TRANSACTION,
)
from fraud_assets.settings import CONTRACT_FIELDS, LABEL_FIELDS, Settings

VALID_TRANSACTIONS = pa.schema(
    [
        *TRANSACTION,
        pa.field("tx_during_weekend", pa.int64(), nullable=False),
        pa.field("tx_during_night", pa.int64(), nullable=False),
        *POSITION,
        INGESTED_AT,
        pa.field("tx_date", pa.date32(), nullable=False),
    ]
)
"""The first table of `parse_transactions`; its second has the schema `QUARANTINED_TRANSACTIONS`."""

VALID_LABELS = pa.schema([*POSITION, *LABELS_PARSED, pa.field("value", pa.binary())])
"""The first table of `parse_labels`."""

REJECTED_LABELS = pa.schema(
    [field for field in QUARANTINED_TRANSACTIONS if field.name not in ("ingested_at", "ingest_date")]
)
"""The second table of `parse_labels`."""

_CHUNK_ROWS = 8_192  # few enough that the Python objects of a chunk stay in the processor's cache
_CHUNK_BYTES = 16_777_216  # of fewer rows, where bodies are large: a chunk takes several times its bytes
_SAMPLE_ROWS = 16  # bodies of a chunk that are looked at for their keys
_MOST_KEYS = 200
_ANY_SIZE = 2**31
_MORE_SHAPES = 3  # further sets of keys that a chunk may hold before the rest is examined one by one
_FEWEST_ROWS = 64  # fewer are examined one by one at once

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - local times are compared before their zone is applied
_MICROSECOND = timedelta(microseconds=1)
_EARLIEST = (datetime.min - _EPOCH) // _MICROSECOND
_LATEST = (datetime.max - _EPOCH) // _MICROSECOND
# Windows are compared in nanoseconds, and 64 bits of them reach from 1677 to 2262.
_FIRST_YEAR, _LAST_YEAR = 1900, 2199
_FIRST_TRANSACTION = (datetime(_FIRST_YEAR, 1, 1) - _EPOCH) // _MICROSECOND  # noqa: DTZ001
_LAST_TRANSACTION = (datetime(_LAST_YEAR + 1, 1, 1) - _EPOCH) // _MICROSECOND - 1  # noqa: DTZ001
_LONGEST_SKEW_SECONDS = 1e12  # longer than all of time; keeps the sum within int64

# [0-9] and not \d, which takes any script's digits.
_NUMERIC = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NOT_A_NUMBER = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]+))?)?"
    r"(?:([Zz])|([+-])([0-9]{2})(?::?([0-9]{2}))?)?"
)
# Narrow, because a time that Arrow cannot cast sends its whole chunk to the reader of single values.
_PLAIN_TIME = (
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"[T ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
)
_PLAIN_LOCAL = _PLAIN_TIME + r"$"
_PLAIN_ZONED = _PLAIN_TIME + r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"

_FLAGS = {"false": False, "true": True}
_FLAG_NUMBER = re.compile(r"([01])(?:\.0*)?")  # with a fraction, as pandas writes a column with missing values

_Kind = Literal["id", "time", "amount", "flag"]


class _WrongValue(Exception):
    """A value cannot be read; carries the reason and what was expected instead."""

    def __init__(self, reason: str, expected: str) -> None:
        super().__init__(reason, expected)
        self.reason = reason
        self.expected = expected


@dataclass(frozen=True)
class _Field:
    name: str
    payload: str
    kind: _Kind

    @property
    def shown(self) -> str:
        return self.name if self.name == self.payload else f"{self.payload} ({self.name})"


@dataclass(frozen=True)
class _Contract:
    """What a message must hold. `skew` in microseconds; None means that times are not judged."""

    fields: tuple[_Field, ...]
    max_body_bytes: int
    skew: int | None


# ---------------------------------------------------------------------------------------------------------
# The public functions.


def parse_transactions(raw: pa.Table, settings: Settings, decoder: Decoder | None = None) -> tuple[pa.Table, pa.Table]:
    """Read landed transactions.

    Args:
        raw: Rows of `raw_transactions`.
        settings: Field mapping, limits and time zone.
        decoder: Reads the bodies that a schema registry's serializer framed; see `kafka.schemas`.

    Returns:
        The good rows (`VALID_TRANSACTIONS`) and the rejected ones (`QUARANTINED_TRANSACTIONS`), both in the
        order of the input. Together they are the input: no row is lost, none is in both.
    """
    contract = _transaction_contract(settings)
    columns, good, reasons, details = _parse(raw, contract, decoder)
    times = columns["tx_datetime"]
    weekend, night = calendar_flags(times, settings.time_zone)
    kept = _filter(raw.select([*POSITION_COLUMNS, "ingested_at"]), good)
    valid = _table(
        {
            **columns,
            "tx_during_weekend": weekend,
            "tx_during_night": night,
            **{name: kept[name] for name in kept.column_names},
            # Through a naive time: the date in UTC, without a look into a time zone database.
            "tx_date": times.cast(pa.timestamp("us")).cast(pa.date32()),
        },
        VALID_TRANSACTIONS,
    )
    return valid, _rejected(raw, good, reasons, details, QUARANTINED_TRANSACTIONS)


def parse_labels(raw: pa.Table, settings: Settings, decoder: Decoder | None = None) -> tuple[pa.Table, pa.Table]:
    """Read fraud labels.

    Args:
        raw: Messages: the columns of `raw_transactions` without those of the ingest.
        settings: Field mapping and limits.
        decoder: As for `parse_transactions`.

    Returns:
        The good rows (`VALID_LABELS`) and the rejected ones (`REJECTED_LABELS`), both in the order of the
        input; each reason starts with `label_`.
    """
    contract = _label_contract(settings)
    columns, good, reasons, details = _parse(raw, contract, decoder)
    kept = _filter(raw.select([*POSITION_COLUMNS, "value"]), good)
    valid = _table({**{name: kept[name] for name in kept.column_names}, **columns}, VALID_LABELS)
    return valid, _rejected(raw, good, [LABEL_PREFIX + reason for reason in reasons], details, REJECTED_LABELS)


def calendar_flags(times: Any, time_zone: str) -> tuple[Any, Any]:
    """Weekend (Saturday, Sunday) and night (hour 0 to 6) of UTC times in a time zone, as int64 0 or 1."""
    local = local_times(times, time_zone)
    weekend = pc.greater_equal(pc.day_of_week(local), 5)
    night = pc.less_equal(pc.hour(local), 6)
    return weekend.cast(pa.int64()), night.cast(pa.int64())


# ---------------------------------------------------------------------------------------------------------
# Contracts.

_TRANSACTION_KINDS: dict[str, _Kind] = {
    "transaction_id": "id",
    "tx_datetime": "time",
    "customer_id": "id",
    "terminal_id": "id",
    "tx_amount": "amount",
}
_LABEL_KINDS: dict[str, _Kind] = {"transaction_id": "id", "is_fraud": "flag", "labelled_at": "time"}


def _transaction_contract(settings: Settings) -> _Contract:
    fields = tuple(_Field(name, settings.payload_field(name), _TRANSACTION_KINDS[name]) for name in CONTRACT_FIELDS)
    skew = round(min(settings.future_skew_seconds, _LONGEST_SKEW_SECONDS) * 1_000_000)
    return _Contract(fields, settings.max_body_bytes, skew)


def _label_contract(settings: Settings) -> _Contract:
    fields = tuple(_Field(name, settings.payload_field(name), _LABEL_KINDS[name]) for name in LABEL_FIELDS)
    return _Contract(fields, settings.max_body_bytes, None)


# ---------------------------------------------------------------------------------------------------------
# The authority: one message.


def _examine(body: bytes | None, ingested_at: int | None, contract: _Contract) -> tuple[Any, ...]:
    """The values of one message in the order of the contract; times in microseconds since 1970 UTC.

    Raises:
        Rejected: with the first thing that is wrong.
    """
    payload = json_object(body, contract.max_body_bytes, [field.payload for field in contract.fields])
    found = [value_at(payload, field.payload) for field in contract.fields]
    for field, value in zip(contract.fields, found, strict=True):
        if value is MISSING:
            raise Rejected("missing_field", f"{field.shown} is missing")
    values = []
    for field, value in zip(contract.fields, found, strict=True):
        try:
            values.append(_READERS[field.kind](value))
        except _WrongValue as wrong:
            detail = f"{field.shown} is {describe(value)}; expected {wrong.expected}"
            raise Rejected(wrong.reason, detail) from None
    if contract.skew is not None:
        for field, written, value in zip(contract.fields, found, values, strict=True):
            if field.kind == "time":
                _judge_time(value, ingested_at, contract.skew, f"{field.shown} is {describe(written)}")
    return tuple(values)


def _judge_time(time: int, ingested_at: int | None, skew: int, shown: str) -> None:
    if ingested_at is not None and time > ingested_at + skew:
        landed = (_EPOCH + ingested_at * _MICROSECOND).isoformat()
        allowed = f"at most {skew / 1_000_000:g} s after its landing at {landed}Z"
        raise Rejected("future_time", f"{shown}; expected {allowed}")
    if not _FIRST_TRANSACTION <= time <= _LAST_TRANSACTION:
        raise Rejected("invalid_time", f"{shown}; expected a year from {_FIRST_YEAR} to {_LAST_YEAR} in UTC")


def _read_id(value: Any) -> str:
    if type(value) is int:
        try:
            return str(value)
        except ValueError:
            raise _WrongValue("wrong_type", "an integer of fewer digits or a string") from None
    if type(value) is not str:
        raise _WrongValue("wrong_type", "an integer or a string")
    if not value or value.isspace():
        raise _WrongValue("invalid_id", "a string that is not blank")
    if "\0" in value:
        raise _WrongValue("invalid_id", "a string without NUL characters")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _WrongValue("invalid_id", "a string without lone surrogates") from None
    return value


def _read_amount(value: Any) -> float:
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
        raise _WrongValue("wrong_type", "a number")
    if not math.isfinite(amount):
        raise _WrongValue("not_finite", "a finite number")
    if amount < 0:
        raise _WrongValue("negative_amount", "zero or more")
    return amount + 0.0  # makes 0.0 of -0.0


def _read_time(value: Any) -> int:
    """Microseconds since 1970 UTC; digits beyond the microsecond are cut."""
    if type(value) is not str:
        raise _WrongValue("wrong_type", "an ISO 8601 string such as 2018-04-01T00:00:31Z")
    match = _TIME.fullmatch(value)
    if match is None:
        raise _WrongValue("invalid_time", "ISO 8601 with date and time of day, such as 2018-04-01T00:00:31Z")
    year, month, day, hour, minute, second, fraction, _, sign, zone_hours, zone_minutes = match.groups()
    microsecond = int((fraction or "0")[:6].ljust(6, "0"))
    try:
        clock = int(hour), int(minute), int(second or 0), microsecond
        local = datetime(int(year), int(month), int(day), *clock)  # noqa: DTZ001 - its zone follows
    except ValueError:
        raise _WrongValue("invalid_time", "a date and time of day that exist") from None
    offset = 0
    if sign:
        hours, minutes = int(zone_hours), int(zone_minutes or 0)
        if hours > 23 or minutes > 59:
            raise _WrongValue("invalid_time", "an offset below 24 hours")
        offset = (hours * 60 + minutes) * 60_000_000 * (-1 if sign == "-" else 1)
    time = (local - _EPOCH) // _MICROSECOND - offset
    if not _EARLIEST <= time <= _LATEST:
        raise _WrongValue("invalid_time", "a year from 1 to 9999 in UTC")
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
    raise _WrongValue("wrong_type", "true, false, 0 or 1")


_READERS: dict[_Kind, Callable[[Any], Any]] = {
    "id": _read_id,
    "time": _read_time,
    "amount": _read_amount,
    "flag": _read_flag,
}


# ---------------------------------------------------------------------------------------------------------
# All messages: the fast path first, then the authority for what is left.


def _parse(
    raw: pa.Table, contract: _Contract, decoder: Decoder | None = None
) -> tuple[dict[str, Any], np.ndarray, list[str], list[str]]:
    """Columns of the good rows, which rows are good, and reason and detail of each other row in order."""
    chunks: list[list[Any]] = [[] for _ in contract.fields]
    masks: list[np.ndarray] = []
    reasons: list[str] = []
    details: list[str] = []
    judged = raw.select(["value", "ingested_at"] if contract.skew is not None else ["value"])
    undecoded: dict[int, Rejected] = {}
    if decoder is not None:
        bodies, undecoded = decoder.json_bodies(raw["value"], raw["headers"], contract.max_body_bytes)
        judged = judged.set_column(0, "value", bodies)
        contract = replace(contract, max_body_bytes=_ANY_SIZE)  # the limit is one of what came
    start = 0
    usual_bytes = max(1, judged.nbytes // max(1, judged.num_rows))
    for batch in judged.to_batches(max_chunksize=max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // usual_bytes))):
        if batch.num_rows == 0:
            continue
        bodies = batch.column("value").cast(pa.binary())
        ingested = None
        if contract.skew is not None:
            ingested = batch.column("ingested_at").cast(TIME).cast(pa.int64()).to_numpy()
        columns, good = _fast(bodies, ingested, contract)
        for _ in range(_MORE_SHAPES):
            left = ~good
            if np.count_nonzero(left) < _FEWEST_ROWS:
                break
            more, taken = _fast(bodies.filter(pa.array(left)), None if ingested is None else ingested[left], contract)
            if not taken.any():
                break
            left[left] = taken
            columns = _replaced(columns, left, [array.filter(pa.array(taken)) for array in more])
            good |= left
        found: list[tuple[Any, ...]] = []
        accepted = np.zeros(batch.num_rows, dtype=bool)
        for index in np.flatnonzero(~good).tolist():
            landed = None if ingested is None else int(ingested[index])
            try:
                if start + index in undecoded:
                    raise undecoded[start + index]
                found.append(_examine(bodies[index].as_py(), landed, contract))
                accepted[index] = True
            except Rejected as rejected:
                reasons.append(rejected.reason)
                details.append(rejected.detail)
        if found:
            values = zip(*found, strict=True)
            arrays = [pa.array(value, _ARROW[field.kind]) for field, value in zip(contract.fields, values, strict=True)]
            columns = _replaced(columns, accepted, arrays)
            good |= accepted
        whole = bool(good.all())
        mask = pa.array(good)
        for column, chunk in zip(columns, chunks, strict=True):
            chunk.append(column if whole else column.filter(mask))
        masks.append(good)
        start += batch.num_rows
    result = {
        field.name: pa.chunked_array(chunk, type=_ARROW[field.kind]).cast(_STORED[field.kind])
        for field, chunk in zip(contract.fields, chunks, strict=True)
    }
    return result, np.concatenate(masks) if masks else np.zeros(0, dtype=bool), reasons, details


_ARROW: dict[_Kind, Any] = {"id": pa.string(), "time": pa.int64(), "amount": pa.float64(), "flag": pa.bool_()}
_STORED: dict[_Kind, Any] = {**_ARROW, "time": TIME}


def _replaced(columns: list[Any], places: np.ndarray, values: list[Any]) -> list[Any]:
    mask = pa.array(places)
    return [pc.replace_with_mask(column, mask, value) for column, value in zip(columns, values, strict=True)]


def _fast(bodies: Any, ingested: np.ndarray | None, contract: _Contract) -> tuple[list[Any], np.ndarray]:
    """Columns of all rows and which of them can be trusted; the others hold anything.

    Takes the rows that have the usual keys of these bodies, no more and no fewer. Decoding into a slotted
    type of those keys costs half of decoding into dicts.
    """
    data, offsets = bytes_of(bodies)
    texts = bodies.fill_null(b"").to_numpy(zero_copy_only=False).tolist()
    for index in _marked(data, offsets).tolist():
        texts[index] = without_mark(texts[index])
    for index in np.flatnonzero(np.diff(offsets) > contract.max_body_bytes).tolist():
        texts[index] = b""
    keys = _usual_keys(texts, contract)
    decode = None if keys is None else _shape_decoder(keys)
    rows, good = _decoded(texts, decode) if decode is not None else ([], np.zeros(len(texts), bool))
    if keys is None or not good.any():
        return [pa.nulls(len(texts), _ARROW[field.kind]) for field in contract.fields], good
    good &= _unambiguous(rows, len(keys), data, offsets)
    columns: list[Any] = []
    for field in contract.fields:
        values = _values(rows, keys, field.payload)
        array, fine = _COLUMNS[field.kind](values)
        if fine is not None:
            good &= fine
        columns.append(array)
        if field.kind == "time" and contract.skew is not None and ingested is not None:
            times = array.fill_null(0).to_numpy()
            good &= (times >= _FIRST_TRANSACTION) & (times <= np.minimum(ingested + contract.skew, _LAST_TRANSACTION))
    return columns, good


def _values(rows: list[Any], keys: tuple[str, ...], path: str) -> list[Any]:
    """A field of all rows; None where an object on the way to it does not hold it."""
    found = resolve(keys, path)
    assert found is not None
    key, below = found
    values = list(map(attrgetter(f"f{keys.index(key)}"), rows))
    if below:
        values = [None if (value := value_at(inner, below)) is MISSING else value for inner in values]
    return values


def _marked(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The rows that may start with a byte order mark."""
    starts, ends = offsets[:-1], offsets[1:]
    rows = np.flatnonzero(starts < ends)
    return rows[data[starts[rows]] == BYTE_ORDER_MARK[0]]


def _usual_keys(texts: list[bytes], contract: _Contract) -> tuple[str, ...] | None:
    """The most frequent keys in a sample of the bodies; None if no body of the sample could be taken."""
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts[:: max(1, len(texts) // _SAMPLE_ROWS)]:
        try:
            row = msgspec.json.decode(text)
        except (ValueError, RecursionError):
            continue
        if type(row) is not dict or len(row) > _MOST_KEYS:
            continue
        if all(resolve(row, field.payload) for field in contract.fields):
            counts[tuple(row)] += 1
    return counts.most_common(1)[0][0] if counts else None


@lru_cache(maxsize=16)
def _shape_decoder(keys: tuple[str, ...]) -> Callable[[bytes], Any] | None:
    """Decoder of objects with exactly these keys into fields `f0`, `f1`, …; None if `msgspec` takes no such key."""
    names = [f"f{index}" for index in range(len(keys))]
    try:
        shape = msgspec.defstruct(
            "Shape",
            [(name, Any) for name in names],
            rename=dict(zip(names, keys, strict=True)),
            forbid_unknown_fields=True,
            gc=False,  # what JSON gives holds no cycles
        )
    except (ValueError, TypeError):
        return None
    return msgspec.json.Decoder(shape).decode


def _decoded(texts: list[bytes], decode: Callable[[bytes], Any]) -> tuple[list[Any], np.ndarray]:
    """Each body decoded, and which ones could be. The others get the row of a neighbour.

    So the columns keep one type and stay on the quick road.
    """
    rows: list[Any] = []
    good = np.ones(len(texts), dtype=bool)
    pending = map(decode, texts)
    while len(rows) < len(texts):
        # `extend` keeps what it took before an error and `pending` stands behind the body that raised it,
        # so a body that cannot be decoded costs one turn of this loop, and the others none.
        try:
            rows.extend(pending)
        except (ValueError, RecursionError):
            good[len(rows)] = False
            rows.append(None)
    if not good.all():
        neighbour = next((row for row in rows if row is not None), None)
        rows = [neighbour if row is None else row for row in rows]
    return rows, good


def _unambiguous(rows: list[Any], width: int, data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Which rows of `width` keys surely have no repeated key and no deep nesting; `msgspec` tells of neither."""
    pairs = most_pairs(data, offsets)
    good: np.ndarray = pairs == width
    for index in np.flatnonzero(pairs > width).tolist():  # objects within, or colons within strings
        nested = levels(list(astuple(rows[index])), FAST_DEPTH)
        good[index] = nested is not None and nested + width == pairs[index]
    brackets = np.flatnonzero(data == ord("["))
    if len(brackets) > FAST_DEPTH:
        good &= np.diff(np.searchsorted(brackets, offsets)) <= FAST_DEPTH
    return good


# Columns of the fast path: an Arrow array, null where a value is not plainly fine, and which values are;
# None instead of the latter when all are. Single values go through the readers of the authority.


def _id_column(values: Sequence[Any]) -> tuple[Any, np.ndarray | None]:
    types = set(map(type, values))
    if types == {int}:
        try:
            return pa.array(values, pa.int64()).cast(pa.string()), None
        except (pa.ArrowInvalid, OverflowError):
            pass
    elif types == {str} and all(values) and not any(map(str.isspace, values)) and "\0" not in "".join(values):
        return pa.array(values, pa.string()), None
    return _read_column("id", values)


def _amount_column(values: Sequence[Any]) -> tuple[Any, np.ndarray]:
    plain = set(map(type, values)) <= {float, int}
    try:
        amounts = np.array(values if plain else list(map(_amount_or_nan, values)), dtype=np.float64)
    except OverflowError:
        amounts = np.array(list(map(_amount_or_nan, values)), dtype=np.float64)
    return pa.array(amounts + 0.0), np.isfinite(amounts) & (amounts >= 0)  # + 0.0 makes 0.0 of -0.0


def _amount_or_nan(value: Any) -> float:
    try:
        return _read_amount(value)
    except _WrongValue:
        return math.nan


def _time_column(values: Sequence[Any]) -> tuple[Any, np.ndarray | None]:
    if set(map(type, values)) != {str}:
        values = [value if type(value) is str else None for value in values]
    texts = pa.array(values, pa.string())
    for pattern, kind in ((_PLAIN_LOCAL, pa.timestamp("us")), (_PLAIN_ZONED, TIME)):
        plain = pc.match_substring_regex(texts, pattern)
        if plain.true_count == 0:
            continue
        try:
            times = pc.if_else(plain, texts, None).cast(kind).cast(pa.int64())
        except pa.ArrowInvalid:  # a day that does not exist: find it value by value
            continue
        within = pc.and_(pc.greater_equal(times, _EARLIEST), pc.less_equal(times, _LATEST))
        times = pc.if_else(within, times, None)
        if times.null_count == 0:
            return times, None
        left = pc.is_null(times)
        others, _ = _read_column("time", texts.filter(left).to_pylist())
        times = pc.replace_with_mask(times, left, others)
        return times, times.is_valid().to_numpy(zero_copy_only=False)
    return _read_column("time", values)


def _flag_column(values: Sequence[Any]) -> tuple[Any, np.ndarray | None]:
    if set(map(type, values)) == {bool}:
        return pa.array(values, pa.bool_()), None
    return _read_column("flag", values)


def _read_column(kind: _Kind, values: Sequence[Any]) -> tuple[Any, np.ndarray]:
    array = pa.array(map(partial(_read_or_none, _READERS[kind]), values), _ARROW[kind])
    return array, array.is_valid().to_numpy(zero_copy_only=False)


def _read_or_none(reader: Callable[[Any], Any], value: Any) -> Any:
    if value is None:
        return None
    try:
        return reader(value)
    except _WrongValue:
        return None


_COLUMNS: dict[_Kind, Callable[[Sequence[Any]], tuple[Any, np.ndarray | None]]] = {
    "id": _id_column,
    "time": _time_column,
    "amount": _amount_column,
    "flag": _flag_column,
}


# ---------------------------------------------------------------------------------------------------------
# Tables.


def _filter(table: pa.Table, good: np.ndarray) -> pa.Table:
    return table if good.all() else table.filter(pa.array(good))


def _table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    return pa.table({field.name: columns[field.name] for field in schema}).cast(schema)


def _rejected(raw: pa.Table, good: np.ndarray, reasons: list[str], details: list[str], schema: pa.Schema) -> pa.Table:
    """The rows that are not good, untouched, with reason and detail."""
    rows = raw.filter(pa.array(~good))
    columns = {name: rows[name] for name in rows.column_names}
    return _table(
        {**columns, "reason": pa.array(reasons, pa.string()), "detail": pa.array(details, pa.string())}, schema
    )
