"""Helpers for landing on Spark."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from fraud_assets.core.schema import raw_transactions
from fraud_assets.ingest.service.lander import land_forever
from fraud_assets.ingest.service.metrics import LandingMetrics
from fraud_assets.lake.tables import Lake, read
from fraud_assets.settings import Settings
from fraud_assets_tests.support.topics import always_on

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


MakeSettings = Callable[..., Settings]


def landed(lake: Lake) -> list[bytes]:
    """The bodies in the landing table, sorted."""
    if not lake.exists(raw_transactions):
        return []
    return sorted(read(lake.open(raw_transactions), ["value"])["value"].drop_null().to_pylist())


def following(
    spark: SparkSession, lake: Lake, settings: Settings, metrics: LandingMetrics | None = None
) -> AbstractContextManager[list[str]]:
    """Runs a lander on Spark in a thread; returns the lines that it logs."""
    return always_on(lambda stop: land_forever(lake, settings, stop, spark=spark, metrics=metrics))


def process_environment(settings: Settings, **more: str) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "FRAUD_TRANSACTIONS_TOPIC": settings.transactions_topic,
        "FRAUD_LABELS_TOPIC": settings.labels_topic,
        "FRAUD_SPARK_MASTER": "local[2]",
        **more,
    }
