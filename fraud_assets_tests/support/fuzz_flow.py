"""Sends mutated messages and files through every stage, and checks the table or folder that each of them reaches."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer
from confluent_kafka.schema_registry import Schema

from fraud_assets.core.pseudonyms import compute_hmac
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
from fraud_assets.kafka.schemas import get_registry_client
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.operations.reconciliation import reconcile
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed
from fraud_assets.stages.scoring import score_pending
from fraud_assets.stages.training import train
from fraud_assets.testing.apache_kafka import describe_obstacle
from fraud_assets_tests.support import fuzz
from fraud_assets_tests.support.fuzz import Sent
from fraud_assets_tests.support.starting import ROOT, topic_maker

Make = Callable[..., Settings]


Position = tuple[int, int]
"""Partition and offset."""


KEY = "a key of thirty-two characters or more"


DIALECTS = {"handbook": fuzz.HANDBOOK, "sparkov": fuzz.SPARKOV}


def assert_meant(body: bytes, row: dict[str, Any], settings: Settings) -> None:
    """Asserts that a feature row has the values that Python's JSON parser reads from its body."""
    payload = json.loads(body, parse_int=lambda digits: int(digits) if len(digits) <= 4_300 else digits)
    for name in ("transaction_id", "customer_id", "terminal_id"):
        assert row[name] == str(payload[settings.contract.payload_field(name)])
        assert row[name].strip()
    assert row["tx_amount"] == float(payload[settings.contract.payload_field("tx_amount")])
    assert math.isfinite(row["tx_amount"])
    assert row["tx_amount"] >= 0
    assert 1900 <= row["tx_datetime"].year < 2200


def produce(broker: Broker, topic: str, sent: Iterable[Sent], partitions: int) -> dict[Position, Sent]:
    """Produces all messages to the partitions in turn; returns them by partition and offset."""
    positions: dict[Position, Sent] = {}

    def delivered(message: Sent, error: Any, at: Any) -> None:
        assert error is None, (error, message)
        positions[at.partition(), at.offset()] = message

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
    return positions


def rows_of(lake: Lake, table: Table, *columns: str) -> list[dict[str, Any]]:
    return open_dataset(lake.open(table)).to_table(columns=list(columns) or None).to_pylist()


def at(row: dict[str, Any]) -> Position:
    return row["partition"], row["offset"]


def assert_bytes(row: dict[str, Any], sent: Sent, settings: Settings) -> None:
    """Asserts that a stored message equals the one that was sent, or its form with pseudonyms."""
    headers = [(header["key"], header["value"]) for header in row["headers"] or ()]
    if not settings.pseudonymise:
        assert (row["value"], row["key"], headers) == (sent.value, sent.key, list(sent.headers))
        return
    assert row["key"] == (compute_hmac(sent.key, settings.pseudonym_policy).encode() if sent.key else sent.key)
    assert [name for name, _ in headers] == [name for name, _ in sent.headers]
    assert bool(row["value"]) == bool(sent.value)


def assert_everything_has_its_place(
    lake: Lake, settings: Settings, transactions: dict[Position, Sent], labels: dict[Position, Sent], scored: bool
) -> dict[str, int]:
    """Checks the lake against the messages that were sent; returns the counts of the tables."""
    landed = {at(row): row for row in rows_of(lake, raw_transactions)}
    assert landed.keys() == transactions.keys()
    for position, row in landed.items():
        assert_bytes(row, transactions[position], settings)
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
    """Registers the schemas in the settings' registry and returns the function that frames bodies with their ids."""
    if settings.transactions_format == "json":
        return None
    client = get_registry_client(settings)
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
    """Sends mutated messages in rounds of `each` through every stage; returns counts and seconds of the stages."""
    lake, broker = Lake.of(settings), find_broker(settings)
    messages = fuzz.messages(count, seed, dialect, wire_of(settings))
    labels = fuzz.messages(max(count // 10, 20), seed + 1, fuzz.labels_of(dialect))
    sent: tuple[dict[Position, Sent], dict[Position, Sent]] = {}, {}
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


@contextmanager
def any_broker(request: pytest.FixtureRequest, make_settings: Make, **overrides: Any) -> Iterator[Settings]:
    """Settings with topics of two partitions on Apache Kafka, or with an embedded broker if it cannot start."""
    if describe_obstacle() is None:
        make = topic_maker(request.getfixturevalue("apache").bootstrap)
        # With other limits, the broker refuses the timestamps of some messages or deletes these messages.
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


LANDER = """
from fraud_assets.lake.tables import Lake
from fraud_assets.ingest.files.landing import land_files
from fraud_assets.settings import load_settings

settings = load_settings(_env_file=None)
land_files(Lake.of(settings), settings)
"""
"""This program runs in a separate process, so that a crash of native code is detected and ends no other test."""


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
            "PYTHONPATH": str(ROOT),
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
    """The content of a landed file by another reader: lines, or a number of rows; None if readers may differ."""
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
    """Returns whether a body equals the line, except for upper case in field names."""
    if landed == line:
        return True
    body, written = (json.loads(text.decode("utf-8-sig")) for text in (landed, line))
    return list(body) == [name if name in body else name.lower() for name in written] and repr(
        list(body.values())
    ) == repr(list(written.values()))


def assert_files_are_in_their_place(settings: Settings, dropped: dict[str, bytes]) -> tuple[int, int]:
    """Asserts that every file is processed with all rows or failed with a reason; returns the number of each."""
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
