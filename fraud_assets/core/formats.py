"""Decodes bodies that a schema registry's serializer framed (Avro, JSON Schema) to JSON for the shared parser.

A frame is a zero byte and the schema's id in four bytes before the payload, or the id in the header
`__value_schema_id`. A body with neither is already JSON, even if its topic has another format: rows of dropped files
and pseudonymized bodies are such bodies.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from io import BytesIO
from typing import Any, Literal
from uuid import UUID

import msgspec
import pyarrow as pa

from fraud_assets.core.binary import bytes_to_json, format_uuid
from fraud_assets.core.bodies import MAGIC, Rejected, check_size

SchemaId = int | UUID
"""The number of a schema in its registry, or its GUID if the producer puts the id into a header."""

ID_HEADER = "__value_schema_id"
_GUID_MAGIC = b"\1"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class WriterSchema:
    """A schema of the registry.

    Attributes:
        kind: The registry's name of the format, `AVRO` or `JSON`.
        text: The schema.
        references: The schemas that it refers to, each after the schemas that it needs.
    """

    kind: str
    text: str
    references: tuple[str, ...] = ()


class Decoder:
    """Decodes the framed bodies of one topic.

    Args:
        kind: The registry's name of the topic's format.
        schema_of: Returns the schema of an id, or None if the registry has none. It raises an error if the registry
            is unavailable. It is called once per id, when the id first occurs.
    """

    def __init__(self, kind: Literal["AVRO", "JSON"], schema_of: Callable[[SchemaId], WriterSchema | None]) -> None:
        self._kind = kind
        self._schema_of = schema_of
        self._readers: dict[SchemaId, Callable[[bytes], bytes] | Rejected] = {}

    def json_body(self, body: bytes, header: bytes | None = None) -> bytes:
        """Decodes a body to JSON. A body without a frame is returned unchanged.

        Args:
            body: The bytes of the message body.
            header: The value of the header `__value_schema_id`.

        Raises:
            Rejected: The registry does not have the schema, or the body does not follow it.
        """
        identity = _read_id(header)
        payload = body
        if identity is None:
            if not body.startswith(MAGIC):
                return body
            identity = _read_id(body[:5])
            if identity is None:
                raise Rejected("invalid_avro", f"the body ends after {len(body)} bytes; expected a frame of 5")
            payload = body[5:]
        reader = self._readers.get(identity)
        if reader is None:
            reader = self._readers[identity] = self._make_reader(identity)
        if isinstance(reader, Rejected):
            raise Rejected(reader.reason, reader.detail)
        return reader(payload)

    def json_bodies(
        self, values: pa.ChunkedArray, headers: pa.ChunkedArray, max_body_bytes: int
    ) -> tuple[pa.Array, dict[int, Rejected]]:
        """Decodes all bodies to JSON.

        Returns:
            The bodies, null for rejected ones, and the rejections by row number.
        """
        found = find_schema_ids(headers)
        bodies: list[bytes | None] = []
        failed: dict[int, Rejected] = {}
        for row, body in enumerate(values.to_pylist()):
            try:
                check_size(body, max_body_bytes)
                bodies.append(self.json_body(body, found.get(row)))
            except Rejected as rejected:
                bodies.append(None)
                failed[row] = rejected
        return pa.array(bodies, pa.binary()), failed

    def _make_reader(self, identity: SchemaId) -> Callable[[bytes], bytes] | Rejected:
        schema = self._schema_of(identity)
        if schema is None:
            return Rejected("unknown_schema", f"the schema registry has no schema {identity}")
        if schema.kind != self._kind:
            detail = f"schema {identity} of the registry is {schema.kind}; expected {self._kind}"
            return Rejected("unknown_schema", detail)
        if schema.kind == "JSON":
            # JSON is not validated against its schema: the contract checks all formats in the same way. Confluent's
            # Java deserializer does not validate by default either.
            return bytes
        try:
            return _make_avro_reader(schema)
        except _EndlessArrayError:
            detail = f"schema {identity} of the registry has an array of items without bytes, which may be endless"
            return Rejected("unknown_schema", detail)
        # fastavro can raise any exception for an invalid schema.
        except Exception as error:  # noqa: BLE001
            return Rejected("unknown_schema", f"schema {identity} of the registry is not an Avro schema: {error}"[:300])


def find_schema_ids(headers: pa.ChunkedArray) -> dict[int, bytes]:
    """Returns the values of the header with the schema's id, by row number."""
    if headers.null_count == len(headers):
        return {}
    return {
        row: pair["value"]
        for row, pairs in enumerate(headers.to_pylist())
        for pair in pairs or ()
        if pair["key"] == ID_HEADER and pair["value"] is not None
    }


def _read_id(frame: bytes | None) -> SchemaId | None:
    """Returns the schema id of a frame, or None if the bytes are not a frame."""
    if frame is None:
        return None
    if len(frame) == 5 and frame.startswith(MAGIC):
        return int(struct.unpack(">xI", frame)[0])
    if len(frame) == 17 and frame.startswith(_GUID_MAGIC):
        return UUID(bytes=frame[1:])
    return None


