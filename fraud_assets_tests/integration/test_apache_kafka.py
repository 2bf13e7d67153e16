"""The launcher of Apache Kafka: a restarted node keeps its data, and missing parts are reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from fraud_assets.engines.local.landing import land_topics
from fraud_assets.errors import BrokerError
from fraud_assets.kafka.broker import find_broker
from fraud_assets.kafka.client import find_topic_id
from fraud_assets.kafka.consumer import TopicReader
from fraud_assets.kafka.producer import Message
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings
from fraud_assets.testing.apache_kafka import Cluster, apache_kafka, describe_obstacle
from fraud_assets_tests.support.producing import produce
from fraud_assets_tests.support.starting import MakeTopic, topic_maker


@pytest.mark.xdist_group("apache")
def test_each_produced_message_lands_once(apache_settings: Settings) -> None:
    broker = find_broker(apache_settings)
    topic = apache_settings.transactions_topic
    sent = {b"%d" % number for number in range(500)}
    assert produce((Message(topic, body, body) for body in sorted(sent)), broker, apache_settings) == 500
    lake = Lake.of(apache_settings)
    for expected in (500, 0):
        reports = land_topics(lake, apache_settings)
        assert reports["raw_transactions"].rows == expected


@pytest.mark.xdist_group("apache")
def test_two_topics_have_different_topic_ids(apache: Cluster, apache_settings: Settings, make_topic: MakeTopic) -> None:
    broker = find_broker(apache_settings)
    topic_ids = {find_topic_id(broker, make_topic(), apache_settings) for _ in range(2)}
    assert len(topic_ids) == 2


@pytest.mark.usefixtures("kafka_jars")
def test_a_restarted_node_keeps_its_data_after_a_kill(tmp_path: Path, make_settings) -> None:
    with apache_kafka(tmp_path) as cluster:
        settings = make_settings(kafka_bootstrap_servers=cluster.bootstrap)
        topic = topic_maker(cluster.bootstrap)()
        produce([Message(topic, None, b"1")], find_broker(settings), settings)
        cluster.kill(1)
        assert cluster.pid(1) is None
        cluster.start()
        with TopicReader(topic, settings) as reader:
            assert list(reader.end_offsets().values()) == [0]


@pytest.mark.usefixtures("kafka_jars")
def test_an_error_in_the_block_stops_the_nodes(tmp_path: Path) -> None:
    pid: int | None = None

    def interrupt_the_block() -> None:
        nonlocal pid
        with apache_kafka(tmp_path) as cluster:
            pid = cluster.pid(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt_the_block()
    assert pid is not None
    assert not Path(f"/proc/{pid}/cmdline").exists()


@pytest.mark.usefixtures("kafka_jars")
def test_a_node_that_fails_to_start_reports_the_reason(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"min\.insync\.replicas"):
        with apache_kafka(tmp_path, config={"min.insync.replicas": "many"}):
            pass


def test_missing_java_or_maven_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert "JAVA_HOME" in (describe_obstacle() or "")
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Install Java" in (describe_obstacle() or "")
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    java.chmod(0o755)
    assert "11" in (describe_obstacle() or "")
    java.write_text("#!/bin/sh\necho 'openjdk version \"17.0.2\"' >&2\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "Install Maven" in (describe_obstacle() or "")
    maven = tmp_path / "mvn"
    maven.write_text("#!/bin/sh\necho '[ERROR] no repository'\nexit 1\n")
    maven.chmod(0o755)
    assert "no repository" in (describe_obstacle() or "")
    assert "\n" not in (describe_obstacle() or "")
