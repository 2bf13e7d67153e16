"""Parses whole tables of messages with `msgspec` and Arrow, at a multiple of the speed of `core.message_reader`.

The fast path keeps only rows that are plainly fine; every other row goes to `read_message`. So it may be timid, but
must never accept what `read_message` rejects, nor read another value. The tests hold it to that.
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
from fraud_assets.core.field_paths import MISSING, resolve, value_at
from fraud_assets.core.formats import Decoder
from fraud_assets.core.message_contract import MessageContract, ValueKind
from fraud_assets.core.message_reader import FIRST_TRANSACTION, LAST_TRANSACTION, read_message
from fraud_assets.core.schema import TIME

_CHUNK_ROWS = 8_192  # few enough that the Python objects of a chunk stay in the processor's cache
_CHUNK_BYTES = 16_777_216  # of fewer rows, where bodies are large: a chunk takes several times its bytes
_SAMPLE_ROWS = 16  # bodies of a chunk that are looked at for their keys
_MOST_KEYS = 200
_ANY_SIZE = 2**31
_MORE_SHAPES = 3  # further sets of keys that a chunk may hold before the rest is examined one by one
_FEWEST_ROWS = 64  # fewer are examined one by one at once


def parse_messages(
    raw: pa.Table, contract: MessageContract, decoder: Decoder | None = None
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
                found.append(read_message(bodies[index].as_py(), landed, contract))
                accepted[index] = True
            except Rejected as rejected:
                reasons.append(rejected.reason)
                details.append(rejected.detail)
        if found:
            values = zip(*found, strict=True)
            arrays = [
                pa.array(value, ARROW_TYPES[field.kind]) for field, value in zip(contract.fields, values, strict=True)
            ]
            columns = _replaced(columns, accepted, arrays)
            good |= accepted
        whole = bool(good.all())
        mask = pa.array(good)
        for column, chunk in zip(columns, chunks, strict=True):
            chunk.append(column if whole else column.filter(mask))
        masks.append(good)
        start += batch.num_rows
    result = {
        field.name: pa.chunked_array(chunk, type=ARROW_TYPES[field.kind]).cast(_STORED[field.kind])
        for field, chunk in zip(contract.fields, chunks, strict=True)
    }
    return result, np.concatenate(masks) if masks else np.zeros(0, dtype=bool), reasons, details


_STORED: dict[ValueKind, Any] = {**ARROW_TYPES, "time": TIME}


def _replaced(columns: list[Any], places: np.ndarray, values: list[Any]) -> list[Any]:
    mask = pa.array(places)
    return [pc.replace_with_mask(column, mask, value) for column, value in zip(columns, values, strict=True)]


def _fast(bodies: Any, ingested: np.ndarray | None, contract: MessageContract) -> tuple[list[Any], np.ndarray]:
    """Columns of all rows and which of them can be trusted; the others hold anything.

    Takes the rows that have the usual keys of these bodies, no more and no fewer. Decoding into a slotted
    type of those keys costs half of decoding into dicts.
    """
    data, offsets = read_buffers(bodies)
    texts = bodies.fill_null(b"").to_numpy(zero_copy_only=False).tolist()
    for index in _marked(data, offsets).tolist():
        texts[index] = strip_byte_order_mark(texts[index])
    for index in np.flatnonzero(np.diff(offsets) > contract.max_body_bytes).tolist():
        texts[index] = b""
    keys = _usual_keys(texts, contract)
    decode = None if keys is None else _shape_decoder(keys)
    rows, good = _decoded(texts, decode) if decode is not None else ([], np.zeros(len(texts), bool))
    if keys is None or not good.any():
        return [pa.nulls(len(texts), ARROW_TYPES[field.kind]) for field in contract.fields], good
    good &= _unambiguous(rows, len(keys), data, offsets)
    columns: list[Any] = []
    for field in contract.fields:
        values = _values(rows, keys, field.payload)
        array, fine = COLUMN_READERS[field.kind](values)
        if fine is not None:
            good &= fine
        columns.append(array)
        if field.kind == "time" and contract.skew is not None and ingested is not None:
            times = array.fill_null(0).to_numpy()
            good &= (times >= FIRST_TRANSACTION) & (times <= np.minimum(ingested + contract.skew, LAST_TRANSACTION))
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


def _usual_keys(texts: list[bytes], contract: MessageContract) -> tuple[str, ...] | None:
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
    pairs = bound_pair_counts(data, offsets)
    good: np.ndarray = pairs == width
    for index in np.flatnonzero(pairs > width).tolist():  # objects within, or colons within strings
        nested = count_pairs(list(astuple(rows[index])), FAST_DEPTH)
        good[index] = nested is not None and nested + width == pairs[index]
    brackets = np.flatnonzero(data == ord("["))
    if len(brackets) > FAST_DEPTH:
        good &= np.diff(np.searchsorted(brackets, offsets)) <= FAST_DEPTH
    return good
