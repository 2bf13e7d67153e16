"""The first landing of a topic records its log starts; every later loss of messages is reported."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

import pyarrow as pa
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from fraud_assets.core.schema import Table, fraud_labels, raw_transactions
from fraud_assets.doctor.kafka import check_broker
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.errors import BrokerError, MessagesLostError
from fraud_assets.ingest.landing import land_once
from fraud_assets.ingest.service.lander import land_forever
from fraud_assets.kafka.broker import find_broker
from fraud_assets.kafka.client import find_topic_id
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.known_topics import find_positions, is_known
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.positions import NOTHING, SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed
from fraud_assets.testing.apache_kafka import Cluster
from fraud_assets_tests.support.starting import Start
from fraud_assets_tests.support.topics import always_on, done, numbers, produce
from fraud_assets_tests.support.waiting import until

FIRST, SECOND, THIRD = (SourcePartition("t", "AAECAwQFBgcICQoLDA0ODw", partition) for partition in range(3))
apache_only = pytest.mark.xdist_group("apache")


@pytest.fixture
def settings(apache_settings: Settings) -> Settings:
    return apache_settings.model_copy(update={"kafka_timeout_seconds": 5.0})


@pytest.fixture
def admin(apache: Cluster) -> AdminClient:
    return AdminClient({"bootstrap.servers": apache.bootstrap, "log_level": 0})


def land(lake: Lake, settings: Settings, table: Table = raw_transactions) -> int:
    return land_topics(lake, settings)[table.name].rows


def expire(admin: AdminClient, topic: str, partition: int, before: int) -> None:
    done(admin.delete_records([TopicPartition(topic, partition, before)]))


def doctor_report(settings: Settings) -> str:
    return " ".join(str(finding) for finding in check_broker(settings))


@apache_only
def test_messages_that_expire_before_the_first_landing_of_their_partition_are_lost(
    settings: Settings, lake: Lake, admin: AdminClient, start: Start
) -> None:
    topic = settings.transactions_topic
    produce(settings, numbers(0, 5), partition=0)
    assert land(lake, settings) == 5
    produce(settings, numbers(10, 90), partition=1)
    expire(admin, topic, 1, 60)
    process = start(
        "land",
        "--once",
        KAFKA_BOOTSTRAP_SERVERS=settings.kafka_bootstrap_servers,
        FRAUD_TRANSACTIONS_TOPIC=topic,
        FRAUD_LABELS_TOPIC=settings.labels_topic,
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"Up to 60 messages of partition 1 of topic {topic!r} are lost: the lake holds no message of it" in errors
    assert f"FRAUD_ACCEPT_LOST={topic}/1=60" in errors
    assert "60 of partition 1" in doctor_report(settings)
    accepting = settings.model_copy(update={"accept_lost": {f"{topic}/1": 60}})
    assert land(lake, accepting) == 20
    assert land(lake, settings) == 0


@apache_only
def test_messages_that_expired_before_the_topic_was_recorded_are_not_lost(
    settings: Settings, lake: Lake, admin: AdminClient
) -> None:
    produce(settings, numbers(0, 10), partition=1)
    expire(admin, settings.transactions_topic, 1, 4)
    assert "gone" not in doctor_report(settings)
    assert land(lake, settings) == 6


@apache_only
def test_added_partitions_and_recreated_topics_start_at_0(settings: Settings, lake: Lake, admin: AdminClient) -> None:
    topic = settings.transactions_topic
    produce(settings, numbers(0, 5), partition=0)
    assert land(lake, settings) == 5
    done(admin.create_partitions([NewPartitions(topic, 3)]))
    until(lambda: len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == 3)
    produce(settings, numbers(5, 10), partition=2)
    expire(admin, topic, 2, 3)
    with pytest.raises(MessagesLostError, match="Up to 3 messages of partition 2"):
        land(lake, settings)
    done(admin.delete_topics([topic]))
    until(lambda: topic not in admin.list_topics(timeout=10).topics)
    done(admin.create_topics([NewTopic(topic, 1)]))
    produce(settings, numbers(20, 30), partition=0)
    expire(admin, topic, 0, 7)
    with pytest.raises(MessagesLostError, match="Up to 7 messages of partition 0"):
        land(lake, settings)
    assert "7 of partition 0" in doctor_report(settings)
    assert land(lake, settings.model_copy(update={"accept_lost": {f"{topic}/0": 7}})) == 3


@apache_only
def test_lost_labels_stop_landing(settings: Settings, lake: Lake, admin: AdminClient) -> None:
    label = {"transaction_id": 1, "is_fraud": 1, "labelled_at": "2026-01-01T00:00:00Z"}
    assert land(lake, settings) == 0
    produce(settings, [label] * 6, topic=settings.labels_topic, partition=1)
    expire(admin, settings.labels_topic, 1, 6)
    with pytest.raises(MessagesLostError, match=f"Up to 6 messages of partition 1 of topic '{settings.labels_topic}'"):
        land(lake, settings, fraud_labels)


def produce_transaction(settings: Settings, values: Sequence[bytes], partition: int, *, commit: bool = True) -> None:
    """Produces values in one Kafka transaction, then commits or aborts it."""
    producer = Producer(
        {"bootstrap.servers": settings.kafka_bootstrap_servers, "transactional.id": "t", "log_level": 0}
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    for value in values:
        producer.produce(settings.transactions_topic, value, partition=partition)
    producer.flush(20)
    producer.commit_transaction(30) if commit else producer.abort_transaction(30)


@apache_only
@pytest.mark.parametrize("is_always_on", [False, True])
def test_expired_transaction_markers_and_aborted_messages_are_not_lost(
    settings: Settings, lake: Lake, admin: AdminClient, is_always_on: bool
) -> None:
    topic = settings.transactions_topic
    land(lake, settings)
    produce_transaction(settings, numbers(0, 5), 0)
    produce_transaction(settings, numbers(5, 9), 1, commit=False)
    partitions = [
        SourcePartition(topic, find_topic_id(find_broker(settings), topic, settings), number) for number in range(2)
    ]

    def offsets() -> list[int]:
        return [committed_offset(lake.open(raw_transactions), partition) for partition in partitions]

    if is_always_on:
        with always_on(partial(land_forever, lake, settings.model_copy(update={"land_interval_seconds": 0.05}))):
            until(lambda: offsets() == [5, 4])
    else:
        assert land(lake, settings) == 5
        assert offsets() == [5, 4]
    version = lake.open(raw_transactions).version()
    assert land(lake, settings) == 0
    assert lake.open(raw_transactions).version() == version
    assert "2 partitions, 0 messages to land" in doctor_report(settings)
    expire(admin, topic, 0, 6)
    expire(admin, topic, 1, 5)
    assert "gone" not in doctor_report(settings)
    produce(settings, numbers(10, 13), partition=0)
    assert land(lake, settings) == 3
    assert process_landed(lake, settings).quarantined == 8


@apache_only
@pytest.mark.parametrize("is_always_on", [False, True])
def test_an_accepted_loss_is_recorded_once_even_if_no_message_follows(
    settings: Settings, lake: Lake, admin: AdminClient, is_always_on: bool
) -> None:
    topic = settings.transactions_topic
    assert land(lake, settings) == 0
    produce(settings, numbers(0, 6), partition=1)
    expire(admin, topic, 1, 6)
    accepting = settings.model_copy(update={"accept_lost": {f"{topic}/1": 6}, "land_interval_seconds": 0.05})

    def accepted_losses() -> list[str]:
        return [loss for commit in lake.open(raw_transactions).history() if (loss := commit.get("accepted_lost"))]

    if is_always_on:
        with always_on(partial(land_forever, lake, accepting)):
            until(lambda: bool(accepted_losses()))
    else:
        assert land(lake, accepting) == 0
    assert accepted_losses() == [f"{topic}/1: 0 to 5"]
    assert land(lake, settings) == 0


@apache_only
@pytest.mark.parametrize("field", ["transactions_topic", "labels_topic"])
def test_landing_once_fails_if_a_topic_is_missing(settings: Settings, lake: Lake, field: str) -> None:
    missing = settings.model_copy(update={field: "no-such-topic"})
    with pytest.raises(BrokerError, match=f"'no-such-topic' does not exist.*FRAUD_{field.upper()}"):
        land_once(lake, missing)


@pytest.fixture
def lake_without_broker(make_settings: Callable[..., Settings]) -> Lake:
    """A lake whose settings name no broker."""
    return Lake.of(make_settings())


def messages(topic_id: str, offsets: Sequence[int]) -> pa.Table:
    rows = [{"topic": "t", "topic_id": topic_id, "partition": 0, "offset": offset, "value": b"x"} for offset in offsets]
    names = [name for name in raw_transactions.schema.names if name not in ("ingested_at", "ingest_date")]
    return pa.Table.from_pylist(rows, pa.schema([raw_transactions.schema.field(name) for name in names]))


def test_log_starts_are_recorded_once_and_without_rows(lake_without_broker: Lake) -> None:
    partitions = [FIRST, SECOND, THIRD]
    log_starts = {FIRST: 0, SECOND: 60, THIRD: 1}
    expected = {FIRST: NOTHING, SECOND: 59, THIRD: 0}
    assert find_positions(lake_without_broker, raw_transactions, partitions, lambda: log_starts) == expected
    version = lake_without_broker.open(raw_transactions).version()
    assert find_positions(lake_without_broker, raw_transactions, partitions, lambda: {FIRST: 99}) == expected
    handle = lake_without_broker.open(raw_transactions)
    assert (handle.version(), read_row_count(handle)) == (version, 0)
    assert is_known(handle, "t", [])
    assert not is_known(handle, "tt", [])


def test_concurrent_landers_record_the_same_log_start(lake_without_broker: Lake) -> None:
    lake_without_broker.open(raw_transactions)
    barrier = threading.Barrier(2)
    found: list[dict[SourcePartition, int]] = []

    def find(log_start: int) -> None:
        def log_starts() -> dict[SourcePartition, int]:
            barrier.wait(30)
            return {FIRST: log_start}

        found.append(find_positions(lake_without_broker, raw_transactions, [FIRST], log_starts))

    threads = [threading.Thread(target=find, args=(log_start,)) for log_start in (5, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[0] == found[1]
    assert found[0][FIRST] in (4, 8)


@pytest.mark.parametrize(
    ("topic_id", "is_topic_known"), [(FIRST.topic_id, True), ("life of before", True), ("0123456789abcdef" * 2, False)]
)
def test_rows_of_an_earlier_version_make_a_topic_known_unless_an_embedded_broker_had_it(
    lake_without_broker: Lake, topic_id: str, is_topic_known: bool
) -> None:
    """Earlier versions of the platform did not record topics."""
    append_landed(lake_without_broker, raw_transactions, messages(topic_id, range(3)))
    assert is_known(lake_without_broker.open(raw_transactions), "t", [FIRST]) is is_topic_known
    landed = find_positions(lake_without_broker, raw_transactions, [FIRST, SECOND], lambda: {FIRST: 0, SECOND: 7})
    assert landed[SECOND] == (NOTHING if is_topic_known else 6)
    assert is_known(lake_without_broker.open(raw_transactions), "t", [])
