"""Bodies that a schema registry's serializer framed (Avro, JSON Schema) to the JSON that the one parser reads.

A frame is a zero byte and the schema's id in four bytes before the payload, or the id in the header
`__value_schema_id`. What carries neither is JSON already, whatever its topic's format: rows of dropped files, bodies
that were pseudonymised.
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

from fraud_assets.core.binary import json_of_bytes, uuid_text
from fraud_assets.core.bodies import MAGIC, Rejected, check_size

SchemaId = int | UUID
"""Number of a schema in its registry, or its GUID where the producer puts the id into a header."""

ID_HEADER = "__value_schema_id"
_GUID_MAGIC = b"\1"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class WriterSchema:
    """A schema as the registry has it: its kind, its text, and the texts that it refers to, in order of need."""

    kind: str
    text: str
    references: tuple[str, ...] = ()


class Decoder:
    """Reads the framed bodies of one topic.

    Args:
        kind: the registry's name of the topic's format.
        schema_of: gives the schema of an id, None for one that the registry does not know, and raises where the
            registry cannot be asked. Asked once an id; a new id is asked for when it is first met.
    """

    def __init__(self, kind: Literal["AVRO", "JSON"], schema_of: Callable[[SchemaId], WriterSchema | None]) -> None:
        self._kind = kind
        self._schema_of = schema_of
        self._readers: dict[SchemaId, Callable[[bytes], bytes] | Rejected] = {}

    def json_body(self, body: bytes, header: bytes | None = None) -> bytes:
        """The body as JSON; as it is where it has no frame.

        Args:
            body: the message's bytes.
            header: the value of its header `__value_schema_id`.

        Raises:
            Rejected: the registry knows no such schema, or the body does not follow it.
        """
        identity = _id(header)
        payload = body
        if identity is None:
            if not body.startswith(MAGIC):
                return body
            identity = _id(body[:5])
            if identity is None:
                raise Rejected("invalid_avro", f"the body ends after {len(body)} bytes; expected a frame of 5")
            payload = body[5:]
        reader = self._readers.get(identity)
        if reader is None:
            reader = self._readers[identity] = self._reader(identity)
        if isinstance(reader, Rejected):
            raise Rejected(reader.reason, reader.detail)
        return reader(payload)

    def json_bodies(
        self, values: pa.ChunkedArray, headers: pa.ChunkedArray, max_body_bytes: int
    ) -> tuple[pa.Array, dict[int, Rejected]]:
        """All bodies as JSON, null for those that give none, and by row number why not."""
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

    def _reader(self, identity: SchemaId) -> Callable[[bytes], bytes] | Rejected:
        schema = self._schema_of(identity)
        if schema is None:
            return Rejected("unknown_schema", f"the schema registry has no schema {identity}")
        if schema.kind != self._kind:
            detail = f"schema {identity} of the registry is {schema.kind}; expected {self._kind}"
            return Rejected("unknown_schema", detail)
        if schema.kind == "JSON":
            # Not validated, as by default in Confluent's Java deserializer: the contract judges all formats alike.
            return bytes
        try:
            return _avro_reader(schema)
        except _EndlessArray:
            detail = f"schema {identity} of the registry has an array of items without bytes, which may be endless"
            return Rejected("unknown_schema", detail)
        # Of a text that is no schema fastavro raises whatever its own look at it hits upon.
        except Exception as error:  # noqa: BLE001
            return Rejected("unknown_schema", f"schema {identity} of the registry is no Avro schema: {error}"[:300])


def find_schema_ids(headers: pa.ChunkedArray) -> dict[int, bytes]:
    """The values of the header that holds the schema's id, by row number."""
    if headers.null_count == len(headers):
        return {}
    return {
        row: pair["value"]
        for row, pairs in enumerate(headers.to_pylist())
        for pair in pairs or ()
        if pair["key"] == ID_HEADER and pair["value"] is not None
    }


def _id(frame: bytes | None) -> SchemaId | None:
    """The id in a frame, None where it is no frame."""
    if frame is None:
        return None
    if len(frame) == 5 and frame.startswith(MAGIC):
        return int(struct.unpack(">xI", frame)[0])
    if len(frame) == 17 and frame.startswith(_GUID_MAGIC):
        return UUID(bytes=frame[1:])
    return None


