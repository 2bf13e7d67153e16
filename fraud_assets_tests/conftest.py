"""Fixtures: a lake, settings and a broker for each test, all under the test's own folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import hypothesis
import pytest

from fraud_assets.engines.spark.session import spark_session
from fraud_assets.errors import JarsError
from fraud_assets.kafka.broker import Broker, embedded_broker
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings, load_settings
from fraud_assets.testing.apache_kafka import Cluster, apache_kafka, describe_obstacle
from fraud_assets.testing.object_store import ObjectStore, object_store
from fraud_assets.testing.spark_cluster import StandaloneCluster, standalone

# Fixtures that several folders use.
from fraud_assets_tests.support.handbook import book, handbook  # noqa: F401
from fraud_assets_tests.support.spark_cluster_runs import copied, drive, materialize  # noqa: F401
from fraud_assets_tests.support.starting import (
    QUICK_JAVA,
    ROOT,
    MakeTopic,
    Send,
    Start,
    end_processes,
    sender,
    topic_maker,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from fraud_assets_tests.support.secure_kafka import SecureKafka


# The duration of an example depends on the load of the machine.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture
def make_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Settings with the test's own home and with overrides; environment variables of the machine have no effect."""
    for name in list(os.environ):
        ours = name.startswith(("FRAUD_", "AWS_", "KAFKA_", "MLFLOW_", "CONFLUENT_", "SCHEMA_REGISTRY_"))
        if ours and name != "FRAUD_HANDBOOK_DATA":
            monkeypatch.delenv(name)

    def make(**overrides: Any) -> Settings:
        defaults: dict[str, Any] = {
            "_env_file": None,
            "home": tmp_path / "home",
            "lake_uri": "",
            "kafka_bootstrap_servers": "",
            "mlflow_tracking_uri": "",
            "file_quiet_seconds": 0,
            "run_interval_seconds": 0,
        }
        return load_settings(**{**defaults, **overrides})

    return make


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """Settings with the test's own home and an embedded broker; dropped files land at once."""
    return make_settings()


@pytest.fixture
def lake(settings: Settings) -> Lake:
    """The lake of these settings."""
    return Lake.of(settings)


@pytest.fixture
def broker(settings: Settings) -> Iterator[Broker]:
    """An embedded broker in this process; the broker.json of the test's home names it."""
    with embedded_broker(settings) as running:
        yield running


@cache
def _why_no_apache_kafka() -> str | None:
    return describe_obstacle()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips the tests that need Apache Kafka if it cannot start. pytest then reports all of them in one line."""
    if "kafka_jars" in getattr(item, "fixturenames", ()) and (reason := _why_no_apache_kafka()):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def kafka_jars() -> None:
    """Marks a test that needs Apache Kafka: the test is skipped if Apache Kafka cannot start."""


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """An S3 server for all tests of this worker. Mark its users `pytest.mark.xdist_group("s3")`."""
    with object_store(tmp_path_factory.mktemp("s3")) as store:
        yield store


@pytest.fixture
def s3_settings(make_settings: Callable[..., Settings], s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with the test's own home and prefix on the S3 server; processes that the test starts have them too."""
    prefix = uuid4().hex[:8]
    settings = make_settings(**s3.settings(prefix))
    for name, value in s3.environment(prefix).items():
        monkeypatch.setenv(name, value)
    return settings


@pytest.fixture(scope="session")
def apache(kafka_jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node of Apache Kafka for all tests of this worker. Mark its users `pytest.mark.xdist_group("apache")`."""
    with apache_kafka(tmp_path_factory.mktemp("apache")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka(kafka_jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    """One node of Apache Kafka with login and encryption. Mark its users `pytest.mark.xdist_group("secure")`."""
    from fraud_assets_tests.support.secure_kafka import secure_kafka

    with secure_kafka(tmp_path_factory.mktemp("secure")) as running:
        yield running


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """A session on two cores of this machine, which tests share; they are skipped if there is no Java."""
    settings = load_settings(
        _env_file=None,
        home=tmp_path_factory.mktemp("spark"),
        spark_master="local[2]",
        # The tests have few rows: the start and the compiler of the Java VM take most of the time.
        spark_conf={"spark.sql.shuffle.partitions": "2", "spark.driver.defaultJavaOptions": QUICK_JAVA},
    )
    try:
        with spark_session(settings) as session:
            yield session
    except JarsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def spark_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandaloneCluster]:
    """A standalone cluster of two workers. Drivers run in separate processes: this one has the session `spark`."""
    try:
        with standalone(tmp_path_factory.mktemp("cluster")) as cluster:
            yield cluster
    except JarsError as error:
        pytest.skip(str(error))


@pytest.fixture
def make_topic(apache: Cluster) -> MakeTopic:
    """`make_topic(name="t", partitions=1, **config)`: creates a topic on Apache Kafka and returns its unique name."""
    return topic_maker(apache.bootstrap)


@pytest.fixture
def apache_settings(make_settings: Callable[..., Settings], apache: Cluster, make_topic: MakeTopic) -> Settings:
    """Settings with the test's own home and two own topics on Apache Kafka, of two partitions each."""
    return make_settings(
        kafka_bootstrap_servers=apache.bootstrap,
        transactions_topic=make_topic("transactions", partitions=2),
        labels_topic=make_topic("fraud-labels", partitions=2),
    )


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Start]:
    """`start("land", FRAUD_…=…)`: runs a command in a process with the test's home; the process ends with the test."""
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "fraud_assets.cli", *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "FRAUD_HOME": str(settings.home_path),
                "DAGSTER_HOME": "",
                "FRAUD_FILE_QUIET_SECONDS": "0",
                "FRAUD_LAND_INTERVAL_SECONDS": "0.05",
                "FRAUD_LAND_HTTP": "127.0.0.1:19108",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield begin
    end_processes(running)


@pytest.fixture
def send(broker: Broker) -> Send:
    """`send(topic, values, partition=…, key=…, headers=…)`: produces and waits; a dict is sent as JSON."""
    return sender(broker)
