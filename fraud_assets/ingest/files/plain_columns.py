"""Converts Arrow columns to types that DuckDB writes as JSON without changing a value."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.binary import bytes_to_json, bytes_to_text, format_uuid
from fraud_assets.core.local_time import format_iso

_JSON = {b"holds": b"JSON"}
_LARGEST_INT64 = 2**63 - 1
_MICROSECONDS_PER_UNIT = {"s": 1_000_000, "ms": 1_000}
_OUT_OF_CALENDAR = "a time beyond the calendar"


def to_plain_columns(table: pa.Table) -> pa.Table:
    """Returns the table with times, dates and bytes as text, and without types that DuckDB does not read.

    Times become ISO 8601 text, truncated to microseconds; times with a zone are in UTC and end in Z. Bytes and UUIDs
    become their text. A column with bytes that are not text becomes JSON; see `holds_json`.
    """
    for index, field in enumerate(table.schema):
        values = table.column(index)
        if pa.types.is_dictionary(field.type):
            values = values.cast(field.type.value_type)
        new, metadata = _convert(values), None
        if is_bytes(values.type):
            text = to_text_column(values)
            exact = text.null_count == values.null_count
            new, metadata = (text, None) if exact else (_bytes_to_json(values), _JSON)
        table = table.set_column(index, pa.field(field.name, new.type, metadata=metadata), new)
    return table


def holds_json(field: pa.Field) -> bool:
    """Returns whether a column of a `to_plain_columns` table holds JSON texts."""
    return field.metadata == _JSON


def is_bytes(kind: pa.DataType) -> bool:
    """Returns whether the type is a type of bytes, or UUID."""
    types = pa.types
    return bool(
        isinstance(kind, pa.UuidType)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def to_text_column(values: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Returns the text of a column of bytes or UUIDs; bytes that are not text become null."""
    if isinstance(values.type, pa.UuidType):
        raw_values = values.cast(pa.binary(16)).to_pylist()
        return pa.array([None if value is None else format_uuid(value) for value in raw_values], pa.string())
    try:
        text = values.cast(pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        text = None
    if text is not None and not pc.any(pc.match_substring_regex(text, r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")).as_py():
        return text
    return pa.array([None if value is None else bytes_to_text(value) for value in values.to_pylist()], pa.string())


def _bytes_to_json(values: pa.ChunkedArray) -> pa.Array:
    texts = (
        None if value is None else json.dumps(bytes_to_json(value), ensure_ascii=False) for value in values.to_pylist()
    )
    return pa.array(texts, pa.string())


def _convert(values: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = values.type
    if pa.types.is_timestamp(kind):
        return _times_to_text(values)
    if pa.types.is_date(kind):
        return values.cast(pa.string())
    if isinstance(kind, pa.JsonType):
        return values.cast(kind.storage_type)
    if pa.types.is_decimal256(kind):
        return values.cast(pa.string())
    if pa.types.is_float16(kind):
        return values.cast(pa.float32())
    if pa.types.is_nested(kind) and (text := _replace_bytes_by_text(kind)) != kind:
        try:
            return values.cast(text)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return values
    return values


def _times_to_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = values.type
    if kind.unit in _MICROSECONDS_PER_UNIT:
        # Arrow would overflow silently for a time that microseconds cannot hold.
        limit = _LARGEST_INT64 // _MICROSECONDS_PER_UNIT[kind.unit]
        numbers = values.cast(pa.int64())
        within = pc.and_(pc.less_equal(numbers, limit), pc.greater_equal(numbers, -limit))
        text = format_iso(pc.if_else(within, values, pa.scalar(None, kind)))
        return pc.if_else(pc.fill_null(within, True), text, _OUT_OF_CALENDAR)
    return format_iso(values)


def _replace_bytes_by_text(kind: pa.DataType) -> pa.DataType:
    """Returns a nested type with its types of bytes replaced by text."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_replace_bytes_by_text(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_replace_bytes_by_text(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_replace_bytes_by_text(kind.value_type)))
    return pa.string() if is_bytes(kind) and not isinstance(kind, pa.UuidType) else kind
