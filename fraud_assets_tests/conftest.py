"""A lake, settings and a broker per test, all under the test's own folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fraud_assets.kafka.broker import Broker, embedded_broker
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings, load_settings

Send = Callable[..., None]


@pytest.fixture
def make_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Settings of the test's own home, with overrides; nothing of the machine's environment counts."""
    for name in list(os.environ):
        if name.startswith(("FRAUD_", "KAFKA_", "MLFLOW_")) and name != "FRAUD_HANDBOOK_DATA":
            monkeypatch.delenv(name)

    def make(**overrides: Any) -> Settings:
        defaults: dict[str, Any] = {
            "home": tmp_path / "home",
            "lake_uri": "",
            "kafka_bootstrap_servers": "",
            "mlflow_tracking_uri": "",
            "file_quiet_seconds": 0,
        }
        return load_settings(**{**defaults, **overrides})

    return make


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """Settings of the test's own home: embedded broker, dropped files taken at once."""
    return make_settings()


@pytest.fixture
def lake(settings: Settings) -> Lake:
    """The lake of those settings."""
    return Lake.of(settings)


@pytest.fixture
def broker(settings: Settings) -> Iterator[Broker]:
    """An embedded broker in this process, named in the broker.json of that home."""
    with embedded_broker(settings) as running:
        yield running


@pytest.fixture
def send(broker: Broker) -> Send:
    """`send(topic, values, partition=…, key=…, headers=…)`: produces and waits; a dict goes as JSON."""
    return sender(broker)


def sender(broker: Broker) -> Send:
    """What the fixture `send` is, for another broker."""

    def produce(
        topic: str,
        values: list[Any],
        partition: int | None = None,
        key: str | None = None,
        headers: list[tuple[str, bytes]] | None = None,
    ) -> None:
        from confluent_kafka import Producer

        producer = Producer(
            {"bootstrap.servers": broker.bootstrap, "log_level": 0, "queue.buffering.max.messages": 1_000_000}
        )
        place: dict[str, Any] = {} if partition is None else {"partition": partition}
        for value in values:
            body = json.dumps(value).encode() if isinstance(value, dict) else value
            producer.produce(topic, body, key, headers=headers, **place)
        assert producer.flush(20) == 0

    return produce
