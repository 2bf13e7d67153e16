"""Schemas of the Confluent Schema Registry, cached on disk: the schema of an id never changes.

Messages with cached schemas can therefore be read after restarts and during outages of the registry. A registry
`mock://…` exists in this process only, and its schemas are not cached.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from fraud_assets.core.formats import Decoder, SchemaId, WriterSchema
from fraud_assets.errors import SchemaRegistryError
from fraud_assets.settings import Settings
from fraud_assets.settings.formats import Format
from fraud_assets.system.files import replaced_file

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

_MOCK = "mock://"
_NOT_FOUND = range(40400, 40500)
"""The registry's own codes. A plain 404 comes from another server at a wrong address."""


def create_transaction_decoder(settings: Settings) -> Decoder | None:
    """Returns the decoder of the transactions topic's bodies; None if they are JSON."""
    return _decoder_of(settings.transactions_format, settings)


def create_label_decoder(settings: Settings) -> Decoder | None:
    """Returns the decoder of the labels topic's bodies; None if they are JSON."""
    return _decoder_of(settings.labels_format, settings)


def _decoder_of(kind: Format, settings: Settings) -> Decoder | None:
    if kind == "json":
        return None
    return Decoder("AVRO" if kind == "avro" else "JSON", partial(find_writer_schema, settings))


def find_writer_schema(settings: Settings, identity: SchemaId) -> WriterSchema | None:
    """Returns the schema of an id; None if the registry does not know the id.

    Raises:
        SchemaRegistryError: The registry fails or does not answer, and the schema is not cached.
    """
    mock = settings.schema_registry_url.startswith(_MOCK)
    file = _cache_folder(settings) / f"{identity}.json"
    known = None if mock else _read_cached(file)
    if known is not None:
        return known
    from confluent_kafka.schema_registry import SchemaRegistryError as AnswerError

    try:
        client = get_registry_client(settings)
        found = client.get_schema_by_guid(str(identity)) if isinstance(identity, UUID) else client.get_schema(identity)
        kind = found.schema_type or "AVRO"
        schema = WriterSchema(kind, found.schema_str or "", _references(found, client) if kind == "AVRO" else ())
    except AnswerError as error:
        if error.http_status_code == 404 and error.error_code in _NOT_FOUND:
            return None
        raise _registry_error(settings, f"schema {identity}", error) from error
    # The client also passes on every exception of its HTTP library.
    except Exception as error:
        raise _registry_error(settings, f"schema {identity}", error) from error
    if not mock:
        _write_cached(file, schema)
    return schema


def register(subject: str, schema: WriterSchema, settings: Settings) -> int:
    """Registers a schema and returns its id. Safe to repeat.

    Raises:
        SchemaRegistryError: The registry does not answer, or refuses the schema.
    """
    from confluent_kafka.schema_registry import Schema

    try:
        return int(get_registry_client(settings).register_schema(subject, Schema(schema.text, schema.kind)))
    except Exception as error:
        raise _registry_error(settings, f"subject {subject}", error) from error


def get_registry_client(settings: Settings) -> SchemaRegistryClient:
    """Returns the client of the configured registry. A process creates one client per registry."""
    return _client(
        settings.schema_registry_url,
        settings.schema_registry_basic_auth_user_info.get_secret_value(),
        settings.schema_registry_ca_location,
        settings.kafka_timeout_seconds,
    )


@cache
def _client(url: str, user_info: str, ca_location: str, timeout: float) -> SchemaRegistryClient:
    from confluent_kafka.schema_registry import SchemaRegistryClient

    config: dict[str, Any] = {"url": url, "timeout": timeout, "max.retries": 1, "retries.wait.ms": 200}
    if user_info:
        config["basic.auth.user.info"] = user_info
    if ca_location:
        config["ssl.ca.location"] = ca_location
    return SchemaRegistryClient.new_client(config)


def _references(schema: Schema, client: SchemaRegistryClient) -> tuple[str, ...]:
    """Returns the texts of all schemas that a schema refers to, each after its own references."""
    texts: dict[str, None] = {}
    for reference in schema.references or ():
        found = client.get_version(reference.subject, reference.version).schema
        texts.update(dict.fromkeys((*_references(found, client), found.schema_str)))
    return tuple(texts)


def _cache_folder(settings: Settings) -> Path:
    name = sha256(settings.schema_registry_url.encode()).hexdigest()[:16]
    return settings.home_path / "cache" / "schemas" / name


def _read_cached(file: Path) -> WriterSchema | None:
    try:
        entry = json.loads(file.read_text("utf-8"))
        return WriterSchema(entry["kind"], entry["text"], tuple(entry["references"]))
    except (OSError, ValueError, KeyError, TypeError):  # The file is missing or incomplete; the registry is used.
        return None


def _write_cached(file: Path, schema: WriterSchema) -> None:
    # If the file cannot be written, the next process requests the schema again.
    with suppress(OSError):
        entry = {"kind": schema.kind, "text": schema.text, "references": schema.references}
        with replaced_file(file) as part:
            part.write(json.dumps(entry).encode())


def _registry_error(settings: Settings, wanted: str, error: Exception) -> SchemaRegistryError:
    status = getattr(error, "http_status_code", 0)
    if status in (401, 403):
        remedy = "Check SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO"
    elif status == 409:
        remedy = "The registered schema is incompatible; use another topic or subject"
    else:
        remedy = (
            "Check SCHEMA_REGISTRY_URL, SCHEMA_REGISTRY_CA_LOCATION and that the registry runs. No message is skipped: "
            "the next run continues from here"
        )
    return SchemaRegistryError(
        f"The schema registry at {settings.schema_registry_url} failed for {wanted}: {error}. {remedy}."
    )
