"""Parses whole tables of messages with `msgspec` and Arrow, several times as fast as `core.message_reader`.

The fast path keeps only rows that are certainly valid; `read_message` parses every other row. The fast path may reject
valid rows. It must never accept a row that `read_message` rejects or read a different value. The tests verify this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import astuple

from fraud_assets.core.bodies import (
    BYTE_ORDER_MARK,
    FAST_DEPTH,
    Rejected,
    bound_pair_counts,
    count_pairs,
    read_buffers,
    strip_byte_order_mark,
)
from fraud_assets.core.column_values import ARROW_TYPES, COLUMN_READERS
from fraud_assets.core.field_paths import MISSING, get_value, resolve
from fraud_assets.core.formats import Decoder
from fraud_assets.core.message_contract import MessageContract, ValueKind
from fraud_assets.core.message_reader import FIRST_TRANSACTION, LAST_TRANSACTION, read_message
from fraud_assets.core.schema import TIME

_CHUNK_ROWS = 8_192
"""Maximum rows of a chunk, so that its Python objects stay in the processor's cache."""
_CHUNK_BYTES = 16_777_216
"""Maximum bytes of a chunk. Large bodies make chunks of fewer rows, because a chunk takes several times its bytes."""
_SAMPLE_ROWS = 16
"""Number of bodies of a chunk that are sampled for their keys."""
_MAX_KEYS = 200
_ANY_SIZE = 2**31
_MORE_SHAPES = 3
"""Number of further sets of keys that the fast path tries before it reads the remaining rows one by one."""
_MIN_ROWS = 64
"""If fewer rows remain, they are read one by one without another attempt."""
_STORED: dict[ValueKind, Any] = {**ARROW_TYPES, "time": TIME}


