"""Whatever is sent or dropped: nothing crashes or hangs, nothing is lost, and each message has its one place."""

from __future__ import annotations

import csv
import ctypes
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer
from confluent_kafka.schema_registry import Schema
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from fraud_assets.core.bodies import WITHHELD, Rejected, json_object
from fraud_assets.core.formats import Decoder, SchemaId, WriterSchema
from fraud_assets.core.parsing import parse_labels, parse_transactions
from fraud_assets.core.pseudonyms import keyed_hmac, pseudonymise
from fraud_assets.core.quarantine_reasons import REASONS
from fraud_assets.core.schema import (
    DERIVED_FEATURES,
    Table,
    fraud_labels,
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.ingest.files.examination import JSON_LINES
from fraud_assets.kafka.broker import Broker, embedded_broker, find_broker
from fraud_assets.kafka.schemas import registry_client
from fraud_assets.lake.tables import Lake, dataset_of
from fraud_assets.operations.reconciliation import reconcile
from fraud_assets.settings import Settings, load_settings
from fraud_assets.stages.features import process_landed
from fraud_assets.stages.scoring import score_pending
from fraud_assets.stages.training import train
from fraud_assets.testing.apache_kafka import why_unavailable
from fraud_assets_tests.support import fuzz
from fraud_assets_tests.support.fuzz import Sent
from fraud_assets_tests.support.messages import label_table, raw_table
from fraud_assets_tests.support.starting import Send, topic_maker

Make = Callable[..., Settings]
Place = tuple[int, int]
"""Partition and offset."""

KEY = "a key of thirty-two characters or more"
NOW = datetime(2024, 3, 1, tzinfo=UTC)
DIALECTS = {"handbook": fuzz.HANDBOOK, "sparkov": fuzz.SPARKOV}


def silent(_: str) -> None:
    """Progress that nobody reads."""


# --- Parsing alone ----------------------------------------------------------------------------------------------------


def assert_split(raw: pa.Table, good: pa.Table, bad: pa.Table) -> None:
    """Each message is once in one of the two, the bad ones with their bytes and a reason that has a sentence."""
    assert sorted(good["offset"].to_pylist() + bad["offset"].to_pylist()) == list(range(raw.num_rows))
    assert set(bad["reason"].to_pylist()) <= set(REASONS)
    details = bad["detail"].to_pylist()
    assert all(details)
    assert max(map(len, details)) < 500
    values = raw["value"].to_pylist()
    assert bad["value"].to_pylist() == [values[offset] for offset in bad["offset"].to_pylist()]


def assert_meant(body: bytes, row: dict[str, Any], settings: Settings) -> None:
    """A good row holds what its body says, as Python's own reader of JSON reads it."""
    payload = json.loads(body, parse_int=lambda digits: int(digits) if len(digits) <= 4_300 else digits)
    for name in ("transaction_id", "customer_id", "terminal_id"):
        assert row[name] == str(payload[settings.contract.payload_field(name)])
        assert row[name].strip()
    assert row["tx_amount"] == float(payload[settings.contract.payload_field("tx_amount")])
    assert math.isfinite(row["tx_amount"])
    assert row["tx_amount"] >= 0
    assert 1900 <= row["tx_datetime"].year < 2200


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_message_is_judged_among_others_as_alone(dialect: str) -> None:
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
        few = parse_transactions(raw.slice(start, 5), settings.contract)
        for found, table in zip(few, (valid, rejected), strict=True):
            mine = pc.and_(pc.greater_equal(table["offset"], start), pc.less(table["offset"], start + 5))
            assert found.to_pylist() == table.filter(mine).to_pylist()


def test_labels_are_good_or_have_a_reason() -> None:
    raw = label_table([message.value for message in fuzz.messages(2_000, 12, fuzz.LABELS)])
    good, bad = parse_labels(raw, load_settings(_env_file=None).contract)
    assert_split(raw, good, bad)
    assert min(good.num_rows, bad.num_rows) > 500


def decoder(kind: Any) -> Decoder:
    """Of a registry with a good schema, one that holds itself, one with endless arrays, one that is none."""
    texts = [fuzz.AVRO, fuzz.RECURSIVE, fuzz.ENDLESS, '{"type": "rekord"}'] if kind == "AVRO" else ["{}"]
    known: dict[SchemaId, WriterSchema] = {number: WriterSchema(kind, text) for number, text in enumerate(texts, 1)}
    return Decoder(kind, known.get)


@pytest.mark.parametrize(("kind", "wire"), [("AVRO", fuzz.avro_wire), ("JSON", fuzz.json_schema_wire)])
def test_framed_messages_are_good_or_have_a_reason(kind: str, wire: Callable[[fuzz.SchemaIds], fuzz.Wire]) -> None:
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


@effort(max_examples=300)
@given(
    st.binary(max_size=60) | st.sampled_from([b"\2", b"\x7f", b"\xff"]).map(lambda byte: byte * 5_000),
    st.sampled_from([1, 2, 3]),
)
def test_any_payload_follows_its_schema_or_is_rejected(payload: bytes, schema: int) -> None:
    """Whatever fastavro makes of it, its result is an object for the one parser."""
    with suppress(Rejected):
        assert isinstance(json.loads(decoder("AVRO").json_body(b"\0" + schema.to_bytes(4, "big") + payload)), dict)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_treated_message_is_judged_as_the_message(dialect: str) -> None:
    """Fields that the contract does not need are treated, so that nothing may change but for what is withheld."""
    settings = load_settings(
        _env_file=None, field_mapping=DIALECTS[dialect].mapping, pseudonymise="card.number,note", pseudonym_key=KEY
    )
    bodies = [message.value for message in fuzz.messages(2_500, 14, DIALECTS[dialect])]
    raw = raw_table(bodies, NOW)
    after = pseudonymise(raw, settings.pseudonym_policy)
    verdicts = []
    for messages in (raw, after):
        valid, rejected = parse_transactions(messages, settings.contract)
        good: dict[int, Any] = {
            row["offset"]: {**row, "tx_datetime": str(row["tx_datetime"])} for row in valid.to_pylist()
        }
        verdicts.append(good | dict(zip(rejected["offset"].to_pylist(), rejected["reason"].to_pylist(), strict=True)))
    before, now = verdicts
    for offset, (body, value) in enumerate(zip(bodies, after["value"].to_pylist(), strict=True)):
        # What Python cannot convert cannot be written again, whatever field it is in.
        if now[offset] != before[offset]:
            assert now[offset] == "wrong_type"
            assert b"9" * 4301 in (body or b"") or b"9" * 5000 in (body or b"")
        if value and not value.startswith(WITHHELD):
            assert isinstance(json_object(value, 10**7), dict)


# --- From the broker to the score -------------------------------------------------------------------------------------


def produce(broker: Broker, topic: str, sent: Iterable[Sent], partitions: int) -> dict[Place, Sent]:
    """Produces all, dealt out to the partitions; gives where each message is."""
    places: dict[Place, Sent] = {}

    def delivered(message: Sent, error: Any, at: Any) -> None:
        assert error is None, (error, message)
        places[at.partition(), at.offset()] = message

    producer = Producer(
        {
            "bootstrap.servers": broker.bootstrap,
            "log_level": 0,
            "linger.ms": 20,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    for number, message in enumerate(sent):
        producer.produce(
            topic,
            message.value,
            message.key,
            partition=number % partitions,
            headers=list(message.headers) or None,
            timestamp=message.time,
            on_delivery=partial(delivered, message),
        )
        producer.poll(0)
    assert producer.flush(60) == 0
    return places


def rows_of(lake: Lake, table: Table, *columns: str) -> list[dict[str, Any]]:
    return dataset_of(lake.open(table)).to_table(columns=list(columns) or None).to_pylist()


def at(row: dict[str, Any]) -> Place:
    return row["partition"], row["offset"]


def assert_bytes(row: dict[str, Any], sent: Sent, settings: Settings) -> None:
    """A stored message is the one that was sent, or its treated form."""
    headers = [(header["key"], header["value"]) for header in row["headers"] or ()]
    if not settings.pseudonymise:
        assert (row["value"], row["key"], headers) == (sent.value, sent.key, list(sent.headers))
        return
    assert row["key"] == (keyed_hmac(sent.key, settings.pseudonym_policy).encode() if sent.key else sent.key)
    assert [name for name, _ in headers] == [name for name, _ in sent.headers]
    assert bool(row["value"]) == bool(sent.value)


def assert_everything_has_its_place(
    lake: Lake, settings: Settings, transactions: dict[Place, Sent], labels: dict[Place, Sent], scored: bool
) -> dict[str, int]:
    """Holds the lake to what was sent; gives the books."""
    landed = {at(row): row for row in rows_of(lake, raw_transactions)}
    assert landed.keys() == transactions.keys()
    for place, row in landed.items():
        assert_bytes(row, transactions[place], settings)
    quarantined = rows_of(lake, quarantined_transactions)
    assert {row["reason"] for row in quarantined} <= set(REASONS)
    assert all(row["detail"] for row in quarantined)
    refused = [row for row in quarantined if row["topic"] == settings.transactions_topic]
    assert all(row["value"] == landed[at(row)]["value"] for row in refused)
    features = rows_of(lake, transaction_features)
    assert sorted(map(at, features + refused)) == sorted(landed)
    assert len({row["transaction_id"] for row in features}) == len(features)
    for row in features:
        if settings.transactions_format == "json" and not settings.pseudonymise:
            assert_meant(landed[at(row)]["value"], row, settings)
        assert row["tx_datetime"] <= row["ingested_at"] + timedelta(seconds=settings.future_skew_seconds)
        assert not any(math.isnan(row[name]) or row[name] < 0 for name in DERIVED_FEATURES)
    if scored:
        predictions = rows_of(lake, fraud_predictions)
        assert sorted(map(at, predictions)) == sorted(map(at, features))
        assert all(0 < row["score"] <= 1 for row in predictions)
    known = rows_of(lake, fraud_labels, "partition", "offset")
    bad = [row for row in quarantined if row["topic"] == settings.labels_topic]
    assert all(row["reason"].startswith("label_") for row in bad)
    assert sorted(map(at, known + bad)) == sorted(labels)
    if not settings.pseudonymise:
        assert all(row["value"] == labels[at(row)].value for row in bad)
    counts = reconcile(lake, settings)
    assert counts["landed"] == len(transactions) == counts["features"] + counts["quarantined"] + counts["duplicates"]
    assert counts["labels"] + counts["quarantined_labels"] == len(labels)
    return counts


def wire_of(settings: Settings) -> fuzz.Wire | None:
    """What frames bodies with the ids of the settings' registry, which is filled here."""
    if settings.transactions_format == "json":
        return None
    client = registry_client(settings)
    kind = "AVRO" if settings.transactions_format == "avro" else "JSON"
    good = client.register_schema("good", Schema(fuzz.AVRO if kind == "AVRO" else '{"type": "object"}', kind))
    others = [
        client.register_schema(name, Schema(text, other))
        for name, text, other in (
            ("recursive", fuzz.RECURSIVE, "AVRO"),
            ("endless", fuzz.ENDLESS, "AVRO"),
            ("other", '{"title": "other"}', "JSON"),
        )
    ]
    return (fuzz.avro_wire if kind == "AVRO" else fuzz.json_schema_wire)(fuzz.SchemaIds(good, others))


def flow(
    settings: Settings, dialect: fuzz.Dialect, count: int, each: int, seed: int, partitions: int, scored: bool
) -> tuple[dict[str, int], float]:
    """Sends mutated messages in rounds of `each`, through every stage; gives the books and the stages' seconds."""
    lake, broker = Lake.of(settings), find_broker(settings)
    messages = fuzz.messages(count, seed, dialect, wire_of(settings))
    labels = fuzz.messages(max(count // 10, 20), seed + 1, fuzz.labels_of(dialect))
    sent: tuple[dict[Place, Sent], dict[Place, Sent]] = {}, {}
    seconds, trained = 0.0, False
    while len(sent[0]) < count:
        sent[1].update(produce(broker, settings.labels_topic, islice(labels, max(each // 10, 20)), partitions))
        sent[0].update(produce(broker, settings.transactions_topic, islice(messages, each), partitions))
        begun = monotonic()
        land_topics(lake, settings)
        process_landed(lake, settings)
        seconds += monotonic() - begun
        if scored and not trained:
            train(lake, settings, fuzz.FIRST, fuzz.FIRST + timedelta(days=40))
            trained = True
        begun = monotonic()
        if scored:
            score_pending(lake, settings)
        seconds += monotonic() - begun
    return assert_everything_has_its_place(lake, settings, *sent, scored), seconds


@pytest.mark.parametrize("kind", ["json", "avro"])
def test_mutated_messages_find_their_place(make_settings: Make, kind: str) -> None:
    settings = make_settings(transactions_format=kind, schema_registry_url=f"mock://{uuid4().hex}")
    with embedded_broker(settings):
        counts, _ = flow(settings, fuzz.HANDBOOK, 800, 400, seed=21, partitions=4, scored=False)
    assert min(counts["features"], counts["quarantined"]) > 150
    assert min(counts["duplicates"], counts["labels"], counts["quarantined_labels"]) > 0


@contextmanager
def any_broker(request: pytest.FixtureRequest, make_settings: Make, **overrides: Any) -> Iterator[Settings]:
    """Settings with topics of two partitions at Apache Kafka, or with an embedded broker where there is none."""
    if why_unavailable() is None:
        make = topic_maker(request.getfixturevalue("apache").bootstrap)
        # Else the broker refuses the times that some messages carry, or forgets these messages.
        limits = {"message_timestamp_after_max_ms": 2**63 - 1, "retention_ms": -1, "max_message_bytes": 2_000_000}
        yield make_settings(
            kafka_bootstrap_servers=request.getfixturevalue("apache").bootstrap,
            transactions_topic=make("transactions", partitions=2, **limits),
            labels_topic=make("fraud-labels", partitions=2, **limits),
            **overrides,
        )
    else:
        settings = make_settings(**overrides)
        with embedded_broker(settings):
            yield settings


@pytest.mark.proof
@pytest.mark.timeout(1_200)
@pytest.mark.xdist_group("apache")
@pytest.mark.parametrize(
    ("kind", "dialect", "secret", "count"),
    [
        ("json", "handbook", "", 100_000),
        ("json", "sparkov", "", 10_000),
        ("avro", "handbook", "", 10_000),
        ("json_schema", "handbook", "", 10_000),
        ("json", "sparkov", "cc_num,card.number", 10_000),
        ("avro", "handbook", "customer_id", 5_000),
    ],
)
def test_a_hundred_thousand_mutated_messages_find_their_place(
    request: pytest.FixtureRequest,
    make_settings: Make,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    dialect: str,
    secret: str,
    count: int,
) -> None:
    overrides: dict[str, Any] = {
        "transactions_format": kind,
        "schema_registry_url": f"mock://{uuid4().hex}",
        "field_mapping": DIALECTS[dialect].mapping,
        "pseudonymise": secret,
        "pseudonym_key": KEY,
        "train_trees": 5,
        "train_min_rows": 200,
    }
    with any_broker(request, make_settings, **overrides) as settings:
        counts, seconds = flow(settings, DIALECTS[dialect], count, 5_000, seed=31, partitions=2, scored=True)
    with capsys.disabled():
        print(f"\n{count:,} of {dialect} in {kind}{secret and ', pseudonymised'}: {count / seconds:,.0f}/s, {counts}")
    assert min(counts["features"], counts["quarantined"]) > count // 6
    assert min(counts["labels"], counts["quarantined_labels"]) > count // 60


# --- What the client cannot give --------------------------------------------------------------------------------------


def test_times_beyond_the_calendar_land_without_time(settings: Settings, lake: Lake, broker: Broker) -> None:
    """A producer may take nanoseconds for milliseconds."""
    times = [1_704_067_200_000, 253_402_300_799_999, 253_402_300_800_000, 1_704_067_200_000_000_000, 2**63 - 1]
    produce(broker, "transactions", [Sent(b"{}", time=time) for time in times], 1)
    produce(broker, "fraud-labels", [Sent(b"{}")], 1)
    land_topics(lake, settings)
    rows = sorted(rows_of(lake, raw_transactions), key=at)
    assert [row["timestamp"] for row in rows] == [
        datetime(2024, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999000, UTC), None, None, None
    ]  # fmt: skip


def produce_with_header(broker: Broker, topic: str, name: bytes) -> None:
    """A message whose header has these bytes for a name, by the client's own library: its Python takes text only."""
    import confluent_kafka

    packages = Path(confluent_kafka.__file__).parents[1]
    found = next(packages.glob("confluent_kafka.libs/librdkafka*"), None) or next(
        packages.glob("*/.dylibs/librdkafka*"), None
    )
    if found is None:
        pytest.skip("the client's library is not where its wheel has it")
    library, pointer = ctypes.CDLL(str(found)), ctypes.c_void_p
    for function in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_headers_new"):
        getattr(library, function).restype = pointer
    config, error = pointer(library.rd_kafka_conf_new()), ctypes.create_string_buffer(512)
    for key, value in ((b"bootstrap.servers", broker.bootstrap.encode()), (b"log_level", b"0")):
        library.rd_kafka_conf_set(config, key, value, error, 512)
    producer = pointer(library.rd_kafka_new(0, config, error, 512))
    headers = pointer(library.rd_kafka_headers_new(1))
    library.rd_kafka_header_add(headers, name, ctypes.c_ssize_t(len(name)), b"v", ctypes.c_ssize_t(1))
    number = ctypes.c_int
    # Pairs of a tag and its values, then 0: topic, value and its length, flag "copy", headers.
    tagged = (number(1), ctypes.c_char_p(topic.encode()), number(4), ctypes.c_char_p(b"{}"), ctypes.c_size_t(2))
    assert library.rd_kafka_producev(producer, *tagged, number(7), number(2), number(10), headers, number(0)) == 0
    assert library.rd_kafka_flush(producer, 10_000) == 0
    library.rd_kafka_destroy(producer)


def test_a_header_that_cannot_be_read_stops_nothing(settings: Settings, lake: Lake, broker: Broker, send: Send) -> None:
    """The client raises of its name; the message lands with its body and says that its headers are not to be had."""
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

LANDER = """
from fraud_assets.lake.tables import Lake
from fraud_assets.ingest.files.landing import land_files
from fraud_assets.settings import load_settings

settings = load_settings(_env_file=None)
land_files(Lake.of(settings), settings)
"""
"""In a process of its own, so that a crash of native code is seen and ends no other test."""


def drop(settings: Settings, files: Iterable[tuple[str, bytes]]) -> dict[str, bytes]:
    settings.incoming.mkdir(parents=True, exist_ok=True)
    dropped = {}
    for name, content in files:
        (settings.incoming / name).write_bytes(content)
        dropped[hashlib.sha256(content).hexdigest()] = content
    return dropped


def land_in_a_process(settings: Settings, seconds: float, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", LANDER],
        cwd=settings.home_path,
        env={
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "FRAUD_HOME": str(settings.home_path),
            "FRAUD_FILE_QUIET_SECONDS": "0",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{done.stdout[-300:]}\n{done.stderr[-5_000:]}"
    assert list(settings.incoming.iterdir()) == []


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows_expected(path: Path) -> list[bytes] | int | None:
    """What a landed file holds by another reader: the lines, or a number of rows; None where readers differ."""
    suffix = path.suffix.lower()
    content = path.read_bytes()
    if suffix in JSON_LINES:
        return [line.rstrip(b"\r\n") for line in content.split(b"\n") if line.strip()]
    if suffix == ".parquet":
        return pq.read_metadata(path).num_rows
    if b"\0" in content or b'"' in content:
        return None
    text = content.decode("utf-8-sig")
    delimiter = max(",;\t|", key=text.splitlines()[0].count)
    return sum(any(row) or len(row) > 1 for row in csv.reader(text.splitlines(), delimiter=delimiter)) - 1


def is_line(landed: bytes, line: bytes) -> bool:
    """Whether a body is the line, but for the capital letters of its names."""
    if landed == line:
        return True
    body, written = (json.loads(text.decode("utf-8-sig")) for text in (landed, line))
    return list(body) == [name if name in body else name.lower() for name in written] and repr(
        list(body.values())
    ) == repr(list(written.values()))


def assert_files_are_in_their_place(settings: Settings, dropped: dict[str, bytes]) -> tuple[int, int]:
    """Every file is in `processed/` with all of its rows, or in `failed/` with a reason; gives the files of each."""
    lake = Lake.of(settings)
    rows: dict[str, list[bytes]] = {}
    for row in sorted(rows_of(lake, raw_transactions, "topic_id", "offset", "value"), key=lambda row: row["offset"]):
        rows.setdefault(row["topic_id"], []).append(row["value"])
    processed = {path: digest_of(path) for path in settings.processed.iterdir()}
    for path, digest in processed.items():
        landed, expected = rows.get(digest, []), rows_expected(path)
        if isinstance(expected, list):
            assert len(landed) == len(expected), path
            assert all(map(is_line, landed, expected)), path
        else:
            assert expected in (None, len(landed)), path
        assert all(landed)
    failed = {path: digest_of(path) for path in settings.failed.iterdir() if not path.name.endswith(".reason.txt")}
    for path, digest in failed.items():
        # The same content may have landed under a name with another suffix.
        assert digest not in rows or digest in processed.values()
        assert 10 < len(path.with_name(f"{path.name}.reason.txt").read_text("utf-8")) < 1_000
    assert {*processed.values(), *failed.values()} == dropped.keys()
    process_landed(lake, settings)
    counts = reconcile(lake, settings)
    assert counts["landed"] == sum(map(len, rows.values()))
    assert counts["landed"] == counts["features"] + counts["quarantined"] + counts["duplicates"]
    return len(processed), len(failed)


def test_mutated_files_land_whole_or_fail_with_a_reason(settings: Settings) -> None:
    dropped = drop(settings, fuzz.files(90, 41))
    land_in_a_process(settings, 100)
    assert min(assert_files_are_in_their_place(settings, dropped)) > 15


@pytest.mark.proof
@pytest.mark.timeout(1_200)
def test_a_thousand_mutated_files_land_whole_or_fail_with_a_reason(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    dropped = drop(settings, fuzz.files(1_000, 42))
    begun = monotonic()
    land_in_a_process(settings, 1_000)
    seconds = monotonic() - begun
    landed, failed = assert_files_are_in_their_place(settings, dropped)
    with capsys.disabled():
        print(f"\n{len(dropped):,} files: {landed:,} landed, {failed:,} failed, {len(dropped) / seconds:,.0f}/s")
    assert min(landed, failed) > 200


@pytest.mark.proof
@pytest.mark.timeout(600)
def test_mutated_files_leave_a_receipt_where_none_may_be_kept(settings: Settings) -> None:
    drop(settings, fuzz.files(300, 43))
    land_in_a_process(settings, 500, FRAUD_PSEUDONYMISE="customer_id", FRAUD_PSEUDONYM_KEY=KEY)
    kept = [*settings.processed.iterdir(), *settings.failed.iterdir()]
    assert len(kept) == 300
    assert all(path.name.endswith((".receipt.json", ".reason.txt")) for path in kept)
    lake = Lake.of(settings)
    process_landed(lake, settings)
    counts = reconcile(lake, settings)
    assert counts["landed"] == counts["features"] + counts["quarantined"] + counts["duplicates"] > 1_000
