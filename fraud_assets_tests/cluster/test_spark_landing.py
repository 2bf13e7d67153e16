"""Landing on Spark stores the same rows as the Python lander, exactly once, also while other landers run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from fraud_assets.core.schema import MESSAGES, TIME, fraud_labels, raw_transactions
from fraud_assets.engines.landing_report import LandingReport
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.engines.spark.engine import SparkEngine
from fraud_assets.engines.spark.messages import to_messages
from fraud_assets.errors import EngineError, MessagesLostError, SettingError
from fraud_assets.ingest.service.lander import choose_consumer_group, land_forever
from fraud_assets.kafka.java_properties import build_java_properties
from fraud_assets.lake.tables import Lake, read
from fraud_assets.settings import Settings
from fraud_assets.testing.apache_kafka import Cluster
from fraud_assets_tests.support.secure_kafka import by_certificate, by_password
from fraud_assets_tests.support.spark_landing_runs import MakeSettings, following, landed
from fraud_assets_tests.support.starting import MakeTopic, Start, topic_maker
from fraud_assets_tests.support.topics import done, numbers, produce
from fraud_assets_tests.support.waiting import until

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from fraud_assets_tests.support.secure_kafka import SecureKafka

pytestmark = pytest.mark.xdist_group("spark")


@pytest.fixture
def settings(apache_settings: Settings) -> Settings:
    """Settings with the test's own topics on Apache Kafka and a timeout of five seconds."""
    return apache_settings.model_copy(update={"kafka_timeout_seconds": 5.0, "land_interval_seconds": 0.1})


LABEL = {"transaction_id": 1, "is_fraud": 1, "labelled_at": "2026-01-01T00:00:00Z"}


@pytest.fixture
def admin(apache: Cluster) -> AdminClient:
    return AdminClient({"bootstrap.servers": apache.bootstrap, "log_level": 0})


def messages(lake: Lake) -> pa.Table:
    """The landed messages, sorted by partition and offset."""
    rows = read(lake.open(raw_transactions), MESSAGES.names)
    return rows.sort_by([("partition", "ascending"), ("offset", "ascending")]).combine_chunks()


def committed(lake: Lake, settings: Settings) -> int:
    """The number of messages that the consumer group has committed at the broker."""
    consumer = Consumer(
        {"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": choose_consumer_group(lake, settings)}
    )
    positions = consumer.committed([TopicPartition(settings.transactions_topic, n) for n in range(4)], timeout=10)
    consumer.close()
    return sum(max(position.offset, 0) for position in positions)


def land_by_spark(spark: SparkSession, lake: Lake, settings: Settings) -> dict[str, LandingReport]:
    return SparkEngine(settings, lambda: spark).land_topics(lake)


def land_by_python(lake: Lake, settings: Settings) -> dict[str, LandingReport]:
    return land_topics(lake, settings)


def test_spark_lands_the_same_rows_as_the_python_lander(
    spark: SparkSession, settings: Settings, lake: Lake, make_settings: MakeSettings
) -> None:
    produce(settings, numbers(0, 500))
    produce(settings, [b"\x00\xff", b"", None], key=b"k\xff", headers=[("trace", b"\x01\xff"), ('é"', b""), ("", None)])
    produce(settings, numbers(500, 510), timestamp=1_000)
    produce(settings, [LABEL, b"no label"], topic=settings.labels_topic)
    reports = land_by_spark(spark, lake, settings.model_copy(update={"spark_land_rows": 200}))
    python_lake = Lake.of(make_settings(home=settings.home_path / "other"))
    expected = land_by_python(python_lake, settings)
    assert messages(lake).equals(messages(python_lake))
    for name in ("raw_transactions", "fraud_labels"):
        spark_metadata, python_metadata = reports[name].metadata(), expected[name].metadata()
        assert {**spark_metadata, "seconds": 0} == {**python_metadata, "seconds": 0}
    assert reports["raw_transactions"].rows == 513
    assert lake.open(raw_transactions).version() >= 3
    assert land_by_spark(spark, lake, settings)["raw_transactions"].rows == 0
    assert land_by_python(lake, settings)["raw_transactions"].rows == 0
    assert list((settings.home_path / "spark").iterdir()) == []


