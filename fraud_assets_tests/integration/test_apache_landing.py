"""Landing from Apache Kafka: consumer groups, outages, and unusual sequences of offsets."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from fraud_assets.core.schema import fraud_labels, raw_transactions
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.errors import BrokerError, MessagesLostError
from fraud_assets.ingest.service.lander import choose_consumer_group, land_forever
from fraud_assets.ingest.service.presence import find_running_landers
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.settings import Settings
from fraud_assets.testing.apache_kafka import Cluster, apache_kafka, describe_obstacle
from fraud_assets_tests.support.logged import logged
from fraud_assets_tests.support.starting import MakeTopic, Start
from fraud_assets_tests.support.topics import always_on, done, numbers, produce
from fraud_assets_tests.support.waiting import until

pytestmark = pytest.mark.xdist_group("apache")


@pytest.fixture
def settings(apache_settings: Settings) -> Settings:
    """Settings with the test's own topics on Apache Kafka, and a timeout that reports an outage soon."""
    return apache_settings.model_copy(update={"kafka_timeout_seconds": 3.0, "land_interval_seconds": 0.05})


@pytest.fixture
def admin(apache: Cluster) -> AdminClient:
    return AdminClient({"bootstrap.servers": apache.bootstrap, "log_level": 0})


def read_landed_texts(lake: Lake) -> list[str]:
    """Bodies in the landing table, sorted."""
    if not lake.exists(raw_transactions):
        return []
    values = open_dataset(lake.open(raw_transactions)).to_table(columns=["value"])["value"].to_pylist()
    return sorted(value.decode() for value in values if value is not None)


def texts(first: int, last: int) -> list[str]:
    return [number.decode() for number in numbers(first, last)]


def land(lake: Lake, settings: Settings) -> int:
    return land_topics(lake, settings)["raw_transactions"].rows


def running_lander(lake: Lake, settings: Settings) -> AbstractContextManager[list[str]]:
    """Runs a lander in a thread; yields the lines that are logged."""
    return always_on(partial(land_forever, lake, settings))


def environment_of(settings: Settings) -> dict[str, str]:
    """The settings of the test, as environment variables for a process."""
    return {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "FRAUD_TRANSACTIONS_TOPIC": settings.transactions_topic,
        "FRAUD_LABELS_TOPIC": settings.labels_topic,
    }


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def assigned_partitions(url: str, settings: Settings) -> set[str]:
    """Partitions that are assigned to a lander, according to its metrics."""
    lines = [line for line in fetch(f"{url}/metrics")[1].splitlines() if line.startswith("fraud_landing_lag_messages{")]
    return {line.split('partition="')[1].split('"')[0] for line in lines if settings.transactions_topic in line}


def test_landers_share_partitions_which_move_when_one_stops_or_is_killed(
    settings: Settings, lake: Lake, make_topic: MakeTopic, start: Start
) -> None:
    settings = settings.model_copy(update={"transactions_topic": make_topic("transactions", partitions=4)})
    all_partitions = {"0", "1", "2", "3"}

    def start_lander() -> tuple[subprocess.Popen[str], str]:
        before = set(find_running_landers(settings))
        process = start("land", **environment_of(settings))
        until(lambda: set(find_running_landers(settings)) > before)
        return process, find_running_landers(settings)[process.pid]

    def are_all_assigned(*urls: str) -> bool:
        assigned = [assigned_partitions(url, settings) for url in urls]
        return all(assigned) and sum(map(len, assigned)) == 4 and set().union(*assigned) == all_partitions

    first, first_url = start_lander()
    produce(settings, numbers(0, 1000))
    until(lambda: read_landed_texts(lake) == texts(0, 1000))
    second, second_url = start_lander()
    until(lambda: are_all_assigned(first_url, second_url))
    produce(settings, numbers(1000, 2000))
    until(lambda: read_landed_texts(lake) == texts(0, 2000))
    first.send_signal(signal.SIGTERM)
    _, lines = first.communicate(timeout=20)
    assert first.returncode == 0
    assert "Stopped" in lines.splitlines()[-1]
    until(lambda: are_all_assigned(second_url))
    third, third_url = start_lander()
    until(lambda: are_all_assigned(second_url, third_url))
    second.kill()
    produce(settings, numbers(2000, 3000))
    until(lambda: read_landed_texts(lake) == texts(0, 3000))
    until(lambda: assigned_partitions(third_url, settings) == all_partitions)
    third.send_signal(signal.SIGTERM)
    third.communicate(timeout=20)
    # Landers also commit their offsets to the broker, for tools that monitor the lag there.
    consumer = Consumer(
        {"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": choose_consumer_group(lake, settings)}
    )
    committed = consumer.committed([TopicPartition(settings.transactions_topic, n) for n in range(4)], timeout=10)
    consumer.close()
    assert sum(position.offset for position in committed) == 3000


