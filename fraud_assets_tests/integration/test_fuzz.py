"""Fuzz tests: no message or file causes a crash, a hang or a loss, and each message ends in exactly one table."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fraud_assets.core.bodies import WITHHELD, Rejected, parse_json_object
from fraud_assets.core.formats import Decoder, SchemaId, WriterSchema
from fraud_assets.core.parsing import parse_labels, parse_transactions
from fraud_assets.core.pseudonyms import pseudonymise
from fraud_assets.core.quarantine_reasons import REASONS
from fraud_assets.core.schema import (
    raw_transactions,
)
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.kafka.broker import Broker, embedded_broker
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings, load_settings
from fraud_assets_tests.support import fuzz
from fraud_assets_tests.support.fuzz import Sent
from fraud_assets_tests.support.fuzz_flow import (
    DIALECTS,
    KEY,
    Make,
    assert_files_are_in_their_place,
    assert_meant,
    at,
    drop,
    flow,
    land_in_a_process,
    produce,
    rows_of,
)
from fraud_assets_tests.support.messages import label_table, raw_table
from fraud_assets_tests.support.starting import Send

NOW = datetime(2024, 3, 1, tzinfo=UTC)


def assert_split(raw: pa.Table, good: pa.Table, bad: pa.Table) -> None:
    """Check that each message is in one table, and that each bad one has its bytes, a known reason and a detail."""
    assert sorted(good["offset"].to_pylist() + bad["offset"].to_pylist()) == list(range(raw.num_rows))
    assert set(bad["reason"].to_pylist()) <= set(REASONS)
    details = bad["detail"].to_pylist()
    assert all(details)
    assert max(map(len, details)) < 500
    values = raw["value"].to_pylist()
    assert bad["value"].to_pylist() == [values[offset] for offset in bad["offset"].to_pylist()]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_message_has_the_same_result_in_any_batch(dialect: str) -> None:
    settings = load_settings(_env_file=None, field_mapping=DIALECTS[dialect].mapping)
    bodies = [message.value for message in fuzz.messages(3_000, 11, DIALECTS[dialect])]
    raw = raw_table(bodies, NOW)
    valid, rejected = parse_transactions(raw, settings.contract)
    assert_split(raw, valid, rejected)
    assert valid.num_rows > 800
    assert len(set(rejected["reason"].to_pylist())) >= 12
    for row in valid.to_pylist():
        assert_meant(bodies[row["offset"]] or b"", row, settings)
    for start in range(0, 600, 5):
        parsed = parse_transactions(raw.slice(start, 5), settings.contract)
        for found, table in zip(parsed, (valid, rejected), strict=True):
            in_slice = pc.and_(pc.greater_equal(table["offset"], start), pc.less(table["offset"], start + 5))
            assert found.to_pylist() == table.filter(in_slice).to_pylist()


def test_each_label_is_good_or_has_a_reason() -> None:
    raw = label_table([message.value for message in fuzz.messages(2_000, 12, fuzz.LABELS)])
    good, bad = parse_labels(raw, load_settings(_env_file=None).contract)
    assert_split(raw, good, bad)
    assert min(good.num_rows, bad.num_rows) > 500


def decoder(kind: Any) -> Decoder:
    """Return a decoder. The Avro schemas are one valid, one recursive, one with endless arrays and one invalid."""
    texts = [fuzz.AVRO, fuzz.RECURSIVE, fuzz.ENDLESS, '{"type": "rekord"}'] if kind == "AVRO" else ["{}"]
    known: dict[SchemaId, WriterSchema] = {number: WriterSchema(kind, text) for number, text in enumerate(texts, 1)}
    return Decoder(kind, known.get)


@pytest.mark.parametrize(("kind", "wire"), [("AVRO", fuzz.avro_wire), ("JSON", fuzz.json_schema_wire)])
def test_each_framed_message_is_good_or_has_a_reason(kind: str, wire: Callable[[fuzz.SchemaIds], fuzz.Wire]) -> None:
    sent = list(fuzz.messages(2_000, 13, fuzz.HANDBOOK, wire(fuzz.SchemaIds(1, (2, 3, 4)))))
    headers = [[{"key": key, "value": value} for key, value in message.headers] or None for message in sent]
    raw = raw_table([message.value for message in sent], NOW)
    raw = raw.set_column(
        raw.column_names.index("headers"), raw.schema.field("headers"), pa.array(headers, raw["headers"].type)
    )
    valid, rejected = parse_transactions(raw, load_settings(_env_file=None).contract, decoder(kind))
    assert_split(raw, valid, rejected)
    assert valid.num_rows > 500
    assert rejected["reason"].to_pylist().count("unknown_schema") > 50


@hypothesis_settings(max_examples=300)
@given(
    st.binary(max_size=60) | st.sampled_from([b"\2", b"\x7f", b"\xff"]).map(lambda byte: byte * 5_000),
    st.sampled_from([1, 2, 3]),
)
def test_any_payload_follows_its_schema_or_is_rejected(payload: bytes, schema: int) -> None:
    """If fastavro decodes the payload, the result is a JSON object, which the parser reads."""
    with suppress(Rejected):
        assert isinstance(json.loads(decoder("AVRO").json_body(b"\0" + schema.to_bytes(4, "big") + payload)), dict)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_pseudonyms_do_not_change_the_result_of_a_message(dialect: str) -> None:
    """The contract does not need the fields with pseudonyms, so only withheld bodies may have another result."""
    settings = load_settings(
        _env_file=None, field_mapping=DIALECTS[dialect].mapping, pseudonymise="card.number,note", pseudonym_key=KEY
    )
    bodies = [message.value for message in fuzz.messages(2_500, 14, DIALECTS[dialect])]
    raw = raw_table(bodies, NOW)
    pseudonymized = pseudonymise(raw, settings.pseudonym_policy)
    results = []
    for messages in (raw, pseudonymized):
        valid, rejected = parse_transactions(messages, settings.contract)
        good: dict[int, Any] = {
            row["offset"]: {**row, "tx_datetime": str(row["tx_datetime"])} for row in valid.to_pylist()
        }
        results.append(good | dict(zip(rejected["offset"].to_pylist(), rejected["reason"].to_pylist(), strict=True)))
    before, after = results
    for offset, (body, value) in enumerate(zip(bodies, pseudonymized["value"].to_pylist(), strict=True)):
        # Python does not convert integers of more than 4,300 digits, so such a body cannot be written again.
        if after[offset] != before[offset]:
            assert after[offset] == "wrong_type"
            assert b"9" * 4301 in (body or b"") or b"9" * 5000 in (body or b"")
        if value and not value.startswith(WITHHELD):
            assert isinstance(parse_json_object(value, 10**7), dict)


# --- From the broker to the score -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "avro"])
def test_each_mutated_message_ends_in_the_expected_table(make_settings: Make, kind: str) -> None:
    settings = make_settings(transactions_format=kind, schema_registry_url=f"mock://{uuid4().hex}")
    with embedded_broker(settings):
        counts, _ = flow(settings, fuzz.HANDBOOK, 800, 400, seed=21, partitions=4, scored=False)
    assert min(counts["features"], counts["quarantined"]) > 150
    assert min(counts["duplicates"], counts["labels"], counts["quarantined_labels"]) > 0


# --- Messages that the Kafka client cannot represent ------------------------------------------------------------------


def test_a_message_with_a_time_after_the_year_9999_lands_without_time(
    settings: Settings, lake: Lake, broker: Broker
) -> None:
    """A producer may send nanoseconds in place of milliseconds."""
    times = [1_704_067_200_000, 253_402_300_799_999, 253_402_300_800_000, 1_704_067_200_000_000_000, 2**63 - 1]
    produce(broker, "transactions", [Sent(b"{}", time=time) for time in times], 1)
    produce(broker, "fraud-labels", [Sent(b"{}")], 1)
    land_topics(lake, settings)
    rows = sorted(rows_of(lake, raw_transactions), key=at)
    assert [row["timestamp"] for row in rows] == [
        datetime(2024, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999000, UTC), None, None, None
    ]  # fmt: skip


def produce_with_header(broker: Broker, topic: str, name: bytes) -> None:
    """Produce a message with this header name through librdkafka, because the Python client accepts only text."""
    import confluent_kafka

    packages = Path(confluent_kafka.__file__).parents[1]
    found = next(packages.glob("confluent_kafka.libs/librdkafka*"), None) or next(
        packages.glob("*/.dylibs/librdkafka*"), None
    )
    if found is None:
        pytest.skip("librdkafka is not in the usual folder of the wheel")
    library, pointer = ctypes.CDLL(str(found)), ctypes.c_void_p
    for function in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_headers_new"):
        getattr(library, function).restype = pointer
    config, error = pointer(library.rd_kafka_conf_new()), ctypes.create_string_buffer(512)
    for key, value in ((b"bootstrap.servers", broker.bootstrap.encode()), (b"log_level", b"0")):
        library.rd_kafka_conf_set(config, key, value, error, 512)
    producer = pointer(library.rd_kafka_new(0, config, error, 512))
    headers = pointer(library.rd_kafka_headers_new(1))
    library.rd_kafka_header_add(headers, name, ctypes.c_ssize_t(len(name)), b"v", ctypes.c_ssize_t(1))
    integer = ctypes.c_int
    # Tags, each with its values, end with 0: topic; value and its length; the flag "copy"; headers.
    tagged = (integer(1), ctypes.c_char_p(topic.encode()), integer(4), ctypes.c_char_p(b"{}"), ctypes.c_size_t(2))
    assert library.rd_kafka_producev(producer, *tagged, integer(7), integer(2), integer(10), headers, integer(0)) == 0
    assert library.rd_kafka_flush(producer, 10_000) == 0
    library.rd_kafka_destroy(producer)


def test_a_message_with_an_unreadable_header_lands(settings: Settings, lake: Lake, broker: Broker, send: Send) -> None:
    """The client raises an error for the name. The message lands with its body and a marker in place of its headers."""
    send("transactions", [b"{}"] * 200, headers=[("a", b"1")])
    produce_with_header(broker, "transactions", b"\xff\xfe")
    send("transactions", [b"{}"] * 200, headers=[("a", b"1")])
    send("fraud-labels", [b"{}"])
    assert land_topics(lake, settings)["raw_transactions"].rows == 401
    rows = rows_of(lake, raw_transactions)
    found = {header["key"]: header["value"] for row in rows for header in row["headers"]}
    assert found == {"a": b"1", "fraud_assets.unreadable_headers": None}
    assert [row["value"] for row in rows] == [b"{}"] * 401


# --- Dropped files ----------------------------------------------------------------------------------------------------


def test_each_mutated_file_lands_completely_or_fails_with_a_reason(settings: Settings) -> None:
    dropped = drop(settings, fuzz.files(90, 41))
    land_in_a_process(settings, 100)
    assert min(assert_files_are_in_their_place(settings, dropped)) > 15
