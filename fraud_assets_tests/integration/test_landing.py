"""Landing from topics: every message lands exactly once, and fraud labels land first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from fraud_assets.core.schema import Table, fraud_labels, quarantined_transactions, raw_transactions
from fraud_assets.engines import landing_tables as landing
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.errors import BrokerError, MessagesLostError
from fraud_assets.ingest.landing import land_once
from fraud_assets.kafka.broker import Broker, embedded_broker
from fraud_assets.kafka.topic_readers import TopicReaders
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.settings import Settings
from fraud_assets_tests.support.logged import logged
from fraud_assets_tests.support.starting import sender

Send = Callable[..., None]


def label(number: int, **changes: Any) -> dict[str, Any]:
    return {"transaction_id": number, "is_fraud": True, "labelled_at": "2024-01-08T00:00:00Z", **changes}


def positions(lake: Lake, table: Table) -> list[tuple[str, int, int]]:
    rows = open_dataset(lake.open(table)).to_table(["topic_id", "partition", "offset"]).to_pylist()
    return sorted((row["topic_id"], row["partition"], row["offset"]) for row in rows)


def test_a_second_landing_repeats_no_message(settings: Settings, lake: Lake, send: Send) -> None:
    bodies = [b'{"n": %d}' % n for n in range(500)]
    send("transactions", bodies)
    send("fraud-labels", [label(1), label(2)])
    first = land_topics(lake, settings)
    second = land_topics(lake, settings)
    assert (first["raw_transactions"].rows, first["fraud_labels"].rows) == (500, 2)
    assert (second["raw_transactions"].rows, second["fraud_labels"].rows) == (0, 0)
    landed = open_dataset(lake.open(raw_transactions)).to_table()
    assert sorted(landed["value"].to_pylist()) == sorted(bodies)
    assert len(set(positions(lake, raw_transactions))) == 500
    assert sum(first["raw_transactions"].lag.values()) == 0
    assert sum(offset + 1 for offset in second["raw_transactions"].offsets.values()) == 500


def test_bad_labels_go_to_quarantine(settings: Settings, lake: Lake, send: Send) -> None:
    send("fraud-labels", [label(1), b"no json", label(2, is_fraud="perhaps")], partition=0)
    reports = land_topics(lake, settings)
    assert (reports["fraud_labels"].rows, reports["fraud_labels"].quarantined) == (1, 2)
    assert reports["fraud_labels"].metadata()["quarantined_labels"] == 2
    quarantined = open_dataset(lake.open(quarantined_transactions)).to_table().to_pylist()
    assert all(row["reason"].startswith("label_") for row in quarantined)
    assert sorted(row["offset"] for row in quarantined) == [1, 2]
    assert land_topics(lake, settings)["fraud_labels"].quarantined == 0


def test_a_batch_of_only_bad_labels_moves_the_position(settings: Settings, lake: Lake, send: Send) -> None:
    send("fraud-labels", [b"no json"] * 3)
    land_topics(lake, settings)
    second = land_topics(lake, settings)
    assert sum(second["fraud_labels"].lag.values()) == 0
    assert len(positions(lake, quarantined_transactions)) == 3


def test_a_kill_between_quarantine_and_labels_repeats_no_message(
    settings: Settings, lake: Lake, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    send("fraud-labels", [label(1), b"bad", label(3)], partition=0)
    original = landing.append_landed

    def interrupt_labels(lake: Lake, table: Table, *rest: Any, **more: Any) -> int:
        if table is fraud_labels:
            raise KeyboardInterrupt
        return original(lake, table, *rest, **more)

    monkeypatch.setattr(landing, "append_landed", interrupt_labels)
    with pytest.raises(KeyboardInterrupt):
        land_topics(lake, settings)
    monkeypatch.setattr(landing, "append_landed", original)
    # More messages arrive, so the second attempt reads a different batch.
    send("fraud-labels", [b"bad too", label(5)], partition=0)
    land_topics(lake, settings)
    assert [position[2] for position in positions(lake, quarantined_transactions)] == [1, 3]
    assert [position[2] for position in positions(lake, fraud_labels)] == [0, 2, 4]


def test_two_concurrent_landers_land_each_message_once(
    make_settings: Callable[..., Settings], lake: Lake, send: Send
) -> None:
    settings = make_settings(land_batch_rows=300)
    send("transactions", [b"%d" % n for n in range(3000)])
    barrier = threading.Barrier(2)
    counts: list[int] = []

    def run() -> None:
        with TopicReaders.of(settings) as readers:
            barrier.wait()
            counts.append(land_topics(lake, settings, readers=readers)["raw_transactions"].rows)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    landed = positions(lake, raw_transactions)
    assert len(landed) == len(set(landed)) == 3000 == sum(counts)


def test_messages_of_a_restarted_embedded_broker_are_new(settings: Settings, lake: Lake) -> None:
    for text in (b"old", b"new"):
        with embedded_broker(settings) as broker:
            sender(broker)("transactions", [text] * 5, partition=0)
            assert land_topics(lake, settings)["raw_transactions"].rows == 5
    landed = open_dataset(lake.open(raw_transactions)).to_table()["value"].to_pylist()
    assert sorted(landed) == [b"new"] * 5 + [b"old"] * 5


def test_expired_messages_stop_landing(settings: Settings, lake: Lake, send: Send) -> None:
    send("transactions", [b"first"], partition=0)
    land_topics(lake, settings)
    send("transactions", [b"x" * 50_000] * 200, partition=0)
    with pytest.raises(MessagesLostError, match="partition 0 of topic 'transactions' are lost"):
        land_topics(lake, settings)
    assert len(positions(lake, raw_transactions)) == 1


def test_a_stopped_landing_keeps_its_commits(make_settings: Callable[..., Settings], lake: Lake, send: Send) -> None:
    settings = make_settings(land_batch_rows=100)
    send("transactions", [b"%d" % n for n in range(1000)])
    with logged() as lines:
        report = land_topics(lake, settings, stop=lambda: len(lines) >= 2)["raw_transactions"]
    assert report.rows == 200
    assert sum(report.lag.values()) == 800
    assert land_topics(lake, settings)["raw_transactions"].rows == 800


def test_landing_without_transactions_lands_only_labels(settings: Settings, lake: Lake, send: Send) -> None:
    send("transactions", [b"1"])
    send("fraud-labels", [label(1)])
    reports = land_once(lake, settings, transactions=False)
    assert list(reports) == ["fraud_labels"]
    assert reports["fraud_labels"].rows == 1
    assert not lake.exists(raw_transactions)


def test_files_land_without_a_broker(settings: Settings, lake: Lake) -> None:
    settings.incoming.mkdir(parents=True)
    (settings.incoming / "a.jsonl").write_text('{"transaction_id": 1}\n')
    reports = land_once(lake, settings)
    assert reports["raw_transactions"].metadata()["files"] == {"a.jsonl": 1}
    with pytest.raises(BrokerError, match="No broker"):
        land_once(lake, settings)
    assert land_once(lake, settings, topics=False)["raw_transactions"].rows == 0


def test_the_report_counts_rows_bytes_and_seconds(settings: Settings, lake: Lake, broker: Broker, send: Send) -> None:
    send("transactions", [b'{"transaction_id": %d}' % n for n in range(20_000)])
    report = land_topics(lake, settings)["raw_transactions"]
    assert report.rows == 20_000
    assert report.bytes > 400_000
    assert report.seconds > 0
