"""The embedded broker and the reader of its topics."""

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


def read_all(reader: TopicReader, committed: dict[SourcePartition, int] | None = None) -> pa.Table:
    tables = list(reader.read(committed or {}, reader.end_offsets()))
    return pa.concat_tables(tables) if tables else MESSAGES.empty_table()


def test_the_broker_file_describes_the_embedded_broker_while_it_runs(settings: Settings) -> None:
    with embedded_broker(settings) as broker:
        entry = json.loads(settings.broker_file.read_text())
        assert entry["bootstrap_servers"] == broker.bootstrap
        assert find_broker(settings) == broker
        with pytest.raises(BrokerError, match="already runs"), embedded_broker(settings):
            raise AssertionError("a second one must not start")
    assert not settings.broker_file.exists()


def test_an_error_about_a_missing_broker_names_the_fix(settings: Settings) -> None:
    with pytest.raises(BrokerError, match=r"fraud-assets broker.*KAFKA_BOOTSTRAP_SERVERS"):
        find_broker(settings)


@pytest.mark.parametrize("pid", [None, 2**22 + 1])
def test_a_stale_broker_file_is_reported(settings: Settings, pid: int | None) -> None:
    settings.home_path.mkdir(parents=True)
    entry = {"bootstrap_servers": "127.0.0.1:1", "topic_id": "x", "pid": pid or os.getpid()}
    settings.broker_file.write_text(json.dumps(entry))
    with pytest.raises(BrokerError, match=r"broker\.json is out of date.*fraud-assets broker"):
        find_broker(settings)


def test_a_damaged_broker_file_is_reported(settings: Settings) -> None:
    settings.home_path.mkdir(parents=True)
    settings.broker_file.write_text("{")
    with pytest.raises(BrokerError, match=r"broker\.json cannot be read"):
        find_broker(settings)


def test_a_configured_broker_takes_precedence(make_settings: Callable[..., Settings], broker: Broker) -> None:
    assert find_broker(make_settings(kafka_bootstrap_servers="elsewhere:9092")) == Broker("elsewhere:9092", False, None)


