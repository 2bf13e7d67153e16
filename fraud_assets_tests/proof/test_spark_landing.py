"""Landing on Spark survives outages and kills."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fraud_assets.core.schema import raw_transactions
from fraud_assets.ingest.service.metrics import LandingMetrics
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings
from fraud_assets.testing.apache_kafka import apache_kafka
from fraud_assets_tests.support.spark_landing_runs import MakeSettings, following, landed, process_environment
from fraud_assets_tests.support.starting import Start, topic_maker
from fraud_assets_tests.support.topics import numbers, produce
from fraud_assets_tests.support.waiting import until

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


pytestmark = pytest.mark.xdist_group("spark")


@pytest.fixture
def settings(apache_settings: Settings) -> Settings:
    """Settings with the test's own topics on Apache Kafka and a timeout of five seconds."""
    return apache_settings.model_copy(update={"kafka_timeout_seconds": 5.0, "land_interval_seconds": 0.1})


def test_a_killed_process_loses_and_repeats_no_message(settings: Settings, lake: Lake, start: Start) -> None:
    produce(settings, numbers(0, 20_000))
    for commits in (1, 2, 3):
        target = lake.open(raw_transactions).version() + commits
        process = start("land", "--engine", "spark", **process_environment(settings, FRAUD_SPARK_LAND_ROWS="1000"))
        until(lambda target=target: lake.open(raw_transactions).version() >= target, 90)
        process.kill()
        process.wait()
    count = len(landed(lake))
    assert count < 20_000
    last_process = start("land", **process_environment(settings, FRAUD_ENGINE="spark"))
    until(lambda: len(landed(lake)) >= 20_000, 90)
    last_process.send_signal(signal.SIGTERM)
    _, lines = last_process.communicate(timeout=60)
    assert last_process.returncode == 0, lines
    assert "Stopped" in lines.splitlines()[-1]
    assert "Traceback" not in lines
    assert landed(lake) == numbers(0, 20_000)
    assert [path.name for path in (settings.home_path / "spark").iterdir()] == ["driver.log"]


def test_an_outage_is_logged_once_and_the_lander_waits_for_its_end(
    spark: SparkSession, kafka_jars: None, tmp_path: Path, make_settings: MakeSettings
) -> None:
    with apache_kafka(tmp_path / "kafka") as cluster:
        make_topic = topic_maker(cluster.bootstrap)
        settings = make_settings(
            kafka_bootstrap_servers=cluster.bootstrap,
            kafka_timeout_seconds=2,
            land_interval_seconds=0.1,
            transactions_topic=make_topic(),
            labels_topic=make_topic(),
        )
        lake, metrics = Lake.of(settings), LandingMetrics()
        with following(spark, lake, settings, metrics) as lines:
            for turn in range(3):
                produce(settings, numbers(turn * 10, turn * 10 + 10))
                until(lambda turn=turn: landed(lake) == numbers(0, turn * 10 + 10), 60)
                until(lambda: metrics.health()["status"] == "ok")
                if turn < 2:
                    cluster.kill()
                    until(lambda: metrics.health()["status"] == "failing", 60)
                    assert "No answer from the broker" in metrics.health()["reason"]
                    cluster.start()
            # A lander that is stopped during an outage does not wait for the broker.
            cluster.kill()
    assert sum("No answer" in line for line in lines) == 2
    assert lines.count("Landing of topics works again.") == 2
    assert b"".join(landed(lake)) == b"".join(numbers(0, 30))
