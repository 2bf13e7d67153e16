"""Avro and JSON Schema messages with a schema registry, outages of the registry, and tombstones."""

from __future__ import annotations

import base64
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka.schema_registry import Schema, header_schema_id_serializer
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from fastavro import parse_schema, schemaless_writer

from fraud_assets.commands.simulate import produce_simulated
from fraud_assets.core.schema import (
    TRANSACTION,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.errors import SchemaRegistryError, SettingError
from fraud_assets.kafka.broker import Broker
from fraud_assets.kafka.schemas import get_registry_client
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.operations.reconciliation import reconcile
from fraud_assets.settings import Settings, load_settings
from fraud_assets.stages.features import process_landed
from fraud_assets_tests.support.landed import land

MakeSettings = Callable[..., Settings]
Send = Callable[..., None]

END = datetime(2026, 3, 1, tzinfo=UTC)
SCHEMA = json.dumps(
    {
        "type": "record",
        "name": "Payment",
        "fields": [
            {"name": "transaction_id", "type": "string"},
            {"name": "tx_datetime", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            {"name": "customer_id", "type": "string"},
            {"name": "terminal_id", "type": "string"},
            {"name": "tx_amount", "type": "double"},
        ],
    }
)


def payment(number: int) -> dict[str, Any]:
    return {
        "transaction_id": str(number),
        "tx_datetime": END,
        "customer_id": "c",
        "terminal_id": "t",
        "tx_amount": 1.5,
    }


def body(number: int, schema_id: int = 1) -> bytes:
    buffer = BytesIO()
    schemaless_writer(buffer, parse_schema(json.loads(SCHEMA)), payment(number))
    return b"\0" + schema_id.to_bytes(4, "big") + buffer.getvalue()


def count_reasons(lake: Lake) -> Counter[str]:
    return Counter(open_dataset(lake.open(quarantined_transactions)).to_table()["reason"].to_pylist())


def assert_reconciled(lake: Lake, settings: Settings) -> dict[str, int]:
    counts = reconcile(lake, settings)
    assert counts["landed"] == counts["features"] + counts["quarantined"] + counts["duplicates"]
    return counts


@pytest.fixture
def avro_settings(make_settings: MakeSettings) -> Settings:
    """Settings for Avro transactions, with a schema registry that no other test uses."""
    return make_settings(transactions_format="avro", schema_registry_url=f"mock://{uuid4().hex}")


def test_messages_of_the_confluent_serializers_become_features(
    avro_settings: Settings, broker: Broker, send: Send
) -> None:
    """The schema id is in the body or in a header, and a second schema is registered after the first landing."""
    settings, lake = avro_settings, Lake.of(avro_settings)
    context = SerializationContext("transactions", MessageField.VALUE, [])
    client = get_registry_client(settings)
    send("transactions", [AvroSerializer(client, SCHEMA)(payment(1), context)])
    land_topics(lake, settings)
    process_landed(lake, settings)
    wider_schema = json.loads(SCHEMA)
    wider_schema["fields"].append({"name": "channel", "type": ["null", "string"], "default": None})
    serialize_wider = AvroSerializer(client, json.dumps(wider_schema))
    send("transactions", [serialize_wider({**payment(2), "channel": "web"}, context)])
    serialize_with_header = AvroSerializer(client, SCHEMA, conf={"schema.id.serializer": header_schema_id_serializer})
    context.headers = []
    value = serialize_with_header(payment(3), context)
    assert value[0] != 0
    send("transactions", [value], headers=context.headers)
    land_topics(lake, settings)
    assert process_landed(lake, settings).features == 2
    assert assert_reconciled(lake, settings)["features"] == 3


@pytest.mark.parametrize("kind", ["avro", "json_schema"])
def test_simulated_transactions_have_the_same_features_in_every_format(
    make_settings: MakeSettings, tmp_path: Path, kind: str
) -> None:
    from fraud_assets.kafka.broker import embedded_broker

    results = {}
    for name in ("json", kind):
        settings = make_settings(
            home=tmp_path / name,
            transactions_format=name,
            labels_format=name,
            schema_registry_url=f"mock://{tmp_path.name}",
        )
        lake = Lake.of(settings)
        with embedded_broker(settings):
            simulated = produce_simulated(settings, count=600, days=10, seed=3, bad=26, end=END)
            land_topics(lake, settings)
        process_landed(lake, settings)
        counts = assert_reconciled(lake, settings)
        assert counts["labels"] == simulated["labels"] > 0
        rows = open_dataset(lake.open(transaction_features)).to_table().sort_by("transaction_id")
        results[name] = rows.select(TRANSACTION.names), count_reasons(lake)
        values = [value for value in open_dataset(lake.open(raw_transactions)).to_table()["value"].to_pylist() if value]
        assert (values[0][0] == 0) == (name != "json")
    assert results[kind][0].equals(results["json"][0])
    # A bad message keeps its reason, unless a schema id cannot be added to it.
    assert sum(results[kind][1].values()) == sum(results["json"][1].values())
    assert results[kind][1]["negative_amount"] == results["json"][1]["negative_amount"] > 0
    subjects = get_registry_client(
        load_settings(_env_file=None, schema_registry_url=f"mock://{tmp_path.name}")
    ).get_subjects()
    assert set(subjects) == {"transactions-value", "fraud-labels-value"}


def test_tombstones_are_counted_separately_and_the_counts_reconcile(settings: Settings, lake: Lake, send: Send) -> None:
    good = json.dumps({**payment(1), "tx_datetime": END.isoformat()}).encode()
    send("transactions", [good, None, b"", None], key="k")
    send("fraud-labels", [None])
    land_topics(lake, settings)
    process_landed(lake, settings)
    assert count_reasons(lake) == {"tombstone": 2, "empty_body": 1, "label_tombstone": 1}
    counts = assert_reconciled(lake, settings)
    assert (counts["quarantined"], counts["tombstones"]) == (3, 2)
    quarantined = open_dataset(lake.open(quarantined_transactions)).to_table().to_pylist()
    assert {row["value"] for row in quarantined if "tombstone" in row["reason"]} == {None}
    assert {row["key"] for row in quarantined if row["reason"] == "tombstone"} == {b"k"}


class FakeRegistry(BaseHTTPRequestHandler):
    """The part of a schema registry that reading needs: schema 1, for one user."""

    requested: list[str]
    credentials = "Basic " + base64.b64encode(b"me:pass word").decode()

    def do_GET(self) -> None:
        self.requested.append(self.path)
        status, answer = 200, {"schema": SCHEMA}
        if self.headers.get("Authorization") != self.credentials:
            status, answer = 401, {"error_code": 401, "message": "Unauthorized"}
        elif self.path.split("?")[0] != "/schemas/ids/1":
            code = 40403 if self.path.startswith("/schemas/ids/") else 404
            status, answer = 404, {"error_code": code, "message": "not found"}
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


@contextmanager
def serve_registry(port: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Serves a registry over HTTP; yields its port and the requested paths."""
    requested: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (FakeRegistry,), {"requested": requested}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port, requested
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_registry_outage_stops_only_unknown_schemas_and_quarantines_nothing(
    make_settings: MakeSettings, lake: Lake
) -> None:
    with serve_registry() as (port, requested):
        pass
    settings = make_settings(
        transactions_format="avro",
        schema_registry_url=f"http://127.0.0.1:{port}",
        schema_registry_basic_auth_user_info="me:pass word",
        kafka_timeout_seconds=2,
    )
    land(lake, [body(1), body(2)])
    with pytest.raises(SchemaRegistryError, match=r"SCHEMA_REGISTRY_URL") as failure:
        process_landed(lake, settings)
    assert "pass word" not in str(failure.value)
    assert not count_reasons(lake)
    with serve_registry(port) as (_, requested):
        assert process_landed(lake, settings).features == 2
        assert len(requested) == 1
    # The registry is unavailable again. The schema with id 1 is cached.
    land(lake, [body(3)], first_offset=2)
    assert process_landed(lake, settings).features == 1
    land(lake, [body(4, schema_id=2)], first_offset=3)
    with pytest.raises(SchemaRegistryError, match="schema 2"):
        process_landed(lake, settings)
    with serve_registry(port):
        assert process_landed(lake, settings).reasons == {"unknown_schema": 1}
    assert assert_reconciled(lake, settings)["landed"] == 4


@pytest.mark.parametrize(
    ("path", "user", "named_setting"),
    [("", "me:wrong", "SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO"), ("/elsewhere", "me:pass word", "SCHEMA_REGISTRY_URL")],
)
def test_a_wrong_registry_setting_is_an_error_and_quarantines_nothing(
    make_settings: MakeSettings, lake: Lake, path: str, user: str, named_setting: str
) -> None:
    land(lake, [body(1)])
    with serve_registry() as (port, _):
        settings = make_settings(
            transactions_format="avro",
            schema_registry_url=f"http://127.0.0.1:{port}{path}",
            schema_registry_basic_auth_user_info=user,
        )
        with pytest.raises(SchemaRegistryError, match=named_setting):
            process_landed(lake, settings)
    assert not count_reasons(lake)


def test_incomplete_or_unsafe_registry_settings_are_refused(make_settings: MakeSettings) -> None:
    with pytest.raises(SettingError, match=r"SCHEMA_REGISTRY_URL.*FRAUD_LABELS_FORMAT"):
        make_settings(labels_format="avro")
    with pytest.raises(SettingError) as failure:
        make_settings(schema_registry_url="https://me:hidden@registry:8081")
    assert "hidden" not in str(failure.value)


def test_a_schema_that_is_registered_twice_keeps_its_id() -> None:
    settings = load_settings(_env_file=None, schema_registry_url=f"mock://{uuid4().hex}")
    first, second = (get_registry_client(settings).register_schema("a-value", Schema(SCHEMA, "AVRO")) for _ in range(2))
    assert first == second
