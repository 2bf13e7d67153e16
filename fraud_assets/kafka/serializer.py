"""Converts JSON bodies of the simulator and of replays to the format of their topic, and registers its schema."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from fraud_assets.core.bodies import MAGIC, Rejected, parse_json_object
from fraud_assets.core.formats import WriterSchema
from fraud_assets.errors import SettingError
from fraud_assets.kafka.schemas import register
from fraud_assets.settings import CONTRACT_FIELDS, LABEL_FIELDS, Settings
from fraud_assets.settings.formats import Format

_TIME = {"type": "long", "logicalType": "timestamp-micros"}
_AVRO: dict[str, Any] = {"tx_datetime": _TIME, "labelled_at": _TIME, "tx_amount": "double", "is_fraud": "boolean"}
_JSON: dict[str, dict[str, Any]] = {"tx_amount": {"type": "number"}, "is_fraud": {"type": "boolean"}}

Serialize = Callable[[bytes], bytes]


def create_serializers(settings: Settings) -> dict[str, Serialize]:
    """Returns, by topic, the function that converts its JSON bodies; a topic in JSON has none.

    The functions leave malformed bodies unchanged.

    Raises:
        SchemaRegistryError: The schema cannot be registered.
        SettingError: FRAUD_FIELD_MAPPING names a field within an Avro record.
    """
    topics: tuple[tuple[str, Format, tuple[str, ...]], ...] = (
        (settings.transactions_topic, settings.transactions_format, CONTRACT_FIELDS),
        (settings.labels_topic, settings.labels_format, LABEL_FIELDS),
    )
    factories = {"avro": _avro_serializer, "json_schema": _json_schema_serializer}
    return {topic: factories[kind](topic, fields, settings) for topic, kind, fields in topics if kind != "json"}


def _avro_serializer(topic: str, fields: tuple[str, ...], settings: Settings) -> Serialize:
    from fastavro import parse_schema, schemaless_writer

    payloads = {settings.contract.payload_field(name): name for name in fields}
    nested = next((payload for payload in payloads if "." in payload), None)
    if nested is not None:
        raise SettingError(
            f"Setting FRAUD_FIELD_MAPPING names {nested}: a field within a record can be read from Avro, but not "
            "written. Write to a topic in JSON, or without the mapping."
        )
    columns = [{"name": payload, "type": _AVRO.get(name, "string")} for payload, name in payloads.items()]
    text = json.dumps({"type": "record", "name": "Message", "namespace": "fraud_assets", "fields": columns})
    header = _header(register(f"{topic}-value", WriterSchema("AVRO", text), settings))
    schema = parse_schema(json.loads(text))

    def serialize(body: bytes) -> bytes:
        stream = BytesIO()
        try:
            row = parse_json_object(body, settings.max_body_bytes)
            if row.keys() != payloads.keys():
                return body
            datum = {payload: _avro_value(name, row[payload]) for payload, name in payloads.items()}
            schemaless_writer(stream, schema, datum, strict=True)
        except (Rejected, ValueError, TypeError):
            return body
        return header + stream.getvalue()

    return serialize


def _json_schema_serializer(topic: str, fields: tuple[str, ...], settings: Settings) -> Serialize:
    names = [settings.contract.payload_field(name) for name in fields]
    kinds = [_JSON.get(name, {"type": ["integer", "string"]}) for name in fields]
    schema = {"title": "Message", "type": "object", "properties": dict(zip(names, kinds, strict=True))}
    text = json.dumps({**schema, "required": names})
    header = _header(register(f"{topic}-value", WriterSchema("JSON", text), settings))
    return lambda body: header + body if body.startswith(b"{") else body


def _header(identity: int) -> bytes:
    return MAGIC + struct.pack(">I", identity)


def _avro_value(name: str, value: Any) -> Any:
    kind = _AVRO.get(name, "string")
    if kind is _TIME:
        time = datetime.fromisoformat(value)
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    if (type(value) is bool) != (kind == "boolean"):
        # fastavro would write a boolean as a number.
        raise TypeError(f"{value} is not of type {kind}")
    return str(value) if kind == "string" and type(value) is int else value
