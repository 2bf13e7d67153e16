"""Arrow columns in a form that DuckDB writes as JSON without changing a value."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.binary import json_of_bytes, text_of_bytes, uuid_text
from fraud_assets.core.local_time import iso_text

_JSON = {b"holds": b"JSON"}
_MOST = 2**63 - 1
_MICROSECONDS = {"s": 1_000_000, "ms": 1_000}
_BEYOND = "a time beyond the calendar"


def plain_columns(table: pa.Table) -> pa.Table:
    """The table with times, dates and bytes as text, and without types that DuckDB does not take.

    Times are ISO 8601, in UTC with a Z where they have a zone, cut to microseconds. Bytes are text, UUIDs their text.
    A column with bytes that are no text holds JSON; see `holds_json`.
    """
    for index, field in enumerate(table.schema):
        values = table.column(index)
        if pa.types.is_dictionary(field.type):
            values = values.cast(field.type.value_type)
        new, metadata = _plain(values), None
        if is_bytes(values.type):
            text = text_column(values)
            exact = text.null_count == values.null_count
            new, metadata = (text, None) if exact else (_json_of(values), _JSON)
        table = table.set_column(index, pa.field(field.name, new.type, metadata=metadata), new)
    return table


def holds_json(field: pa.Field) -> bool:
    """Whether a column of `plain_columns` holds JSON texts."""
    return field.metadata == _JSON


def is_bytes(kind: pa.DataType) -> bool:
    """Whether the type is one of bytes, or a UUID."""
    types = pa.types
    return bool(
        isinstance(kind, pa.UuidType)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def text_column(values: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Text of a column of bytes or UUIDs, null where the bytes are no text."""
    if isinstance(values.type, pa.UuidType):
        bytes_of = values.cast(pa.binary(16)).to_pylist()
        return pa.array([None if value is None else uuid_text(value) for value in bytes_of], pa.string())
    try:
        text = values.cast(pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        text = None
    if text is not None and not pc.any(pc.match_substring_regex(text, r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")).as_py():
        return text
    return pa.array([None if value is None else text_of_bytes(value) for value in values.to_pylist()], pa.string())


def _json_of(values: pa.ChunkedArray) -> pa.Array:
    texts = (
        None if value is None else json.dumps(json_of_bytes(value), ensure_ascii=False) for value in values.to_pylist()
    )
    return pa.array(texts, pa.string())


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = values.type
    if pa.types.is_timestamp(kind):
        return _times(values)
    if pa.types.is_date(kind):
        return values.cast(pa.string())
    if isinstance(kind, pa.JsonType):
        return values.cast(kind.storage_type)
    if pa.types.is_decimal256(kind):
        return values.cast(pa.string())
    if pa.types.is_float16(kind):
        return values.cast(pa.float32())
    if pa.types.is_nested(kind) and (text := _with_text(kind)) != kind:
        try:
            return values.cast(text)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return values
    return values


def _times(values: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = values.type
    if kind.unit in _MICROSECONDS:
        # Arrow would wrap a time round that microseconds do not reach.
        most = _MOST // _MICROSECONDS[kind.unit]
        numbers = values.cast(pa.int64())
        within = pc.and_(pc.less_equal(numbers, most), pc.greater_equal(numbers, -most))
        text = iso_text(pc.if_else(within, values, pa.scalar(None, kind)))
        return pc.if_else(pc.fill_null(within, True), text, _BEYOND)
    return iso_text(values)


def _with_text(kind: pa.DataType) -> pa.DataType:
    """The nested type with text for the bytes within."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_text(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_with_text(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_with_text(kind.value_type)))
    return pa.string() if is_bytes(kind) and not isinstance(kind, pa.UuidType) else kind