def test_metrics_and_health_show_an_outage(tmp_path: Path, make_settings: Callable[..., Settings]) -> None:
    if reason := describe_obstacle():
        pytest.skip(reason)
    from fraud_assets.ingest.service.metrics import LandingMetrics, serve_metrics

    with apache_kafka(tmp_path / "kafka") as cluster:
        settings = make_settings(
            kafka_bootstrap_servers=cluster.bootstrap, kafka_timeout_seconds=1, land_interval_seconds=0.05
        )
        admin = AdminClient({"bootstrap.servers": cluster.bootstrap, "log_level": 0})
        created = admin.create_topics([NewTopic(settings.transactions_topic, 2), NewTopic(settings.labels_topic, 1)])
        done(created)
        lake = Lake.of(settings)
        metrics, stop = LandingMetrics(), threading.Event()
        thread = threading.Thread(target=land_forever, args=(lake, settings, stop), kwargs={"metrics": metrics})
        with logged() as lines, serve_metrics(metrics, "127.0.0.1:19300") as url:
            thread.start()
            try:
                produce(settings, numbers(0, 100))
                produce(settings, [{"transaction_id": 1, "is_fraud": 1, "labelled_at": "2026-01-01T00:00:00Z"}],
                        topic=settings.labels_topic)  # fmt: skip
                until(lambda: read_row_count(lake.open(raw_transactions)) == 100)
                until(lambda: 'fraud_landed_rows_total{table="fraud_labels"} 1.0' in fetch(f"{url}/metrics")[1])
                metrics_text = fetch(f"{url}/metrics")[1]
                assert 'fraud_landed_rows_total{table="raw_transactions"} 100.0' in metrics_text
                assert 'fraud_landed_bytes_total{table="raw_transactions"} 600.0' in metrics_text
                assert 'fraud_landing_commit_seconds_count{table="raw_transactions"}' in metrics_text
                assert "fraud_landing_oldest_unlanded_seconds 0.0" in metrics_text
                assert fetch(f"{url}/health")[0] == 200
                assert fetch(f"{url}/")[0] == 404
                cluster.kill()
                until(lambda: fetch(f"{url}/health")[0] == 503)
                assert "No answer from the broker" in json.loads(fetch(f"{url}/health")[1])["reason"]
                assert "fraud_landing_failing 1.0" in fetch(f"{url}/metrics")[1]
                cluster.start()
                produce(settings, numbers(100, 150))
                until(lambda: fetch(f"{url}/health")[0] == 200)
                until(lambda: read_landed_texts(lake) == texts(0, 150))
                # The lander stops within a few seconds, even during an outage of the broker.
                cluster.kill()
                until(lambda: fetch(f"{url}/health")[0] == 503)
                stop.set()
                until(lambda: not thread.is_alive(), 10)
            finally:
                stop.set()
                thread.join(60)
    outages = [line for line in lines if "No answer" in line]
    assert len(outages) == 2
    assert "Landing of topics works again." in lines


