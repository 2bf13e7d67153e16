"""Batches that the client cannot read: only their partition reports an error, and all others land."""

from __future__ import annotations

from functools import partial

import pytest
from confluent_kafka import Producer

from fraud_assets.core.schema import raw_transactions
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.errors import UnreadableError
from fraud_assets.ingest.service.lander import land_forever
from fraud_assets.ingest.service.metrics import LandingMetrics
from fraud_assets.kafka.broker import Broker
from fraud_assets.lake.tables import Lake, read
from fraud_assets.settings import Settings
from fraud_assets.testing.apache_kafka import Cluster
from fraud_assets_tests.support.record_batches import ZSTD, damage, produce_batch, record_batch
from fraud_assets_tests.support.starting import Send
from fraud_assets_tests.support.topics import always_on, numbers, produce
from fraud_assets_tests.support.waiting import until

BLANKS = b" " * 900_000


def read_values(lake: Lake) -> set[bytes]:
    return set(read(lake.open(raw_transactions), ["value"])["value"].to_pylist())


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        pytest.param(record_batch(b"no zstd"), "codec 0x4.*failed.*1,000 MB", id="cannot be unpacked"),
        pytest.param(record_batch(b"?", codec=ZSTD + 2), "codec 0x6.*failed", id="unknown codec"),
        pytest.param(record_batch(b"?", codec=0, crc=1), "CRC32C", id="wrong checksum"),
    ],
)
def test_landing_once_lands_the_other_partitions_and_reports_partition_and_offset(
    settings: Settings, lake: Lake, broker: Broker, send: Send, batch: bytes, words: str
) -> None:
    send("transactions", numbers(0, 5), partition=0)
    produce_batch(broker.bootstrap, "transactions", 0, batch)
    send("transactions", numbers(5, 8), partition=0)
    send("transactions", numbers(8, 20), partition=1)
    with pytest.raises(
        UnreadableError, match=f"Partition 0 of topic 'transactions' cannot be read at offset 5: .*{words}"
    ):
        land_topics(lake, settings)
    assert UnreadableError.exit_code == 1
    # Later messages of the partition do not land, because they would hide the missing batch.
    assert read_values(lake) == {*numbers(0, 5), *numbers(8, 20)}


def test_transactions_do_not_land_while_a_label_is_unreadable(
    settings: Settings, lake: Lake, broker: Broker, send: Send
) -> None:
    send("fraud-labels", [{"transaction_id": 1, "is_fraud": 1, "labelled_at": "2026-01-01T00:00:00Z"}], partition=1)
    produce_batch(broker.bootstrap, "fraud-labels", 0, record_batch(b"no zstd"))
    send("transactions", numbers(0, 5))
    with pytest.raises(UnreadableError, match="Partition 0 of topic 'fraud-labels' cannot be read at offset 0"):
        land_topics(lake, settings)
    assert read_values(lake) == set()


@pytest.mark.xdist_group("apache")
def test_a_damaged_batch_stops_only_its_partition_until_it_is_repaired(
    apache: Cluster, apache_settings: Settings, lake: Lake
) -> None:
    settings = apache_settings.model_copy(update={"land_interval_seconds": 0.05})
    topic = settings.transactions_topic
    for first in (0, 5, 10):
        produce(settings, numbers(first, first + 5), partition=0)
    damage(apache.folder, topic, 0, b"000007")
    metrics = LandingMetrics()
    with always_on(partial(land_forever, lake, settings, metrics=metrics)) as lines:
        # The first member of a group on a new broker waits until the broker has created its topic of offsets.
        sentence = f"Partition 0 of topic {topic!r} cannot be read at offset 5"
        until(lambda: sentence in metrics.health()["reason"], 90)
        produce(settings, numbers(20, 30), partition=1)
        until(lambda: read_values(lake) == {*numbers(0, 5), *numbers(20, 30)})
        assert sentence in metrics.health()["reason"]
        labels = {"topic": topic, "partition": "0"}
        assert metrics.registry.get_sample_value("fraud_landing_partition_unreadable", labels) == 1
        damage(apache.folder, topic, 0, b"00000?", b"7")
        until(lambda: metrics.health()["status"] == "ok")
        until(lambda: read_values(lake) == {*numbers(0, 15), *numbers(20, 30)})
        assert metrics.registry.get_sample_value("fraud_landing_partition_unreadable", labels) is None
    assert len([line for line in lines if "cannot be read at offset 5" in line]) == 1
    assert f"Landing of {topic}/0 works again." in lines


@pytest.mark.xdist_group("apache")
def test_a_valid_batch_that_decompresses_to_more_than_100_mb_lands(apache_settings: Settings, lake: Lake) -> None:
    producer = Producer(
        {
            "bootstrap.servers": apache_settings.kafka_bootstrap_servers,
            "compression.type": "zstd",
            "linger.ms": 60_000,
            "batch.size": 200_000_000,
            "message.max.bytes": 200_000_000,
            "batch.num.messages": 120,
        }
    )
    for _ in range(120):
        producer.produce(apache_settings.transactions_topic, BLANKS, partition=0)
    assert producer.flush(30) == 0
    assert land_topics(lake, apache_settings)["raw_transactions"].rows == 120
