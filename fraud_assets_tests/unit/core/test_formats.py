"""Avro and JSON Schema bodies become exact JSON for any schema, or are rejected with a reason."""

from __future__ import annotations

import json
import struct
from datetime import UTC, date, datetime
from decimal import Decimal
from io import BytesIO
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from fastavro import parse_schema, schemaless_writer

from fraud_assets.core.bodies import Rejected
from fraud_assets.core.formats import ID_HEADER, Decoder, SchemaId, WriterSchema
from fraud_assets.core.parsing import parse_labels, parse_transactions
from fraud_assets.core.schema import RAW_TRANSACTIONS
from fraud_assets.settings import load_settings

SETTINGS = load_settings(_env_file=None)
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
GUID = UUID("0b242abb-623a-4c57-8575-680df30655b9")
NUMBER = {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 4}


def logical(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "logicalType": name}


def record(**fields: Any) -> str:
    columns = [{"name": name, "type": kind} for name, kind in fields.items()]
    return json.dumps({"type": "record", "name": "Payment", "fields": columns})


TRANSACTION = record(
    transaction_id="string",
    tx_datetime=logical("long", "timestamp-millis"),
    customer_id="long",
    terminal_id="string",
    tx_amount=NUMBER,
)
LABEL = record(transaction_id="string", is_fraud="boolean", labelled_at=logical("long", "timestamp-micros"))


def avro(schema: str, datum: dict[str, Any], identity: int | None = 1) -> bytes:
    stream = BytesIO()
    schemaless_writer(stream, parse_schema(json.loads(schema)), datum)
    return (b"" if identity is None else framed(identity)) + stream.getvalue()


def framed(identity: int) -> bytes:
    return b"\0" + struct.pack(">I", identity)


def decoder(*schemas: WriterSchema | str, kind: Any = "AVRO") -> Decoder:
    """A decoder for a registry that has the schemas under the ids 1, 2, …, and the first one also under a GUID."""
    known: dict[SchemaId, WriterSchema] = {
        number: schema if isinstance(schema, WriterSchema) else WriterSchema(kind, schema)
        for number, schema in enumerate(schemas, 1)
    }
    if known:
        known[GUID] = known[1]
    return Decoder(kind, known.get)


def transaction(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "transaction_id": str(number),
        "tx_datetime": MOMENT,
        "customer_id": 4_111_111_111_111_111,
        "terminal_id": "t",
        "tx_amount": Decimal("12.3400"),
        **changes,
    }


def landed(bodies: list[bytes | None], headers: list[Any] | None = None) -> pa.Table:
    count = len(bodies)
    columns = {
        "topic": ["transactions"] * count,
        "topic_id": ["a"] * count,
        "partition": [0] * count,
        "offset": list(range(count)),
        "timestamp": [None] * count,
        "key": [None] * count,
        "value": bodies,
        "headers": headers or [None] * count,
        "ingested_at": [MOMENT] * count,
        "ingest_date": [MOMENT.date()] * count,
    }
    return pa.table(columns, schema=RAW_TRANSACTIONS)


def as_json(schema: str, datum: dict[str, Any], *references: str) -> Any:
    return json.loads(decoder(WriterSchema("AVRO", schema, references)).json_body(avro(schema, datum)))


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (logical("long", "timestamp-millis"), MOMENT, "2026-01-02T03:04:05.678000Z"),
        (logical("long", "timestamp-micros"), MOMENT, "2026-01-02T03:04:05.678901Z"),
        (logical("long", "timestamp-nanos"), 1_767_323_045_678_901_234, "2026-01-02T03:04:05.678901Z"),
        (logical("long", "local-timestamp-micros"), MOMENT.replace(tzinfo=None), "2026-01-02T03:04:05.678901"),
        (logical("int", "date"), date(2026, 1, 2), "2026-01-02"),
        (NUMBER, Decimal("1234567890123456.7800"), "1234567890123456.7800"),
        (NUMBER, Decimal("0.0000"), "0.0000"),
        (logical("string", "uuid"), GUID, str(GUID)),
        ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, "B", "B"),
        (["null", "long"], None, None),
        ("double", float("nan"), ...),
        ("double", float("-inf"), ...),
        (["null", "long"], 4_111_111_111_111_111_111, 4_111_111_111_111_111_111),
        ({"type": "record", "name": "Card", "fields": [{"name": "number", "type": "string"}]}, {"number": "4"}, ...),
        ({"type": "map", "values": "int"}, {"a": 1}, ...),
        ({"type": "array", "items": "string"}, ["é"], ...),
        ("bytes", "Zoë".encode(), "Zoë"),
        ("bytes", b"4111\xff", {"bytes": "34313131ff"}),
        ({"type": "fixed", "name": "F", "size": 3}, b"abc", "abc"),
        ({"type": "fixed", "name": "F", "size": 16}, GUID.bytes, {"bytes": GUID.hex}),
        ({"type": "fixed", "name": "F", "size": 16, "logicalType": "uuid"}, GUID.bytes, str(GUID)),
    ],
    ids=str,
)
def test_a_value_becomes_json_that_the_contract_accepts(kind: Any, value: Any, expected: Any) -> None:
    wanted = {"x": value if expected is ... else expected}
    assert repr(as_json(record(x=kind), {"x": value})) == repr(wanted)
    # A schema with bytes takes another code path, which gives the same value.
    assert repr(as_json(record(x=kind, y="bytes"), {"x": value, "y": b""})) == repr({**wanted, "y": ""})


