"""Converts message headers to JSON text for Spark. Nested headers would take ten times as long as all other columns."""

from __future__ import annotations

from typing import TypeVar

import msgspec
import pyarrow as pa

from fraud_assets.core.schema import HEADERS

TableOrBatch = TypeVar("TableOrBatch", pa.Table, pa.RecordBatch)


class _Header(msgspec.Struct):
    key: str
    value: bytes | None = None


_decode = msgspec.json.Decoder(list[_Header]).decode
_encode = msgspec.json.Encoder().encode


def headers_to_text(headers: pa.Array) -> pa.Array:
    """Converts headers (`HEADERS`) to the text that Spark's `to_json` produces, with base64 values."""
    if headers.null_count == len(headers):
        return pa.nulls(len(headers), pa.string())
    texts = [None if row is None else _encode(row).decode() for row in headers.to_pylist()]
    return pa.array(texts, pa.string())


def headers_from_text(texts: pa.Array) -> pa.Array:
    """Converts the text of `headers_to_text` or of Spark's `to_json` to headers (`HEADERS`)."""
    if texts.null_count == len(texts):
        return pa.nulls(len(texts), HEADERS)
    rows = [
        None if text is None else [{"key": header.key, "value": header.value} for header in _decode(text)]
        for text in texts.to_pylist()
    ]
    return pa.array(rows, HEADERS)


def replace_headers_field(schema: pa.Schema) -> pa.Schema:
    """Returns the schema with text headers."""
    return schema.set(schema.get_field_index("headers"), pa.field("headers", pa.string()))


def convert_headers_to_text(rows: pa.Table) -> pa.Table:
    """Returns the rows with text headers."""
    return _replace_headers(rows, headers_to_text(rows["headers"].combine_chunks()))


def convert_headers_from_text(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the rows with text headers converted back to `HEADERS`."""
    if "headers" not in rows.schema.names or rows.schema.field("headers").type != pa.string():
        return rows
    return _replace_headers(rows, headers_from_text(rows["headers"]))


def _replace_headers(rows: TableOrBatch, headers: pa.Array) -> TableOrBatch:
    return rows.set_column(rows.schema.get_field_index("headers"), "headers", headers)
