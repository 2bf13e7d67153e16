"""The producer keeps the order per customer, reports errors and waits for the lander."""

from __future__ import annotations

import json

import pytest

from fraud_assets.core.schema import raw_transactions
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.errors import BrokerError, MessagesLostError
from fraud_assets.kafka import embedded_backlog
from fraud_assets.kafka.broker import Broker
from fraud_assets.kafka.producer import Message, Producer
from fraud_assets_tests.support.logged import logged
from fraud_assets_tests.support.producing import produce


def messages(settings, count, size=100, start=0):
    for number in range(start, start + count):
        value = json.dumps({"transaction_id": number, "pad": "x" * size}).encode()
        yield Message(settings.transactions_topic, b"%d" % (number % 7), value)


def test_messages_with_the_same_key_stay_in_order(settings, lake, broker):
    assert produce(messages(settings, 3_000), broker, settings) == 3_000
    land_topics(lake, settings)
    rows = lake.open(raw_transactions).to_pyarrow_dataset().to_table(columns=["key", "partition", "offset", "value"])
    by_key: dict[bytes, list[tuple[int, int, int]]] = {}
    for row in rows.to_pylist():
        position = (row["partition"], row["offset"], json.loads(row["value"])["transaction_id"])
        by_key.setdefault(row["key"], []).append(position)
    assert len(by_key) == 7
    for positions in by_key.values():
        assert len({partition for partition, _, _ in positions}) == 1
        numbers = [number for _, _, number in sorted(positions)]
        assert numbers == sorted(numbers)


def test_an_unavailable_broker_is_reported(settings):
    quick = settings.model_copy(update={"kafka_timeout_seconds": 1.0})
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1\b"):
        produce([], Broker("127.0.0.1:1", embedded=False, topic_id=None), quick)


def test_a_message_that_is_too_large_is_reported(settings, broker):
    huge = Message(settings.transactions_topic, None, b"x" * 2_000_000)
    with pytest.raises(BrokerError, match="refused a message of 2,000,000 bytes"):
        produce([huge], broker, settings)


def test_the_producer_waits_for_the_lander_and_logs_it_once(settings, lake, broker, monkeypatch):
    monkeypatch.setattr(embedded_backlog, "HELD_BYTES", 50_000)
    monkeypatch.setattr(embedded_backlog, "CHECK_BYTES", 10_000)
    monkeypatch.setattr("fraud_assets.kafka.producer.WARNING_SECONDS", 0.0)
    waits = 0

    def land_late() -> None:
        nonlocal waits
        waits += 1
        if waits % 3 == 0:
            land_topics(lake, settings)

    with logged() as lines, Producer(broker, settings, on_wait=land_late) as producer:
        for message in messages(settings, 3_000):
            producer.send(message)
    assert producer.delivered == 3_000
    (line,) = [line for line in lines if "waiting for the lander: " in line]
    assert "fraud-assets land" in line
    assert waits > 3


def test_pending_messages_of_an_earlier_producer_count(settings, broker, monkeypatch):
    monkeypatch.setattr(embedded_backlog, "HELD_BYTES", 100_000)
    monkeypatch.setattr(embedded_backlog, "CHECK_BYTES", 10_000)

    class Waited(Exception):
        pass

    def wait() -> None:
        raise Waited

    # Each producer sends 70,000 bytes to one partition. The first never waits; the second must wait.
    one_partition = [message._replace(key=b"one") for message in messages(settings, 300)]
    produce(one_partition, broker, settings, on_wait=wait)
    with pytest.raises(Waited):
        produce(one_partition, broker, settings, on_wait=wait)


def test_the_producer_reports_lost_messages_and_does_not_wait(settings, broker, monkeypatch):
    monkeypatch.setattr(embedded_backlog, "HELD_BYTES", 1e12)
    too_many = (Message(settings.transactions_topic, b"one", b"x" * 50_000) for _ in range(400))
    with pytest.raises(MessagesLostError, match="has dropped"):
        produce(too_many, broker, settings)