def test_a_message_without_a_timestamp_lands_with_null() -> None:
    count = 4
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    times = pa.array([moment, moment, None, None], TIME).fill_null(pa.scalar(-1_000, pa.int64()).cast(TIME))
    batch = pa.RecordBatch.from_pydict(
        {
            "key": pa.nulls(count, pa.binary()),
            "value": pa.nulls(count, pa.binary()),
            "topic": ["t"] * count,
            "partition": pa.array([0] * count, pa.int32()),
            "offset": range(count),
            "timestamp": times,
            "timestampType": pa.array([0, -1, -1, 0], pa.int32()),
            "headers": pa.nulls(count, pa.string()),
        }
    )
    assert to_messages(batch, "topic-id")["timestamp"].to_pylist() == [moment, None, None, None]


def test_a_timestamp_that_spark_cannot_hold_does_not_stop_landing(
    spark: SparkSession, settings: Settings, lake: Lake, make_topic: MakeTopic
) -> None:
    topic = make_topic("nanoseconds", message_timestamp_after_max_ms=2**63 - 1)
    settings = settings.model_copy(update={"transactions_topic": topic})
    produce(settings, numbers(0, 5))
    produce(settings, numbers(5, 6), timestamp=1_700_000_000_000_000_000)
    produce(settings, numbers(6, 10))
    assert land_by_spark(spark, lake, settings)["raw_transactions"].rows == 10
    assert landed(lake) == numbers(0, 10)
    assert messages(lake)["timestamp"].null_count == 1


def test_racing_landers_land_each_message_once(spark: SparkSession, settings: Settings, lake: Lake) -> None:
    produce(settings, numbers(0, 4000))
    small_batches = settings.model_copy(update={"spark_land_rows": 400, "land_batch_rows": 150})
    with following(spark, lake, small_batches):
        until(lambda: len(landed(lake)) > 0)
        rows = land_by_python(lake, small_batches)["raw_transactions"].rows
        until(lambda: len(landed(lake)) >= 4000)
    assert landed(lake) == numbers(0, 4000)
    assert rows < 4000


def test_aborted_transactions_of_kafka_do_not_land(
    spark: SparkSession, settings: Settings, lake: Lake, admin: AdminClient
) -> None:
    """Both landers run in turn. Offsets of aborted messages and of transaction markers do not count as lost."""
    for turn in range(4):
        producer = Producer(
            {
                "bootstrap.servers": settings.kafka_bootstrap_servers,
                "transactional.id": f"{settings.transactions_topic}-{turn}",
                "log_level": 0,
            }
        )
        producer.init_transactions(10)
        producer.begin_transaction()
        for value in numbers(turn * 10, turn * 10 + 10):
            producer.produce(settings.transactions_topic, value, partition=turn % 2)
        producer.abort_transaction(10) if turn == 2 else producer.commit_transaction(10)
        land_by_spark(spark, lake, settings) if turn % 2 else land_by_python(lake, settings)
    open_transaction = Producer(
        {"bootstrap.servers": settings.kafka_bootstrap_servers, "transactional.id": settings.labels_topic}
    )
    open_transaction.init_transactions(10)
    open_transaction.begin_transaction()
    open_transaction.produce(settings.transactions_topic, b"not yet", partition=0)
    open_transaction.flush(10)
    land_by_spark(spark, lake, settings)
    assert landed(lake) == numbers(0, 20) + numbers(30, 40)
    open_transaction.commit_transaction(10)
    report = land_by_spark(spark, lake, settings)["raw_transactions"]
    assert report.rows == 1
    # The committed offsets include the markers. Otherwise the markers would count as lost once the broker deletes them.
    assert set(report.lag.values()) == {0}
    done(admin.delete_records([TopicPartition(settings.transactions_topic, partition, -1) for partition in range(2)]))
    assert land_by_python(lake, settings)["raw_transactions"].rows == 0


