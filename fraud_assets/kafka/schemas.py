"""Schemas of the Confluent Schema Registry, kept on disk: a schema never changes under its id.

So neither a restart nor an outage of the registry stops messages whose schemas are known. A registry `mock://…`
lives in this process, and its schemas with it.
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
"""The registry's own codes; a bare 404 comes from whatever else answers under a wrong address."""


def transaction_decoder(settings: Settings) -> Decoder | None:
    """What reads the bodies of the transactions topic beyond JSON, None where they are JSON."""
    return _decoder(settings.transactions_format, settings)


def label_decoder(settings: Settings) -> Decoder | None:
    """The same for the labels topic."""
    return _decoder(settings.labels_format, settings)


def _decoder(kind: Format, settings: Settings) -> Decoder | None:
    if kind == "json":
        return None
    return Decoder("AVRO" if kind == "avro" else "JSON", partial(writer_schema, settings))


def writer_schema(settings: Settings, identity: SchemaId) -> WriterSchema | None:
    """The schema of an id, None if the registry does not know it.

    Raises:
        SchemaRegistryError: the registry cannot be asked, and the schema is not kept here.
    """
    mock = settings.schema_registry_url.startswith(_MOCK)
    file = _folder(settings) / f"{identity}.json"
    known = None if mock else _kept(file)
    if known is not None:
        return known
    from confluent_kafka.schema_registry import SchemaRegistryError as AnswerError

    try:
        client = registry_client(settings)
        found = client.get_schema_by_guid(str(identity)) if isinstance(identity, UUID) else client.get_schema(identity)
        kind = found.schema_type or "AVRO"
        schema = WriterSchema(kind, found.schema_str or "", _references(found, client) if kind == "AVRO" else ())
    except AnswerError as error:
        if error.http_status_code == 404 and error.error_code in _NOT_FOUND:
            return None
        raise _unanswered(settings, f"schema {identity}", error) from error
    # The client lets through whatever its HTTP library raises.
    except Exception as error:
        raise _unanswered(settings, f"schema {identity}", error) from error
    if not mock:
        _keep(file, schema)
    return schema


def register(subject: str, schema: WriterSchema, settings: Settings) -> int:
    """Registers a schema, which is safe to repeat; gives its id.

    Raises:
        SchemaRegistryError: the registry cannot be asked, or refuses it.
    """
    from confluent_kafka.schema_registry import Schema

    try:
        return int(registry_client(settings).register_schema(subject, Schema(schema.text, schema.kind)))
    except Exception as error:
        raise _unanswered(settings, f"subject {subject}", error) from error


def registry_client(settings: Settings) -> SchemaRegistryClient:
    """The client of the registry that the settings name, one in the process."""
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
    """The texts of all schemas that one refers to, each after those that it needs itself."""
    texts: dict[str, None] = {}
    for reference in schema.references or ():
        found = client.get_version(reference.subject, reference.version).schema
        texts.update(dict.fromkeys((*_references(found, client), found.schema_str)))
    return tuple(texts)


def _folder(settings: Settings) -> Path:
    name = sha256(settings.schema_registry_url.encode()).hexdigest()[:16]
    return settings.home_path / "cache" / "schemas" / name


def _kept(file: Path) -> WriterSchema | None:
    try:
        entry = json.loads(file.read_text("utf-8"))
        return WriterSchema(entry["kind"], entry["text"], tuple(entry["references"]))
    except (OSError, ValueError, KeyError, TypeError):  # absent or half-written: the registry has it
        return None


def _keep(file: Path, schema: WriterSchema) -> None:
    # Where it cannot be kept, the next process asks again.
    with suppress(OSError):
        entry = {"kind": schema.kind, "text": schema.text, "references": schema.references}
        with replaced_file(file) as part:
            part.write(json.dumps(entry).encode())


def _unanswered(settings: Settings, wanted: str, error: Exception) -> SchemaRegistryError:
    status = getattr(error, "http_status_code", 0)
    if status in (401, 403):
        remedy = "Check SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO"
    elif status == 409:
        remedy = "Another schema is registered there that this one does not go with; name another topic or subject"
    else:
        remedy = (
            "Check SCHEMA_REGISTRY_URL and SCHEMA_REGISTRY_CA_LOCATION and that it runs; nothing is skipped, the next "
            "run goes on from here"
        )
    return SchemaRegistryError(
        f"The schema registry at {settings.schema_registry_url} does not answer for {wanted}: {error}. {remedy}."
    )