def test_an_error_about_an_unreachable_broker_names_setting_and_value(
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


def test_an_error_about_a_missing_topic_names_its_setting(
    make_settings: Callable[..., Settings], broker: Broker
) -> None:
    settings = make_settings(kafka_bootstrap_servers=broker.bootstrap)
    with TopicReader("transactions", settings) as reader, pytest.raises(BrokerError) as caught:
        reader.end_offsets()
    assert "'transactions' does not exist" in str(caught.value)
    assert "FRAUD_TRANSACTIONS_TOPIC" in str(caught.value)


def test_the_embedded_broker_creates_an_empty_topic(settings: Settings, broker: Broker) -> None:
    with TopicReader("transactions", settings) as reader:
        ends = reader.end_offsets()
        assert sorted(source_partition.partition for source_partition in ends) == [0, 1, 2, 3]
        assert set(ends.values()) == {-1}
        assert list(reader.read({}, ends)) == []


def test_messages_are_read_unchanged(settings: Settings, send: Send) -> None:
    send("transactions", [b"\x00\xff", b"", None], partition=2, key="k", headers=[("h", b"\x01"), ("n", None)])
    send("transactions", [b"plain"], partition=0)
    with TopicReader("transactions", settings) as reader:
        rows = read_all(reader)
    assert rows.schema == MESSAGES
    by_position = {(row["partition"], row["offset"]): row for row in rows.to_pylist()}
    assert [by_position[2, offset]["value"] for offset in range(3)] == [b"\x00\xff", b"", None]
    assert by_position[2, 0]["key"] == b"k"
    assert by_position[2, 0]["headers"] == [{"key": "h", "value": b"\x01"}, {"key": "n", "value": None}]
    assert by_position[0, 0]["headers"] is None
    assert by_position[0, 0]["key"] is None
    assert abs((datetime.now(UTC) - by_position[0, 0]["timestamp"]).total_seconds()) < 60


def test_batches_are_bounded_prefixes_of_each_partition(make_settings: Callable[..., Settings], send: Send) -> None:
    send("transactions", [b"%d" % n for n in range(1000)])
    settings = make_settings(land_batch_rows=150)
    with TopicReader("transactions", settings) as reader:
        batches = list(reader.read({}, reader.end_offsets()))
    assert [batch.num_rows for batch in batches] == [150] * 6 + [100]
    last_offsets: dict[int, int] = {}
    for row in pa.concat_tables(batches).to_pylist():
        assert row["offset"] == last_offsets.get(row["partition"], -1) + 1
        last_offsets[row["partition"]] = row["offset"]


def test_the_bytes_of_a_batch_are_bounded(make_settings: Callable[..., Settings], send: Send) -> None:
    send("transactions", [b"x" * 10_000] * 400)
    settings = make_settings(land_batch_bytes=500_000)
    with TopicReader("transactions", settings) as reader:
        sizes = [batch["value"].nbytes for batch in reader.read({}, reader.end_offsets())]
    assert sum(sizes) > 4_000_000
    assert max(sizes) < 600_000


def test_reading_continues_after_the_committed_offset_and_ends_at_the_target(settings: Settings, send: Send) -> None:
    send("transactions", [b"%d" % n for n in range(10)], partition=1)
    with TopicReader("transactions", settings) as reader:
        ends = reader.end_offsets()
        send("transactions", [b"later"], partition=1)
        source_partition = next(source_partition for source_partition in ends if source_partition.partition == 1)
        rows = pa.concat_tables(list(reader.read({source_partition: 6}, ends)))
        assert rows["value"].to_pylist() == [b"7", b"8", b"9"]
        assert list(reader.read({source_partition: 9}, ends)) == []
        assert read_all(reader, {source_partition: 9})["value"].to_pylist() == [b"later"]


@pytest.mark.parametrize("committed", [-1, 10])
def test_expired_messages_raise_an_error(settings: Settings, send: Send, committed: int) -> None:
    send("transactions", [b"x" * 50_000] * 200, partition=0)
    with TopicReader("transactions", settings) as reader:
        ends = reader.end_offsets()
        source_partition = next(source_partition for source_partition in ends if source_partition.partition == 0)
        with pytest.raises(MessagesLostError, match=r"Up to \d+ messages of partition 0 of topic 'transactions'"):
            list(reader.read({source_partition: committed}, ends))


def test_messages_that_expire_while_reading_raise_an_error(make_settings: Callable[..., Settings], send: Send) -> None:
    settings = make_settings(land_batch_rows=5, land_batch_bytes=1_000_000)
    send("transactions", [b"x" * 50_000] * 90, partition=0)
    with TopicReader("transactions", settings) as reader:
        batches = reader.read({}, reader.end_offsets())
        next(batches)
        send("transactions", [b"y" * 50_000] * 200, partition=0)
        with pytest.raises(MessagesLostError, match="are lost"):
            list(batches)


def test_a_lake_ahead_of_the_topic_raises_an_error(settings: Settings, send: Send) -> None:
    send("transactions", [b"1"], partition=0)
    with TopicReader("transactions", settings) as reader:
        ends = reader.end_offsets()
        source_partition = next(source_partition for source_partition in ends if source_partition.partition == 0)
        with pytest.raises(BrokerError, match="the broker lost messages"):
            list(reader.read({source_partition: 7}, ends))


@pytest.mark.parametrize(
    ("sent_messages", "error", "words"),
    [(3, BrokerError, "although it holds it"), (400, MessagesLostError, "are lost")],
)
def test_a_refused_offset_counts_as_lost_only_if_the_broker_no_longer_has_it(
    settings: Settings, send: Send, sent_messages: int, error: type[BrokerError], words: str
) -> None:
    """Under load, Kafka can refuse offset 0 of a new topic. Landing retries this error, but stops at lost messages."""
    from confluent_kafka import KafkaError

    class RefusedMessage:
        def error(self) -> KafkaError:
            return KafkaError(KafkaError._AUTO_OFFSET_RESET)

        def partition(self) -> int:
            return 0

        def offset(self) -> int:
            return 0

    send("transactions", [b"x" * 50_000] * sent_messages, partition=0)
    with TopicReader("transactions", settings) as reader, pytest.raises(error, match=words) as raised:
        reader.is_next_message(RefusedMessage(), {0: 0})
    assert type(raised.value) is error


def test_offsets_without_messages_end_a_read(settings: Settings, broker: Broker) -> None:
    """A transaction marker takes an offset but is not a message. (The embedded broker has no transactions.)"""
    from confluent_kafka import KafkaError

    class EndOfPartition:
        def __init__(self, offset: int) -> None:
            self._offset = offset

        def error(self) -> KafkaError:
            return KafkaError(KafkaError._PARTITION_EOF)

        def partition(self) -> int:
            return 0

        def offset(self) -> int:
            return self._offset

    class ConsumerAtEnd:
        """A consumer that reaches the end at offset 5 without a message."""

        calls = 0

        def assign(self, _: Any) -> None:
            self.calls += 1

        def consume(self, _: int, timeout: float) -> list[EndOfPartition]:
            return [EndOfPartition(5)]

        def unassign(self) -> None:
            return None

        def get_watermark_offsets(self, _: Any, timeout: float) -> tuple[int, int]:
            return (0, 5)

        def close(self) -> None:
            return None

    with TopicReader("transactions", settings) as reader:
        reader.close()
        consumer_at_end = ConsumerAtEnd()
        reader.consumer = consumer_at_end
        source_partition = SourcePartition("transactions", str(broker.topic_id), 0)
        for _ in range(2):
            assert list(reader.read({source_partition: 3}, {source_partition: 4})) == []
        # The second read does not start the consumer: the reader remembers that there are no messages.
        assert consumer_at_end.calls == 1
