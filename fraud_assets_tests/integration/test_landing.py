"""Topics to landing tables: exactly once, labels first."""

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


def places(lake: Lake, table: Table) -> list[tuple[str, int, int]]:
    rows = open_dataset(lake.open(table)).to_table(["topic_id", "partition", "offset"]).to_pylist()
    return sorted((row["topic_id"], row["partition"], row["offset"]) for row in rows)


def test_lands_exactly_once_on_repeat(settings: Settings, lake: Lake, send: Send) -> None:
    bodies = [b'{"n": %d}' % n for n in range(500)]
    send("transactions", bodies)
    send("fraud-labels", [label(1), label(2)])
    first = land_topics(lake, settings)
    again = land_topics(lake, settings)
    assert (first["raw_transactions"].rows, first["fraud_labels"].rows) == (500, 2)
    assert (again["raw_transactions"].rows, again["fraud_labels"].rows) == (0, 0)
    landed = open_dataset(lake.open(raw_transactions)).to_table()
    assert sorted(landed["value"].to_pylist()) == sorted(bodies)
    assert len(set(places(lake, raw_transactions))) == 500
    assert sum(first["raw_transactions"].lag.values()) == 0
    assert sum(offset + 1 for offset in again["raw_transactions"].offsets.values()) == 500


def test_bad_labels_go_to_quarantine(settings: Settings, lake: Lake, send: Send) -> None:
    send("fraud-labels", [label(1), b"no json", label(2, is_fraud="perhaps")], partition=0)
    reports = land_topics(lake, settings)
    assert (reports["fraud_labels"].rows, reports["fraud_labels"].quarantined) == (1, 2)
    assert reports["fraud_labels"].metadata()["quarantined_labels"] == 2
    refused = open_dataset(lake.open(quarantined_transactions)).to_table().to_pylist()
    assert all(row["reason"].startswith("label_") for row in refused)
    assert sorted(row["offset"] for row in refused) == [1, 2]
    assert land_topics(lake, settings)["fraud_labels"].quarantined == 0


def test_only_bad_labels_move_the_position(settings: Settings, lake: Lake, send: Send) -> None:
    send("fraud-labels", [b"no json"] * 3)
    land_topics(lake, settings)
    again = land_topics(lake, settings)
    assert sum(again["fraud_labels"].lag.values()) == 0
    assert len(places(lake, quarantined_transactions)) == 3


def test_a_kill_between_quarantine_and_labels_repeats_nothing(
    settings: Settings, lake: Lake, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    send("fraud-labels", [label(1), b"bad", label(3)], partition=0)
    real = landing.append_landed

    def killed(lake: Lake, table: Table, *rest: Any, **more: Any) -> int:
        if table is fraud_labels:
            raise KeyboardInterrupt
        return real(lake, table, *rest, **more)

    monkeypatch.setattr(landing, "append_landed", killed)
    with pytest.raises(KeyboardInterrupt):
        land_topics(lake, settings)
    monkeypatch.setattr(landing, "append_landed", real)
    # More arrives, so that the batch of the second attempt is another one.
    send("fraud-labels", [b"bad too", label(5)], partition=0)
    land_topics(lake, settings)
    assert [place[2] for place in places(lake, quarantined_transactions)] == [1, 3]
    assert [place[2] for place in places(lake, fraud_labels)] == [0, 2, 4]


def test_two_landers_at_once_land_each_message_once(
    make_settings: Callable[..., Settings], lake: Lake, send: Send
) -> None:
    settings = make_settings(land_batch_rows=300)
    send("transactions", [b"%d" % n for n in range(3000)])
    start = threading.Barrier(2)
    counts: list[int] = []

    def run() -> None:
        with TopicReaders.of(settings) as readers:
            start.wait()
            counts.append(land_topics(lake, settings, readers=readers)["raw_transactions"].rows)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    landed = places(lake, raw_transactions)
    assert len(landed) == len(set(landed)) == 3000 == sum(counts)


def test_a_restarted_broker_is_a_new_stream(settings: Settings, lake: Lake) -> None:
    for text in (b"old", b"new"):
        with embedded_broker(settings) as broker:
            sender(broker)("transactions", [text] * 5, partition=0)
            assert land_topics(lake, settings)["raw_transactions"].rows == 5
    landed = open_dataset(lake.open(raw_transactions)).to_table()["value"].to_pylist()
    assert sorted(landed) == [b"new"] * 5 + [b"old"] * 5


def test_forgotten_messages_stop_the_landing(settings: Settings, lake: Lake, send: Send) -> None:
    send("transactions", [b"first"], partition=0)
    land_topics(lake, settings)
    send("transactions", [b"x" * 50_000] * 200, partition=0)
    with pytest.raises(MessagesLostError, match="partition 0 of topic 'transactions' are lost"):
        land_topics(lake, settings)
    assert len(places(lake, raw_transactions)) == 1


def test_a_stop_keeps_what_is_committed(make_settings: Callable[..., Settings], lake: Lake, send: Send) -> None:
    settings = make_settings(land_batch_rows=100)
    send("transactions", [b"%d" % n for n in range(1000)])
    with logged() as lines:
        report = land_topics(lake, settings, stop=lambda: len(lines) >= 2)["raw_transactions"]
    assert report.rows == 200
    assert sum(report.lag.values()) == 800
    assert land_topics(lake, settings)["raw_transactions"].rows == 800


def test_labels_alone_leave_transactions_waiting(settings: Settings, lake: Lake, send: Send) -> None:
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


def test_rate_is_reported(settings: Settings, lake: Lake, broker: Broker, send: Send) -> None:
    send("transactions", [b'{"transaction_id": %d}' % n for n in range(20_000)])
    report = land_topics(lake, settings)["raw_transactions"]
    assert report.rows == 20_000
    assert report.bytes > 400_000
    assert report.seconds > 0
