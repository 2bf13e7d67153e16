"""Headers as JSON text on their way through Spark: nested, they take it ten times as long as all other columns."""

from __future__ import annotations

from typing import TypeVar

import msgspec
import pyarrow as pa

from fraud_assets.core.schema import HEADERS

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


class _Header(msgspec.Struct):
    key: str
    value: bytes | None = None


_decode = msgspec.json.Decoder(list[_Header]).decode
_encode = msgspec.json.Encoder().encode


def headers_to_text(headers: pa.Array) -> pa.Array:
    """Headers (`HEADERS`) as Spark's own `to_json` has them: values in base64."""
    if headers.null_count == len(headers):
        return pa.nulls(len(headers), pa.string())
    texts = [None if row is None else _encode(row).decode() for row in headers.to_pylist()]
    return pa.array(texts, pa.string())


def headers_from_text(texts: pa.Array) -> pa.Array:
    """Headers (`HEADERS`) of such texts, or of those that Spark made."""
    if texts.null_count == len(texts):
        return pa.nulls(len(texts), HEADERS)
    rows = [
        None if text is None else [{"key": header.key, "value": header.value} for header in _decode(text)]
        for text in texts.to_pylist()
    ]
    return pa.array(rows, HEADERS)


def text_headers(schema: pa.Schema) -> pa.Schema:
    """The schema with text for its headers."""
    return schema.set(schema.get_field_index("headers"), pa.field("headers", pa.string()))


def with_text(rows: pa.Table) -> pa.Table:
    """The rows with their headers as text."""
    return _replaced(rows, headers_to_text(rows["headers"].combine_chunks()))


def with_headers(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows with headers that are text as headers again."""
    if "headers" not in rows.schema.names or rows.schema.field("headers").type != pa.string():
        return rows
    return _replaced(rows, headers_from_text(rows["headers"]))


def _replaced(rows: Rows, headers: pa.Array) -> Rows:
    return rows.set_column(rows.schema.get_field_index("headers"), "headers", headers)