def test_messages_below_the_log_start_stop_landing_until_their_loss_is_accepted(
    settings: Settings, lake: Lake, admin: AdminClient, start: Start
) -> None:
    topic = settings.transactions_topic
    produce(settings, numbers(0, 10), partition=0)
    produce(settings, numbers(10, 20), partition=1)
    assert land(lake, settings) == 20
    produce(settings, numbers(20, 30), partition=0)
    produce(settings, numbers(30, 40), partition=1)
    deleted = admin.delete_records([TopicPartition(topic, 0, 15), TopicPartition(topic, 1, 13)])
    done(deleted)
    process = start("land", **environment_of(settings))
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 1, out
    accepted = f"FRAUD_ACCEPT_LOST={topic}/0=15,{topic}/1=13"
    assert f"Up to 5 messages of partition 0 of topic {topic!r} are lost" in errors
    assert f"Up to 3 messages of partition 1 of topic {topic!r} are lost" in errors
    assert accepted in errors
    assert "Traceback" not in errors
    assert read_row_count(lake.open(raw_transactions)) == 20
    # Each lost partition must be accepted: accepting one does not accept the other.
    with pytest.raises(MessagesLostError, match="of partition 1"):
        land(lake, settings.model_copy(update={"accept_lost": {f"{topic}/0": 15}}))
    process = start(
        "land", "--once", **environment_of(settings), FRAUD_ACCEPT_LOST=accepted.removeprefix("FRAUD_ACCEPT_LOST=")
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert read_landed_texts(lake) == texts(0, 20) + texts(25, 30) + texts(33, 40)
    notes = [commit.get("accepted_lost", "") for commit in lake.open(raw_transactions).history()]
    assert any(f"{topic}/0: 10 to 14" in note and f"{topic}/1: 10 to 12" in note for note in notes)


def test_an_old_topic_lands_from_its_log_start(settings: Settings, lake: Lake, admin: AdminClient) -> None:
    """Messages that were deleted before the first landing do not count as lost."""
    produce(settings, numbers(0, 10), partition=0)
    done(admin.delete_records([TopicPartition(settings.transactions_topic, 0, 4)]))
    with running_lander(lake, settings):
        until(lambda: read_landed_texts(lake) == texts(4, 10))


def test_a_recreated_topic_lands_from_its_start(settings: Settings, lake: Lake, admin: AdminClient) -> None:
    produce(settings, numbers(0, 10), partition=0)
    with running_lander(lake, settings) as lines:
        until(lambda: read_landed_texts(lake) == texts(0, 10))
        done(admin.delete_topics([settings.transactions_topic]))
        until(lambda: any("does not exist" in line for line in lines))
        # The new topic is longer than the old one, so offsets alone do not distinguish them.
        done(admin.create_topics([NewTopic(settings.transactions_topic, 2)]))
        produce(settings, numbers(10, 40), partition=0)
        until(lambda: read_landed_texts(lake) == texts(0, 40))
    topic_ids = open_dataset(lake.open(raw_transactions)).to_table(columns=["topic_id"])["topic_id"]
    assert len(topic_ids.unique()) == 2


def test_a_topic_recreated_between_two_landings_lands_completely(
    settings: Settings, lake: Lake, admin: AdminClient
) -> None:
    """The topic is deleted and recreated while no lander runs, and is longer than before."""
    produce(settings, numbers(0, 10), partition=0)
    assert land(lake, settings) == 10
    done(admin.delete_topics([settings.transactions_topic]))

    def is_deleted() -> bool:
        return settings.transactions_topic not in admin.list_topics(timeout=10).topics

    until(is_deleted)
    done(admin.create_topics([NewTopic(settings.transactions_topic, 2)]))
    produce(settings, numbers(10, 40), partition=0)
    assert land(lake, settings) == 30
    assert read_landed_texts(lake) == texts(0, 40)


def test_added_partitions_land(settings: Settings, lake: Lake, admin: AdminClient) -> None:
    produce(settings, numbers(0, 10), partition=0)
    assert land(lake, settings) == 10
    with running_lander(lake, settings):
        done(admin.create_partitions([NewPartitions(settings.transactions_topic, 4)]))
        produce(settings, numbers(10, 20), partition=3)
        until(lambda: read_landed_texts(lake) == texts(0, 20))
    produce(settings, numbers(20, 30), partition=2)
    assert land(lake, settings) == 10


def test_a_lander_waits_for_a_missing_topic(settings: Settings, lake: Lake, admin: AdminClient) -> None:
    missing = settings.model_copy(update={"transactions_topic": f"{settings.transactions_topic}-later"})
    with pytest.raises(BrokerError, match=r"does not exist.*FRAUD_TRANSACTIONS_TOPIC"):
        land(lake, missing)
    with running_lander(lake, missing) as lines:
        until(lambda: any("does not exist" in line for line in lines))
        done(admin.create_topics([NewTopic(missing.transactions_topic, 1)]))
        produce(missing, numbers(0, 5))
        until(lambda: read_landed_texts(lake) == texts(0, 5))


def test_offset_gaps_from_compaction_do_not_count_as_lost(
    settings: Settings, lake: Lake, make_topic: MakeTopic
) -> None:
    topic = make_topic(
        "compacted", cleanup_policy="compact", min_cleanable_dirty_ratio=0.01, segment_ms=100, delete_retention_ms=1
    )
    settings = settings.model_copy(update={"transactions_topic": topic})
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap_servers, "log_level": 0})

    def send(key: str, value: bytes | None) -> None:
        producer.produce(topic, value, key)
        assert producer.flush(20) == 0

    send("kept", b"first")
    for number in range(20):
        send("often", b"%d" % number)
    assert land(lake, settings) == 21
    send("gone", b"deleted later")
    send("gone", None)

    def is_compacted() -> bool:
        # This message starts a new segment, which triggers the log cleaner.
        send("often", b"again")
        reader = Consumer({"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": "look"})
        reader.assign([TopicPartition(topic, 0, 0)])
        offsets = [message.offset() for message in reader.consume(10_000, timeout=1) if not message.error()]
        reader.close()
        return 21 not in offsets and len(offsets) > 1

    until(is_compacted, 60)
    with running_lander(lake, settings):
        until(lambda: "again" in read_landed_texts(lake))
    values = read_landed_texts(lake)
    assert values.count("first") == 1
    assert [str(n) in values for n in range(20)] == [True] * 20
    assert land(lake, settings) == 0