def parse_messages(
    raw: pa.Table, contract: MessageContract, decoder: Decoder | None = None
) -> tuple[dict[str, Any], np.ndarray, list[str], list[str]]:
    """Parses messages to columns.

    Args:
        raw: Messages with `value`; also `ingested_at` if the contract checks times, and `headers` with a decoder.
        contract: The required fields and limits.
        decoder: Decodes bodies that a schema registry's serializer framed.

    Returns:
        The columns of the valid rows by field name; a mask of the valid rows (bool, shape (rows,)); the reasons of the
        rejected rows, in order; and their details.
    """
    chunks: list[list[Any]] = [[] for _ in contract.fields]
    masks: list[np.ndarray] = []
    reasons: list[str] = []
    details: list[str] = []
    messages = raw.select(["value", "ingested_at"] if contract.skew is not None else ["value"])
    undecoded: dict[int, Rejected] = {}
    if decoder is not None:
        bodies, undecoded = decoder.json_bodies(raw["value"], raw["headers"], contract.max_body_bytes)
        messages = messages.set_column(0, "value", bodies)
        # The limit applies to the received body and not to the decoded one.
        contract = replace(contract, max_body_bytes=_ANY_SIZE)
    start = 0
    mean_bytes = max(1, messages.nbytes // max(1, messages.num_rows))
    for batch in messages.to_batches(max_chunksize=max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // mean_bytes))):
        if batch.num_rows == 0:
            continue
        bodies = batch.column("value").cast(pa.binary())
        ingested = None
        if contract.skew is not None:
            ingested = batch.column("ingested_at").cast(TIME).cast(pa.int64()).to_numpy()
        columns, good = _parse_by_shapes(bodies, ingested, contract)
        columns, accepted, rejections = _parse_remaining(bodies, ingested, contract, columns, good, undecoded, start)
        good |= accepted
        reasons += [rejected.reason for rejected in rejections]
        details += [rejected.detail for rejected in rejections]
        all_good = bool(good.all())
        mask = pa.array(good)
        for column, chunk in zip(columns, chunks, strict=True):
            chunk.append(column if all_good else column.filter(mask))
        masks.append(good)
        start += batch.num_rows
    result = {
        field.name: pa.chunked_array(chunk, type=ARROW_TYPES[field.kind]).cast(_STORED[field.kind])
        for field, chunk in zip(contract.fields, chunks, strict=True)
    }
    return result, np.concatenate(masks) if masks else np.zeros(0, dtype=bool), reasons, details


def _parse_by_shapes(
    bodies: Any, ingested: np.ndarray | None, contract: MessageContract
) -> tuple[list[Any], np.ndarray]:
    """Runs the fast path for the most frequent set of keys, then for further sets of keys in the remaining rows."""
    columns, good = _parse_fast(bodies, ingested, contract)
    for _ in range(_MORE_SHAPES):
        rest = ~good
        if np.count_nonzero(rest) < _MIN_ROWS:
            break
        more, valid = _parse_fast(bodies.filter(pa.array(rest)), None if ingested is None else ingested[rest], contract)
        if not valid.any():
            break
        rest[rest] = valid
        columns = _replace_rows(columns, rest, [array.filter(pa.array(valid)) for array in more])
        good |= rest
    return columns, good


def _parse_remaining(
    bodies: Any,
    ingested: np.ndarray | None,
    contract: MessageContract,
    columns: list[Any],
    good: np.ndarray,
    undecoded: dict[int, Rejected],
    start: int,
) -> tuple[list[Any], np.ndarray, list[Rejected]]:
    """Reads the rows that are not `good` one by one.

    Args:
        bodies: The bodies of a chunk.
        ingested: Their landing times, microseconds since 1970; None if times are not checked.
        contract: The required fields and limits.
        columns: The columns of the chunk.
        good: The rows that the fast path parsed.
        undecoded: Rejections of the decoder by row number of the whole table.
        start: Row number of the chunk's first row in the whole table.

    Returns:
        The columns with the values of the accepted rows, a mask of the accepted rows, and the rejections in order.
    """
    found: list[tuple[Any, ...]] = []
    rejections: list[Rejected] = []
    accepted = np.zeros(len(bodies), dtype=bool)
    for index in np.flatnonzero(~good).tolist():
        landed = None if ingested is None else int(ingested[index])
        try:
            if start + index in undecoded:
                raise undecoded[start + index]
            found.append(read_message(bodies[index].as_py(), landed, contract))
            accepted[index] = True
        except Rejected as rejected:
            rejections.append(rejected)
    if found:
        values = zip(*found, strict=True)
        arrays = [
            pa.array(value, ARROW_TYPES[field.kind]) for field, value in zip(contract.fields, values, strict=True)
        ]
        columns = _replace_rows(columns, accepted, arrays)
    return columns, accepted, rejections


def _replace_rows(columns: list[Any], rows: np.ndarray, values: list[Any]) -> list[Any]:
    mask = pa.array(rows)
    return [pc.replace_with_mask(column, mask, value) for column, value in zip(columns, values, strict=True)]


def _parse_fast(bodies: Any, ingested: np.ndarray | None, contract: MessageContract) -> tuple[list[Any], np.ndarray]:
    """Parses the rows that have exactly the most frequent keys of these bodies.

    Decoding into a slotted type with those keys costs half of decoding into dicts.

    Returns:
        Columns of all rows, and a mask of the rows that are certainly valid. The other rows have arbitrary values.
    """
    data, offsets = read_buffers(bodies)
    texts = bodies.fill_null(b"").to_numpy(zero_copy_only=False).tolist()
    for index in _find_marked(data, offsets).tolist():
        texts[index] = strip_byte_order_mark(texts[index])
    for index in np.flatnonzero(np.diff(offsets) > contract.max_body_bytes).tolist():
        texts[index] = b""
    keys = _find_frequent_keys(texts, contract)
    decode = None if keys is None else _make_decoder(keys)
    rows, good = _decode_all(texts, decode) if decode is not None else ([], np.zeros(len(texts), bool))
    if keys is None or not good.any():
        return [pa.nulls(len(texts), ARROW_TYPES[field.kind]) for field in contract.fields], good
    good &= _find_unambiguous(rows, len(keys), data, offsets)
    columns: list[Any] = []
    for field in contract.fields:
        values = _extract_values(rows, keys, field.payload)
        array, valid = COLUMN_READERS[field.kind](values)
        if valid is not None:
            good &= valid
        columns.append(array)
        if field.kind == "time" and contract.skew is not None and ingested is not None:
            times = array.fill_null(0).to_numpy()
            good &= (times >= FIRST_TRANSACTION) & (times <= np.minimum(ingested + contract.skew, LAST_TRANSACTION))
    return columns, good


def _extract_values(rows: list[Any], keys: tuple[str, ...], path: str) -> list[Any]:
    """Returns the values of a field in all rows, None in rows without the field."""
    found = resolve(keys, path)
    assert found is not None
    key, rest = found
    values = list(map(attrgetter(f"f{keys.index(key)}"), rows))
    if rest:
        values = [None if (value := get_value(inner, rest)) is MISSING else value for inner in values]
    return values


def _find_marked(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns the row numbers of bodies that may start with a byte order mark."""
    starts, ends = offsets[:-1], offsets[1:]
    rows = np.flatnonzero(starts < ends)
    return rows[data[starts[rows]] == BYTE_ORDER_MARK[0]]


def _find_frequent_keys(texts: list[bytes], contract: MessageContract) -> tuple[str, ...] | None:
    """Returns the most frequent keys in a sample of the bodies, or None if no body of the sample is usable."""
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts[:: max(1, len(texts) // _SAMPLE_ROWS)]:
        try:
            row = msgspec.json.decode(text)
        except (ValueError, RecursionError):
            continue
        if type(row) is not dict or len(row) > _MAX_KEYS:
            continue
        if all(resolve(row, field.payload) for field in contract.fields):
            counts[tuple(row)] += 1
    return counts.most_common(1)[0][0] if counts else None


@lru_cache(maxsize=16)
def _make_decoder(keys: tuple[str, ...]) -> Callable[[bytes], Any] | None:
    """Creates a decoder of objects with exactly these keys into fields `f0`, `f1`, ….

    Returns:
        The decoder, or None if `msgspec` does not support one of the keys.
    """
    names = [f"f{index}" for index in range(len(keys))]
    try:
        shape = msgspec.defstruct(
            "Shape",
            [(name, Any) for name in names],
            rename=dict(zip(names, keys, strict=True)),
            forbid_unknown_fields=True,
            gc=False,  # Decoded JSON has no reference cycles.
        )
    except (ValueError, TypeError):
        return None
    return msgspec.json.Decoder(shape).decode


def _decode_all(texts: list[bytes], decode: Callable[[bytes], Any]) -> tuple[list[Any], np.ndarray]:
    """Decodes all bodies.

    Returns:
        The rows, and a mask of those that could be decoded. The others get the row of another body, so that each
        column keeps one type and the column readers stay fast.
    """
    rows: list[Any] = []
    good = np.ones(len(texts), dtype=bool)
    pending = map(decode, texts)
    while len(rows) < len(texts):
        # If a body cannot be decoded, `extend` keeps the rows before it and `pending` continues after it. So only such
        # a body costs an iteration of this loop.
        try:
            rows.extend(pending)
        except (ValueError, RecursionError):
            good[len(rows)] = False
            rows.append(None)
    if not good.all():
        filler = next((row for row in rows if row is not None), None)
        rows = [filler if row is None else row for row in rows]
    return rows, good


def _find_unambiguous(rows: list[Any], width: int, data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns a mask of the rows of `width` keys that certainly have no repeated key and no deep nesting.

    `msgspec` reports neither.
    """
    pairs = bound_pair_counts(data, offsets)
    good: np.ndarray = pairs == width
    for index in np.flatnonzero(pairs > width).tolist():  # These have nested objects, or colons within strings.
        nested = count_pairs(list(astuple(rows[index])), FAST_DEPTH)
        good[index] = nested is not None and nested + width == pairs[index]
    brackets = np.flatnonzero(data == ord("["))
    if len(brackets) > FAST_DEPTH:
        good &= np.diff(np.searchsorted(brackets, offsets)) <= FAST_DEPTH
    return good