def test_a_running_lander_lands_labels_first_and_reads_new_partitions(
    spark: SparkSession, settings: Settings, lake: Lake, admin: AdminClient
) -> None:
    with following(spark, lake, settings):
        produce(settings, [{**LABEL, "transaction_id": 0}], topic=settings.labels_topic)
        # A label also lands without a transaction.
        until(lambda: lake.exists(fraud_labels) and read(lake.open(fraud_labels)).num_rows == 1)
        for number in range(1, 5):
            produce(settings, [{**LABEL, "transaction_id": number}], topic=settings.labels_topic)
            produce(settings, numbers(number, number + 1), partition=0)
        done(admin.create_partitions([NewPartitions(settings.transactions_topic, 4)]))
        produce(settings, numbers(5, 20), partition=3)
        until(lambda: landed(lake) == numbers(1, 20))
        # Tools that monitor the lag at the broker need these offsets.
        until(lambda: committed(lake, settings) == 19)
    labels = read(lake.open(fraud_labels), ["transaction_id", "ingested_at"]).to_pylist()
    label_times = {int(row["transaction_id"]): row["ingested_at"] for row in labels}
    rows = read(lake.open(raw_transactions), ["value", "ingested_at"]).to_pylist()
    assert all(label_times[int(row["value"])] <= row["ingested_at"] for row in rows if int(row["value"]) < 5)


def test_a_recreated_topic_lands_from_its_start(
    spark: SparkSession, settings: Settings, lake: Lake, admin: AdminClient
) -> None:
    produce(settings, numbers(0, 10), partition=0)
    with following(spark, lake, settings) as lines:
        until(lambda: landed(lake) == numbers(0, 10))
        done(admin.delete_topics([settings.transactions_topic]))
        until(lambda: any("does not exist" in line for line in lines))
        # The new topic becomes longer than the old one, so offsets alone do not show that it was recreated.
        done(admin.create_topics([NewTopic(settings.transactions_topic, 2)]))
        produce(settings, numbers(10, 40), partition=0)
        until(lambda: landed(lake) == numbers(0, 40))
    assert "Landing of topics works again." in lines
    assert len(messages(lake)["topic_id"].unique()) == 2