def test_a_schema_can_refer_to_another_schema() -> None:
    card = json.dumps({"type": "record", "name": "Card", "fields": [{"name": "number", "type": "string"}]})
    text = record(card="Card")
    stream = BytesIO()
    named: dict[str, Any] = {}
    parse_schema(json.loads(card), named)
    schemaless_writer(stream, parse_schema(json.loads(text), named), {"card": {"number": "4"}})
    body = framed(1) + stream.getvalue()
    assert json.loads(decoder(WriterSchema("AVRO", text, (card,))).json_body(body)) == {"card": {"number": "4"}}


def test_transactions_and_labels_are_the_same_in_every_format() -> None:
    plain = json.dumps(transaction(1, tx_datetime=MOMENT.isoformat(), tx_amount="12.34"), default=str).encode()
    micros = TRANSACTION.replace("millis", "micros")
    results = {
        "json": parse_transactions(landed([plain]), SETTINGS.contract),
        "avro": parse_transactions(landed([avro(micros, transaction(1))]), SETTINGS.contract, decoder(micros)),
        "header": parse_transactions(
            landed([avro(micros, transaction(1), None)], [[{"key": ID_HEADER, "value": b"\1" + GUID.bytes}]]),
            SETTINGS.contract,
            decoder(micros),
        ),
        "json_schema": parse_transactions(landed([framed(1) + plain]), SETTINGS.contract, decoder("{}", kind="JSON")),
    }
    for name, (valid, rejected) in results.items():
        assert rejected.num_rows == 0, (name, rejected.to_pylist())
        assert valid.equals(results["json"][0]), name
    label = avro(LABEL, {"transaction_id": "1", "is_fraud": True, "labelled_at": MOMENT})
    good, _ = parse_labels(landed([label]), SETTINGS.contract, decoder(LABEL))
    assert good.select(["transaction_id", "is_fraud", "labelled_at"]).to_pylist() == [
        {"transaction_id": "1", "is_fraud": True, "labelled_at": MOMENT}
    ]
    assert good["value"].to_pylist() == [label]


def test_bodies_of_a_new_schema_with_an_optional_field_are_valid() -> None:
    wider = json.loads(TRANSACTION)
    wider["fields"].insert(0, {"name": "channel", "type": ["null", "string"], "default": None})
    wide = json.dumps(wider)
    bodies: list[bytes | None] = [avro(TRANSACTION, transaction(1)), avro(wide, transaction(2, channel="web"), 2)]
    valid, rejected = parse_transactions(landed(bodies), SETTINGS.contract, decoder(TRANSACTION, wide))
    assert rejected.num_rows == 0
    assert valid["transaction_id"].to_pylist() == ["1", "2"]


def test_a_body_without_a_frame_is_read_as_json() -> None:
    plain = json.dumps(transaction(1, tx_datetime=MOMENT.isoformat(), tx_amount=1), default=str).encode()
    bodies: list[bytes | None] = [plain, avro(TRANSACTION, transaction(2))]
    valid, _ = parse_transactions(landed(bodies), SETTINGS.contract, decoder(TRANSACTION))
    assert valid["transaction_id"].to_pylist() == ["1", "2"]


