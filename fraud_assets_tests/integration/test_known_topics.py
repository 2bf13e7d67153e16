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


def lines_of_doctor(settings: Settings) -> str:
    return " ".join(str(finding) for finding in check_broker(settings))


@apache_only
def test_messages_that_expire_before_anything_of_their_partition_landed_are_lost(
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
    assert "60 of partition 1" in lines_of_doctor(settings)
    accepting = settings.model_copy(update={"accept_lost": {f"{topic}/1": 60}})
    assert land(lake, accepting) == 20
    assert land(lake, settings) == 0


@apache_only
def test_what_expired_before_the_first_sight_of_a_topic_is_not_lost(
    settings: Settings, lake: Lake, admin: AdminClient
) -> None:
    produce(settings, numbers(0, 10), partition=1)
    expire(admin, settings.transactions_topic, 1, 4)
    assert "gone" not in lines_of_doctor(settings)
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
    assert "7 of partition 0" in lines_of_doctor(settings)
    assert land(lake, settings.model_copy(update={"accept_lost": {f"{topic}/0": 7}})) == 3


@apache_only
def test_lost_labels_stop_landing(settings: Settings, lake: Lake, admin: AdminClient) -> None:
    label = {"transaction_id": 1, "is_fraud": 1, "labelled_at": "2026-01-01T00:00:00Z"}
    assert land(lake, settings) == 0
    produce(settings, [label] * 6, topic=settings.labels_topic, partition=1)
    expire(admin, settings.labels_topic, 1, 6)
    with pytest.raises(MessagesLostError, match=f"Up to 6 messages of partition 1 of topic '{settings.labels_topic}'"):
        land(lake, settings, fraud_labels)


def transaction(settings: Settings, values: Sequence[bytes], partition: int, *, commit: bool = True) -> None:
    """Values in one transaction of Kafka."""
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
def test_markers_and_aborted_messages_that_expire_are_not_lost(
    settings: Settings, lake: Lake, admin: AdminClient, is_always_on: bool
) -> None:
    topic = settings.transactions_topic
    land(lake, settings)
    transaction(settings, numbers(0, 5), 0)
    transaction(settings, numbers(5, 9), 1, commit=False)
    places = [
        SourcePartition(topic, find_topic_id(find_broker(settings), topic, settings), number) for number in range(2)
    ]

    def positions() -> list[int]:
        return [committed_offset(lake.open(raw_transactions), place) for place in places]

    if is_always_on:
        with always_on(partial(land_forever, lake, settings.model_copy(update={"land_interval_seconds": 0.05}))):
            until(lambda: positions() == [5, 4])
    else:
        assert land(lake, settings) == 5
        assert positions() == [5, 4]
    version = lake.open(raw_transactions).version()
    assert land(lake, settings) == 0
    assert lake.open(raw_transactions).version() == version
    assert "2 partitions, 0 messages to land" in lines_of_doctor(settings)
    expire(admin, topic, 0, 6)
    expire(admin, topic, 1, 5)
    assert "gone" not in lines_of_doctor(settings)
    produce(settings, numbers(10, 13), partition=0)
    assert land(lake, settings) == 3
    assert process_landed(lake, settings).quarantined == 8


@apache_only
@pytest.mark.parametrize("is_always_on", [False, True])
def test_what_is_given_up_is_noted_once_although_nothing_follows_it(
    settings: Settings, lake: Lake, admin: AdminClient, is_always_on: bool
) -> None:
    topic = settings.transactions_topic
    assert land(lake, settings) == 0
    produce(settings, numbers(0, 6), partition=1)
    expire(admin, topic, 1, 6)
    accepting = settings.model_copy(update={"accept_lost": {f"{topic}/1": 6}, "land_interval_seconds": 0.05})

    def notes() -> list[str]:
        return [note for commit in lake.open(raw_transactions).history() if (note := commit.get("accepted_lost"))]

    if is_always_on:
        with always_on(partial(land_forever, lake, accepting)):
            until(lambda: bool(notes()))
    else:
        assert land(lake, accepting) == 0
    assert notes() == [f"{topic}/1: 0 to 5"]
    assert land(lake, settings) == 0


@apache_only
@pytest.mark.parametrize("field", ["transactions_topic", "labels_topic"])
def test_a_missing_topic_is_an_error_of_landing_once_and_of_the_asset(
    settings: Settings, lake: Lake, field: str
) -> None:
    missing = settings.model_copy(update={field: "no-such-topic"})
    with pytest.raises(BrokerError, match=f"'no-such-topic' does not exist.*FRAUD_{field.upper()}"):
        land_once(lake, missing)


@pytest.fixture
def own_lake(make_settings: Callable[..., Settings]) -> Lake:
    """A lake without a broker."""
    return Lake.of(make_settings())


def messages(topic_id: str, offsets: Sequence[int]) -> pa.Table:
    rows = [{"topic": "t", "topic_id": topic_id, "partition": 0, "offset": offset, "value": b"x"} for offset in offsets]
    names = [name for name in raw_transactions.schema.names if name not in ("ingested_at", "ingest_date")]
    return pa.Table.from_pylist(rows, pa.schema([raw_transactions.schema.field(name) for name in names]))


def test_log_starts_are_recorded_once_and_without_rows(own_lake: Lake) -> None:
    streams = [FIRST, SECOND, THIRD]
    lows = {FIRST: 0, SECOND: 60, THIRD: 1}
    expected = {FIRST: NOTHING, SECOND: 59, THIRD: 0}
    assert find_positions(own_lake, raw_transactions, streams, lambda: lows) == expected
    version = own_lake.open(raw_transactions).version()
    assert find_positions(own_lake, raw_transactions, streams, lambda: {FIRST: 99}) == expected
    handle = own_lake.open(raw_transactions)
    assert (handle.version(), read_row_count(handle)) == (version, 0)
    assert is_known(handle, "t", [])
    assert not is_known(handle, "tt", [])


def test_landers_that_see_a_topic_at_once_agree(own_lake: Lake) -> None:
    own_lake.open(raw_transactions)
    both = threading.Barrier(2)
    found: list[dict[SourcePartition, int]] = []

    def see(low: int) -> None:
        def lows() -> dict[SourcePartition, int]:
            both.wait(30)
            return {FIRST: low}

        found.append(find_positions(own_lake, raw_transactions, [FIRST], lows))

    threads = [threading.Thread(target=see, args=(low,)) for low in (5, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[0] == found[1]
    assert found[0][FIRST] in (4, 8)


@pytest.mark.parametrize(
    ("topic_id", "is_old"), [(FIRST.topic_id, True), ("life of before", True), ("0123456789abcdef" * 2, False)]
)
def test_a_lake_of_before_knows_a_topic_by_its_rows_unless_they_came_from_an_embedded_broker(
    own_lake: Lake, topic_id: str, is_old: bool
) -> None:
    append_landed(own_lake, raw_transactions, messages(topic_id, range(3)))
    assert is_known(own_lake.open(raw_transactions), "t", [FIRST]) is is_old
    landed = find_positions(own_lake, raw_transactions, [FIRST, SECOND], lambda: {FIRST: 0, SECOND: 7})
    assert landed[SECOND] == (NOTHING if is_old else 6)
    assert is_known(own_lake.open(raw_transactions), "t", [])
