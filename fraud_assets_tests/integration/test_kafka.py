"""The embedded broker and its consumer."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from fraud_assets.core.schema import MESSAGES
from fraud_assets.errors import BrokerError, MessagesLostError
from fraud_assets.kafka.broker import Broker, embedded_broker, find_broker
from fraud_assets.kafka.consumer import TopicReader
from fraud_assets.lake.positions import SourcePartition
from fraud_assets.settings import Settings

Send = Callable[..., None]


def read_all(reader: TopicReader, stored: dict[SourcePartition, int] | None = None) -> pa.Table:
    tables = list(reader.read(stored or {}, reader.end_offsets()))
    return pa.concat_tables(tables) if tables else MESSAGES.empty_table()


def test_embedded_broker_is_named_while_it_runs(settings: Settings) -> None:
    with embedded_broker(settings) as broker:
        entry = json.loads(settings.broker_file.read_text())
        assert entry["bootstrap_servers"] == broker.bootstrap
        assert find_broker(settings) == broker
        with pytest.raises(BrokerError, match="already runs"), embedded_broker(settings):
            raise AssertionError("a second one must not start")
    assert not settings.broker_file.exists()


def test_no_broker_says_what_to_do(settings: Settings) -> None:
    with pytest.raises(BrokerError, match=r"fraud-assets broker.*KAFKA_BOOTSTRAP_SERVERS"):
        find_broker(settings)


@pytest.mark.parametrize("pid", [None, 2**22 + 1])
def test_stale_broker_file_is_named(settings: Settings, pid: int | None) -> None:
    settings.home_path.mkdir(parents=True)
    entry = {"bootstrap_servers": "127.0.0.1:1", "topic_id": "x", "pid": pid or os.getpid()}
    settings.broker_file.write_text(json.dumps(entry))
    with pytest.raises(BrokerError, match=r"broker\.json is out of date.*fraud-assets broker"):
        find_broker(settings)


def test_damaged_broker_file_is_named(settings: Settings) -> None:
    settings.home_path.mkdir(parents=True)
    settings.broker_file.write_text("{")
    with pytest.raises(BrokerError, match=r"broker\.json cannot be read"):
        find_broker(settings)


def test_configured_broker_wins(make_settings: Callable[..., Settings], broker: Broker) -> None:
    assert find_broker(make_settings(kafka_bootstrap_servers="elsewhere:9092")) == Broker("elsewhere:9092", False, None)


def test_unreachable_broker_names_setting_and_value(
    make_settings: Callable[..., Settings], capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = make_settings(kafka_bootstrap_servers=address, kafka_timeout_seconds=0.5)
    with TopicReader("transactions", settings) as reader, pytest.raises(BrokerError) as caught:
        reader.end_offsets()
    assert f"KAFKA_BOOTSTRAP_SERVERS is '{address}'" in str(caught.value)
    assert capfd.readouterr().err == ""


def test_missing_topic_of_a_real_broker_names_its_setting(
    make_settings: Callable[..., Settings], broker: Broker
) -> None:
    settings = make_settings(kafka_bootstrap_servers=broker.bootstrap)
    with TopicReader("transactions", settings) as reader, pytest.raises(BrokerError) as caught:
        reader.end_offsets()
    assert "'transactions' does not exist" in str(caught.value)
    assert "FRAUD_TRANSACTIONS_TOPIC" in str(caught.value)


def test_topic_of_the_embedded_broker_appears_empty(settings: Settings, broker: Broker) -> None:
    with TopicReader("transactions", settings) as reader:
        ends = reader.end_offsets()
        assert sorted(stream.partition for stream in ends) == [0, 1, 2, 3]
        assert set(ends.values()) == {-1}
        assert list(reader.read({}, ends)) == []


def test_messages_come_as_they_are(settings: Settings, send: Send) -> None:
    send("transactions", [b"\x00\xff", b"", None], partition=2, key="k", headers=[("h", b"\x01"), ("n", None)])
    send("transactions", [b"plain"], partition=0)
    with TopicReader("transactions", settings) as reader:
        rows = read_all(reader)
    assert rows.schema == MESSAGES
    by_place = {(row["partition"], row["offset"]): row for row in rows.to_pylist()}
    assert [by_place[2, n]["value"] for n in range(3)] == [b"\x00\xff", b"", None]
    assert by_place[2, 0]["key"] == b"k"
    assert by_place[2, 0]["headers"] == [{"key": "h", "value": b"\x01"}, {"key": "n", "value": None}]
    assert by_place[0, 0]["headers"] is None
    assert by_place[0, 0]["key"] is None
    assert abs((datetime.now(UTC) - by_place[0, 0]["timestamp"]).total_seconds()) < 60


def test_batches_are_bounded_and_prefixes_of_each_partition(make_settings: Callable[..., Settings], send: Send) -> None:
    send("transactions", [b"%d" % n for n in range(1000)])
    settings = make_settings(land_batch_rows=150)
    with TopicReader("transactions", settings) as reader:
        batches = list(reader.read({}, reader.end_offsets()))
    assert [batch.num_rows for batch in batches] == [150] * 6 + [100]
    seen: dict[int, int] = {}
    for row in pa.concat_tables(batches).to_pylist():
        assert row["offset"] == seen.get(row["partition"], -1) + 1
        seen[row["partition"]] = row["offset"]


def test_bytes_of_a_batch_are_bounded(make_settings: Callable[..., Settings], send: Send) -> None:
    send("transactions", [b"x" * 10_000] * 400)
    settings = make_settings(land_batch_bytes=500_000)
    with TopicReader("transactions", settings) as reader:
        sizes = [batch["value"].nbytes for batch in reader.read({}, reader.end_offsets())]
    assert sum(sizes) > 4_000_000
    assert max(sizes) < 600_000


def test_reading_goes_on_after_stored_and_ends_at_target(settings: Settings, send: Send) -> None:
    send("transactions", [b"%d" % n for n in range(10)], partition=1)
    with TopicReader("transactions", settings) as reader:
        ends = reader.end_offsets()
        send("transactions", [b"later"], partition=1)
        stream = next(stream for stream in ends if stream.partition == 1)
        rows = pa.concat_tables(list(reader.read({stream: 6}, ends)))
        assert rows["value"].to_pylist() == [b"7", b"8", b"9"]
        assert list(reader.read({stream: 9}, ends)) == []
        assert read_all(reader, {stream: 9})["value"].to_pylist() == [b"later"]


@pytest.mark.parametrize("stored", [-1, 10])
def test_forgotten_messages_are_an_error(settings: Settings, send: Send, stored: int) -> None:
    send("transactions", [b"x" * 50_000] * 200, partition=0)
    with TopicReader("transactions", settings) as reader:
        ends = reader.end_offsets()
        stream = next(stream for stream in ends if stream.partition == 0)
        with pytest.raises(MessagesLostError, match=r"Up to \d+ messages of partition 0 of topic 'transactions'"):
            list(reader.read({stream: stored}, ends))


def test_messages_forgotten_while_reading_are_an_error(make_settings: Callable[..., Settings], send: Send) -> None:
    settings = make_settings(land_batch_rows=5, land_batch_bytes=1_000_000)
    send("transactions", [b"x" * 50_000] * 90, partition=0)
    with TopicReader("transactions", settings) as reader:
        batches = reader.read({}, reader.end_offsets())
        next(batches)
        send("transactions", [b"y" * 50_000] * 200, partition=0)
        with pytest.raises(MessagesLostError, match="are lost"):
            list(batches)


def test_lake_ahead_of_the_topic_is_an_error(settings: Settings, send: Send) -> None:
    send("transactions", [b"1"], partition=0)
    with TopicReader("transactions", settings) as reader:
        ends = reader.end_offsets()
        stream = next(stream for stream in ends if stream.partition == 0)
        with pytest.raises(BrokerError, match="the broker lost messages"):
            list(reader.read({stream: 7}, ends))


@pytest.mark.parametrize(
    ("high", "error", "words"), [(3, BrokerError, "although it holds it"), (400, MessagesLostError, "are lost")]
)
def test_a_refused_offset_is_a_loss_only_if_the_broker_no_longer_holds_it(
    settings: Settings, send: Send, high: int, error: type[BrokerError], words: str
) -> None:
    """Under load, Kafka refused offset 0 of a topic that was just created. Landing retries that and ends at a loss."""
    from confluent_kafka import KafkaError

    class Refused:
        def error(self) -> KafkaError:
            return KafkaError(KafkaError._AUTO_OFFSET_RESET)

        def partition(self) -> int:
            return 0

        def offset(self) -> int:
            return 0

    send("transactions", [b"x" * 50_000] * high, partition=0)
    with TopicReader("transactions", settings) as reader, pytest.raises(error, match=words) as raised:
        reader.is_next_message(Refused(), {0: 0})
    assert type(raised.value) is error


def test_offsets_without_messages_end_a_read(settings: Settings, broker: Broker) -> None:
    """A transaction's marker takes an offset and is no message. (The embedded broker knows no transactions.)"""
    from confluent_kafka import KafkaError

    class End:
        def __init__(self, offset: int) -> None:
            self._offset = offset

        def error(self) -> KafkaError:
            return KafkaError(KafkaError._PARTITION_EOF)

        def partition(self) -> int:
            return 0

        def offset(self) -> int:
            return self._offset

    class Tail:
        """Ends at offset 5 without a message."""

        calls = 0

        def assign(self, _: Any) -> None:
            self.calls += 1

        def consume(self, _: int, timeout: float) -> list[End]:
            return [End(5)]

        def unassign(self) -> None:
            return None

        def get_watermark_offsets(self, _: Any, timeout: float) -> tuple[int, int]:
            return (0, 5)

        def close(self) -> None:
            return None

    with TopicReader("transactions", settings) as reader:
        reader.close()
        tail = Tail()
        reader.consumer = tail
        stream = SourcePartition("transactions", str(broker.topic_id), 0)
        for _ in range(2):
            assert list(reader.read({stream: 3}, {stream: 4})) == []
        # The second time the reader knows that nothing is there.
        assert tail.calls == 1