def test_each_bad_body_is_quarantined_with_its_reason_and_its_bytes() -> None:
    good = avro(TRANSACTION, transaction(1))
    bad = {
        framed(9) + good[5:]: "unknown_schema",
        framed(2) + good[5:]: "unknown_schema",
        framed(3) + good[5:]: "unknown_schema",
        b"\0": "invalid_avro",
        good[:-1]: "invalid_avro",
        good + b"x": "invalid_avro",
        framed(1): "invalid_avro",
        framed(1) + b"\xff" * 40: "invalid_avro",
        b"{": "invalid_json",
        avro(TRANSACTION, transaction(1, terminal_id="x" * 100_000)): "body_too_large",
        avro(TRANSACTION, transaction(1, tx_amount=Decimal("-1.0000"))): "negative_amount",
        None: "tombstone",
        b"": "empty_body",
    }
    bodies: list[bytes | None] = [good, *bad, good]
    reader = decoder(TRANSACTION, WriterSchema("PROTOBUF", "syntax"), WriterSchema("AVRO", '{"type": "rekord"}'))
    valid, rejected = parse_transactions(landed(bodies), SETTINGS.contract, reader)
    assert valid["offset"].to_pylist() == [0, len(bad) + 1]
    assert rejected["reason"].to_pylist() == list(bad.values())
    assert rejected["value"].to_pylist() == list(bad)
    assert all(rejected["detail"].to_pylist())


def test_the_size_limit_applies_to_the_received_body() -> None:
    """The JSON form of an Avro body can exceed the limit."""
    schema = record(**{field["name"]: field["type"] for field in json.loads(TRANSACTION)["fields"]}, note="string")
    body = avro(schema, transaction(1, note="\n" * 99_900))
    assert len(body) < SETTINGS.max_body_bytes
    assert len(decoder(schema).json_body(body)) > SETTINGS.max_body_bytes
    valid, _ = parse_transactions(landed([body]), SETTINGS.contract, decoder(schema))
    assert valid.num_rows == 1


def test_an_id_that_the_registry_does_not_have_is_requested_once() -> None:
    requested: list[SchemaId] = []

    def unknown(identity: SchemaId) -> None:
        requested.append(identity)

    reader = Decoder("AVRO", unknown)
    for _ in range(3):
        with pytest.raises(Rejected, match="no schema 7"):
            reader.json_body(framed(7) + b"x")
    assert requested == [7]


NODE: dict[str, Any] = {"type": "record", "name": "Node"}


@pytest.mark.parametrize("next_node", [["null", "Node"], "Node", {"type": "array", "items": "Node"}], ids=str)
def test_a_recursive_record_cannot_overflow_the_stack(next_node: Any) -> None:
    """Each level needs only one byte of the body, so compiled code would overflow the stack and end the process."""
    reader = decoder(json.dumps({**NODE, "fields": [{"name": "next", "type": next_node}]}))
    with pytest.raises(Rejected, match="RecursionError") as rejected:
        reader.json_body(framed(1) + b"\x02" * 99_000)
    assert rejected.value.reason == "invalid_avro"


def test_a_recursive_record_is_read() -> None:
    moment = {"name": "at", "type": logical("long", "timestamp-nanos")}
    tree = json.dumps({**NODE, "fields": [moment, {"name": "next", "type": ["null", "Node"]}]})
    text = record(a={"type": "array", "items": "int"}, tree=json.loads(tree), again="Node")
    leaf = {"at": 1_767_323_045_678_901_234, "next": None}
    found = as_json(text, {"a": [1], "tree": {**leaf, "next": leaf}, "again": leaf})
    assert found["tree"]["next"] == found["again"] == {"at": "2026-01-02T03:04:05.678901Z", "next": None}


@pytest.mark.parametrize(
    "items",
    ["null", {"type": "record", "name": "Empty", "fields": [{"name": "x", "type": "null"}]},
     {"type": "fixed", "name": "Nothing", "size": 0}],
    ids=str,
)  # fmt: skip
def test_an_array_of_items_without_bytes_is_rejected(items: Any) -> None:
    schema = record(first=["null", {"type": "map", "values": {"type": "array", "items": items}}])
    with pytest.raises(Rejected, match="items without bytes") as rejected:
        decoder(schema).json_body(framed(1) + b"\x02\x02\x02a\xfe\xff\xff\xff\xff\xff\xff\xff\x7f\0\0")
    assert rejected.value.reason == "unknown_schema"