class _EndlessArray(Exception):
    """A few bytes of a body could stand for any number of such items."""


def _avro_reader(schema: WriterSchema) -> Callable[[bytes], bytes]:
    from fastavro import _read_py, parse_schema, read

    # The Avro specification has both since 1.12; fastavro reads a plain number and plain bytes.
    read.LOGICAL_READERS.setdefault("long-timestamp-nanos", _from_nanoseconds)
    read.LOGICAL_READERS.setdefault("fixed-uuid", _from_uuid)
    named: dict[str, Any] = {}
    for text in schema.references:
        parse_schema(json.loads(text), named)
    writer = parse_schema(_schema_of_text(schema.text), named)
    # A body may nest a record within itself as deep as it likes: compiled code overflows the stack there, and the
    # process is gone, where Python raises.
    schemaless_reader = _read_py.schemaless_reader if _holds_itself(writer, named) else read.schemaless_reader
    # msgspec writes bytes in its own way.
    texts = (schema.text, *schema.references)
    write = _careful_json if any('"bytes"' in text or '"fixed"' in text for text in texts) else _quick_json

    def reader(payload: bytes) -> bytes:
        stream = BytesIO(payload)
        try:
            datum = schemaless_reader(stream, writer, None)
            text = write(datum)
        # Of bytes that do not follow the schema fastavro raises whatever its reading hits upon.
        except Exception as error:  # noqa: BLE001
            # Its words may quote the body.
            detail = f"the body does not follow its schema ({type(error).__name__})"
            raise Rejected("invalid_avro", detail) from None
        if stream.tell() != len(payload):
            detail = f"the body has {len(payload) - stream.tell()} bytes more than its schema says"
            raise Rejected("invalid_avro", detail)
        return text

    return reader


def _holds_itself(schema: Any, named: dict[str, Any]) -> bool:
    """Whether a record can occur within itself.

    Raises:
        _EndlessArray: the items of an array may take no bytes.
    """
    seen: dict[str, bool] = {}

    def holds(part: Any) -> bool:
        if isinstance(part, list):
            return True in set(map(holds, part))  # all of them are looked at: none may hold an endless array
        if not isinstance(part, dict):
            return holds(named[part]) if part in named else False
        kind = part["type"]
        if kind == "array":
            if _takes_no_bytes(part["items"], named):
                raise _EndlessArray
            return holds(part["items"])
        if kind == "map":
            return holds(part["values"])
        if kind not in ("record", "error"):
            return holds(kind)
        if part["name"] not in seen:
            seen[part["name"]] = True  # found again before its fields are through: it holds itself
            seen[part["name"]] = True in {holds(field["type"]) for field in part["fields"]}
        return seen[part["name"]]

    return holds(schema)


def _takes_no_bytes(schema: Any, named: dict[str, Any], within: tuple[str, ...] = ()) -> bool:
    if isinstance(schema, list):
        return False  # the number of its branch
    if not isinstance(schema, dict):
        return schema == "null" or (schema in named and _takes_no_bytes(named[schema], named, within))
    if schema["type"] not in ("record", "error"):
        return schema["type"] == "null" or (schema["type"] == "fixed" and schema["size"] == 0)
    name = schema["name"]
    return name not in within and all(
        _takes_no_bytes(field["type"], named, (*within, name)) for field in schema["fields"]
    )


def _schema_of_text(text: str) -> Any:
    # The registry keeps the schema of a primitive type as its bare name.
    return text if re.fullmatch(r"[a-z]+", text) else json.loads(text)


def _from_nanoseconds(data: int, *_: Any) -> datetime:
    return _EPOCH + timedelta(microseconds=data // 1000)


def _from_uuid(data: bytes, *_: Any) -> str | bytes:
    return uuid_text(data) if len(data) == 16 else data


def _quick_json(datum: Any) -> bytes:
    text = _encode(datum)
    # What msgspec writes as null may be a number that is none, which the parser tells apart.
    return _careful_json(datum) if b"null" in text else text


def _careful_json(datum: Any) -> bytes:
    return json.dumps(datum, ensure_ascii=False, default=_plain).encode()


def _plain(value: Any) -> Any:
    """What JSON has no type for: times as ISO 8601, decimals exact, bytes as text where they are text."""
    if isinstance(value, datetime | date | time):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        return json_of_bytes(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
