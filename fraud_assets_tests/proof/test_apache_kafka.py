"""An Apache Kafka cluster of three nodes loses one node."""

from __future__ import annotations

from pathlib import Path

import pytest

from fraud_assets.core.schema import raw_transactions
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.kafka.broker import find_broker
from fraud_assets.kafka.producer import Message, Producer
from fraud_assets.lake.tables import Lake
from fraud_assets.testing.apache_kafka import apache_kafka
from fraud_assets_tests.support.starting import topic_maker


@pytest.mark.usefixtures("kafka_jars")
def test_the_loss_of_one_of_three_nodes_loses_no_message(tmp_path: Path, make_settings) -> None:
    with apache_kafka(tmp_path, 3) as cluster:
        topic = topic_maker(cluster.bootstrap)("transactions", partitions=3)
        settings = make_settings(
            kafka_bootstrap_servers=cluster.bootstrap,
            transactions_topic=topic,
            labels_topic=topic_maker(cluster.bootstrap)(),
            kafka_timeout_seconds=60,
        )
        bodies = [b"%d" % number for number in range(3_000)]
        with Producer(find_broker(settings), settings) as producer:
            for number, body in enumerate(bodies):
                producer.send(Message(topic, body, body))
                if number == 1_000:
                    producer.flush()
                    cluster.kill(1)
        lake = Lake.of(settings)
        land_topics(lake, settings)
        landed = lake.open(raw_transactions).to_pyarrow_table(columns=["value"])["value"].to_pylist()
        assert sorted(landed) == sorted(bodies)
        cluster.start(1)
        cluster.kill()