class _EndlessArrayError(Exception):
    """A few bytes of a body could represent any number of array items."""


def _make_avro_reader(schema: WriterSchema) -> Callable[[bytes], bytes]:
    """Creates a function that decodes a payload of this schema to JSON."""
    from fastavro import _read_py, parse_schema, read

    # Avro has specified both logical types since version 1.12, but fastavro returns a number and bytes for them.
    read.LOGICAL_READERS.setdefault("long-timestamp-nanos", _from_nanoseconds)
    read.LOGICAL_READERS.setdefault("fixed-uuid", _from_uuid)
    named: dict[str, Any] = {}
    for text in schema.references:
        parse_schema(json.loads(text), named)
    writer = parse_schema(_parse_schema_text(schema.text), named)
    # A body may nest a recursive record to any depth. The compiled reader then overflows the stack and kills the
    # process, whereas the Python reader raises an error.
    schemaless_reader = _read_py.schemaless_reader if _is_recursive(writer, named) else read.schemaless_reader
    # msgspec encodes bytes as base64, so schemas with bytes need the other encoder.
    texts = (schema.text, *schema.references)
    write = _encode_carefully if any('"bytes"' in text or '"fixed"' in text for text in texts) else _encode_fast

    def reader(payload: bytes) -> bytes:
        stream = BytesIO(payload)
        try:
            datum = schemaless_reader(stream, writer, None)
            text = write(datum)
        # fastavro can raise any exception for bytes that do not follow the schema.
        except Exception as error:  # noqa: BLE001
            # The message of the exception may quote the body, so the detail names only its type.
            detail = f"the body does not follow its schema ({type(error).__name__})"
            raise Rejected("invalid_avro", detail) from None
        if stream.tell() != len(payload):
            detail = f"the body has {len(payload) - stream.tell()} bytes more than its schema describes"
            raise Rejected("invalid_avro", detail)
        return text

    return reader


def _is_recursive(schema: Any, named: dict[str, Any]) -> bool:
    """Returns whether a record can contain itself.

    Raises:
        _EndlessArrayError: The items of an array may have no bytes.
    """
    seen: dict[str, bool] = {}

    def is_recursive(part: Any) -> bool:
        if isinstance(part, list):
            # The set evaluates all branches, because each of them is checked for endless arrays.
            return True in set(map(is_recursive, part))
        if not isinstance(part, dict):
            return is_recursive(named[part]) if part in named else False
        kind = part["type"]
        if kind == "array":
            if _has_no_bytes(part["items"], named):
                raise _EndlessArrayError
            return is_recursive(part["items"])
        if kind == "map":
            return is_recursive(part["values"])
        if kind not in ("record", "error"):
            return is_recursive(kind)
        if part["name"] not in seen:
            seen[part["name"]] = True  # A record that occurs again while its fields are checked contains itself.
            seen[part["name"]] = True in {is_recursive(field["type"]) for field in part["fields"]}
        return seen[part["name"]]

    return is_recursive(schema)


def _has_no_bytes(schema: Any, named: dict[str, Any], within: tuple[str, ...] = ()) -> bool:
    """Returns whether all values of a schema are encoded in zero bytes."""
    if isinstance(schema, list):
        return False  # A union encodes the number of its branch.
    if not isinstance(schema, dict):
        return schema == "null" or (schema in named and _has_no_bytes(named[schema], named, within))
    if schema["type"] not in ("record", "error"):
        return schema["type"] == "null" or (schema["type"] == "fixed" and schema["size"] == 0)
    name = schema["name"]
    return name not in within and all(
        _has_no_bytes(field["type"], named, (*within, name)) for field in schema["fields"]
    )


def _parse_schema_text(text: str) -> Any:
    # The registry stores the schema of a primitive type as its bare name.
    return text if re.fullmatch(r"[a-z]+", text) else json.loads(text)


def _from_nanoseconds(data: int, *_: Any) -> datetime:
    return _EPOCH + timedelta(microseconds=data // 1000)


def _from_uuid(data: bytes, *_: Any) -> str | bytes:
    return format_uuid(data) if len(data) == 16 else data


def _encode_fast(datum: Any) -> bytes:
    text = _encode(datum)
    # msgspec writes NaN and infinity as null, which the parser must distinguish.
    return _encode_carefully(datum) if b"null" in text else text


def _encode_carefully(datum: Any) -> bytes:
    return json.dumps(datum, ensure_ascii=False, default=_to_json_value).encode()


def _to_json_value(value: Any) -> Any:
    """Converts a value without a JSON type: times to ISO 8601, decimals to exact text, bytes to text if possible."""
    if isinstance(value, datetime | date | time):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        return bytes_to_json(value)
    raise TypeError(f"{type(value).__name__} cannot be converted to JSON")