def test_only_committed_messages_land_and_markers_do_not_count_as_lost(settings: Settings, lake: Lake) -> None:
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka_bootstrap_servers,
            "transactional.id": settings.transactions_topic,
            "log_level": 0,
        }
    )
    producer.init_transactions(30)

    def transaction(values: list[bytes], commit: bool) -> None:
        producer.begin_transaction()
        for value in values:
            producer.produce(settings.transactions_topic, value, partition=0)
        producer.flush(20)
        producer.commit_transaction(30) if commit else producer.abort_transaction(30)

    transaction(numbers(0, 5), commit=True)
    transaction(numbers(5, 10), commit=False)
    assert land(lake, settings) == 5
    # The second landing finds nothing: the marker at the end is not a pending message.
    assert land(lake, settings) == 0
    with running_lander(lake, settings):
        transaction(numbers(10, 15), commit=True)
        until(lambda: read_landed_texts(lake) == texts(0, 5) + texts(10, 15))
        producer.begin_transaction()
        for value in numbers(15, 20):
            producer.produce(settings.transactions_topic, value, partition=0)
        producer.flush(20)
        produce(settings, numbers(20, 21), partition=1)
        until(lambda: "000020" in read_landed_texts(lake))
        assert "000015" not in read_landed_texts(lake)
        producer.commit_transaction(30)
        until(lambda: read_landed_texts(lake) == texts(0, 5) + texts(10, 21))


def test_labels_land_before_the_transactions_that_follow_them(settings: Settings, lake: Lake) -> None:
    """A label that is sent before its transaction never has a later ingest time than the transaction."""
    with running_lander(lake, settings):
        for number in range(20):
            label = {"transaction_id": number, "is_fraud": 1, "labelled_at": "2026-01-01T00:00:00Z"}
            produce(settings, [label], topic=settings.labels_topic)
            produce(settings, numbers(number, number + 1))
        until(lambda: len(read_landed_texts(lake)) == 20)
    labels = open_dataset(lake.open(fraud_labels)).to_table(columns=["transaction_id", "ingested_at"]).to_pylist()
    labels_landed_at = {int(row["transaction_id"]): row["ingested_at"] for row in labels}
    rows = open_dataset(lake.open(raw_transactions)).to_table(columns=["value", "ingested_at"]).to_pylist()
    assert all(labels_landed_at[int(row["value"])] <= row["ingested_at"] for row in rows)