def test_a_topic_recreated_during_a_query_is_not_mixed_with_the_old_one(
    spark: SparkSession, settings: Settings, lake: Lake, admin: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The topic is recreated between the plan and the first batch, when neither partitions nor offsets show it."""
    from fraud_assets.engines.spark.topic_query import TopicQuery

    produce(settings, numbers(0, 10), partition=0)
    land_by_python(lake, settings)
    produce(settings, numbers(10, 20), partition=0)
    topic, real_start = settings.transactions_topic, TopicQuery._start
    recreated = []

    def recreate_and_start(self: Any, *args: Any) -> Any:
        if not recreated:
            done(admin.delete_topics([topic]))
            until(lambda: topic not in admin.list_topics(timeout=10).topics)
            done(admin.create_topics([NewTopic(topic, 2)]))
            produce(settings, numbers(20, 60), partition=0)
            recreated.append(topic)
        return real_start(self, *args)

    monkeypatch.setattr(TopicQuery, "_start", recreate_and_start)
    with following(spark, lake, settings) as lines:
        until(lambda: landed(lake) == numbers(0, 10) + numbers(20, 60))
    assert any("was recreated" in line for line in lines)
    rows = messages(lake)
    assert rows.group_by(["topic_id"]).aggregate([("offset", "max")])["offset_max"].to_pylist() in ([9, 39], [39, 9])


def test_messages_below_the_log_start_stop_landing_until_accepted_as_lost(
    spark: SparkSession, settings: Settings, lake: Lake, admin: AdminClient
) -> None:
    topic = settings.transactions_topic
    produce(settings, numbers(0, 10), partition=0)
    land_by_spark(spark, lake, settings)
    produce(settings, numbers(10, 20), partition=0)
    done(admin.delete_records([TopicPartition(topic, 0, 15)]))
    with pytest.raises(MessagesLostError, match=f"To continue without them, set FRAUD_ACCEPT_LOST={topic}/0=15"):
        land_by_spark(spark, lake, settings)
    with pytest.raises(MessagesLostError, match="Up to 5 messages of partition 0"):
        land_forever(lake, settings, threading.Event(), spark=spark)
    accepted = settings.model_copy(update={"accept_lost": {f"{topic}/0": 15}})
    assert land_by_spark(spark, lake, accepted)["raw_transactions"].rows == 5
    assert landed(lake) == numbers(0, 10) + numbers(15, 20)
    accepted_ranges = [commit.get("accepted_lost") for commit in lake.open(raw_transactions).history()]
    assert f"{topic}/0: 10 to 14" in accepted_ranges


def test_messages_deleted_during_a_read_stop_landing(
    spark: SparkSession, settings: Settings, lake: Lake, admin: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fraud_assets.engines.spark.topic_query import TopicQuery

    produce(settings, numbers(0, 10), partition=0)
    land_by_python(lake, settings)
    produce(settings, numbers(10, 20), partition=0)
    real_batch = TopicQuery._batch

    def delete_and_read(self: Any, *args: Any) -> None:
        done(admin.delete_records([TopicPartition(settings.transactions_topic, 0, 15)]))
        real_batch(self, *args)

    monkeypatch.setattr(TopicQuery, "_batch", delete_and_read)
    with pytest.raises(MessagesLostError, match="Up to 5 messages of partition 0"):
        land_by_spark(spark, lake, settings)
    assert landed(lake) == numbers(0, 10)


def test_pseudonyms_equal_those_of_the_python_lander(
    spark: SparkSession, settings: Settings, lake: Lake, make_settings: MakeSettings
) -> None:
    settings = settings.model_copy(
        update=make_settings(pseudonymise="card.number", pseudonym_key="k" * 32).model_dump(
            include={"pseudonymise", "pseudonym_key"}
        )
    )
    produce(settings, [{"transaction_id": 1, "card": {"number": "4000001234567899"}}, b"4000001234567899"], key=b"4000")
    land_by_spark(spark, lake, settings)
    python_lake = Lake.of(make_settings(home=settings.home_path / "other"))
    land_by_python(python_lake, settings)
    assert messages(lake).equals(messages(python_lake))
    assert b"4000001234567899" not in b"".join(landed(lake))


def test_a_failed_job_gives_a_one_line_error(
    spark: SparkSession, settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fraud_assets.engines.spark import topic_query

    produce(settings, numbers(0, 10))
    monkeypatch.setattr(
        topic_query,
        "build_java_properties",
        lambda settings: {**build_java_properties(settings), "bootstrap.servers": "127.0.0.1:1"},
    )
    with pytest.raises(EngineError, match="A job on Spark failed") as failed:
        land_by_spark(spark, lake, settings.model_copy(update={"kafka_timeout_seconds": 1.0}))
    assert "\n" not in str(failed.value)
    assert landed(lake) == []


def test_the_embedded_broker_is_read_without_a_session(lake: Lake, make_settings: MakeSettings) -> None:
    from fraud_assets.kafka.broker import embedded_broker

    def no_session() -> SparkSession:
        raise AssertionError("not needed")

    settings = make_settings()
    with embedded_broker(settings) as broker:
        produce(settings.model_copy(update={"kafka_bootstrap_servers": broker.bootstrap}), numbers(0, 10))
        assert SparkEngine(settings, no_session).land_topics(lake)["raw_transactions"].rows == 10


def test_the_asset_lands_on_spark(spark: SparkSession, settings: Settings, lake: Lake) -> None:
    import dagster as dg

    from fraud_assets.assets.landing import landing
    from fraud_assets.resources import EngineResource, PlatformResource

    produce(settings, numbers(0, 10))
    settings.incoming.mkdir(parents=True)
    (settings.incoming / "dropped.jsonl").write_text('{"n": 1}\n')
    overrides = {
        "engine": "spark",
        "home": str(settings.home_path),
        "file_quiet_seconds": "0",
        "kafka_bootstrap_servers": settings.kafka_bootstrap_servers,
        "transactions_topic": settings.transactions_topic,
        "labels_topic": settings.labels_topic,
    }
    resources = {"platform": PlatformResource(overrides=overrides), "engines": EngineResource()}
    result = dg.materialize([landing], resources=resources)
    events = {event.asset_key.to_user_string(): event for event in result.get_asset_materialization_events()}
    metadata = events["raw_transactions"].materialization.metadata
    assert metadata["rows_added"].value == 11
    assert metadata["messages_waiting"].value == 0
    assert landed(lake) == [*numbers(0, 10), b'{"n": 1}']


def test_a_wrong_setting_gives_a_one_line_error(settings: Settings, start: Start, tmp_path: Path) -> None:
    broker = {"KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers}
    for environment, words in (({}, "KAFKA_BOOTSTRAP_SERVERS is not set"),
                               ({**broker, "FRAUD_SPARK_JARS": str(tmp_path)}, "FRAUD_SPARK_JARS is")):  # fmt: skip
        process = start("land", "--engine", "spark", **environment)
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0
        assert words in errors
        assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("login", [by_password, by_certificate])
def test_a_secured_broker_is_read_and_no_secret_is_shown(
    login: Callable[[SecureKafka], dict[str, Any]],
    spark: SparkSession,
    kafka: SecureKafka,
    make_settings: MakeSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    make_topic = topic_maker(kafka.plain)
    settings = make_settings(**login(kafka), transactions_topic=make_topic(), labels_topic=make_topic())
    produce(settings.model_copy(update={"kafka_bootstrap_servers": kafka.plain}), numbers(0, 100))
    lake = Lake.of(settings)
    spark.sparkContext.setLogLevel("INFO")
    try:
        assert land_by_spark(spark, lake, settings)["raw_transactions"].rows == 100
    finally:
        spark.sparkContext.setLogLevel("WARN")
    properties = build_java_properties(settings)
    options = {f"kafka.{name}": value for name, value in properties.items()}
    frame = spark.readStream.format("kafka").options(**options, subscribe=settings.transactions_topic).load()
    plan = frame._jdf.queryExecution().toString()
    assert "bootstrap.servers" in plan
    log = "".join(path.read_text() for path in tmp_path_factory.getbasetemp().glob("spark*/spark/driver.log"))
    assert settings.transactions_topic in log
    shown = plan + log
    secrets = [value for name, value in properties.items() if name in ("sasl.jaas.config", "ssl.keystore.key")]
    password = settings.kafka_sasl_password.get_secret_value()
    assert secrets
    assert not any(secret in shown for secret in [*secrets, *filter(None, [password])])


def test_values_in_the_jaas_config_are_escaped(make_settings: MakeSettings) -> None:
    settings = make_settings(
        kafka_bootstrap_servers="127.0.0.1:1",
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_mechanism="SCRAM-SHA-512",
        kafka_sasl_username="u",
        kafka_sasl_password='a"b\\c;',
    )
    assert build_java_properties(settings)["sasl.jaas.config"] == (
        'org.apache.kafka.common.security.scram.ScramLoginModule required username="u" password="a\\"b\\\\c;";'
    )


def test_a_file_without_a_private_key_is_refused(make_settings: MakeSettings, tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    settings = make_settings(
        kafka_bootstrap_servers="127.0.0.1:1",
        kafka_ssl_certificate_location=str(tmp_path / "cert.pem"),
        kafka_ssl_key_location=str(tmp_path / "key.pem"),
    )
    with pytest.raises(SettingError, match="KAFKA_SSL_KEY_LOCATION holds no private key"):
        build_java_properties(settings)
