"""Definitions that tests share: the root folder, types of fixtures, producers and topic makers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from fraud_assets.kafka.broker import Broker

Send = Callable[..., None]


MakeTopic = Callable[..., str]


Start = Callable[..., "subprocess.Popen[str]"]


ROOT = Path(__file__).parents[2]


QUICK_JAVA = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"


def topic_maker(bootstrap: str) -> MakeTopic:
    """The function that the fixture `make_topic` gives, for another cluster."""

    def make(name: str = "t", partitions: int = 1, **config: Any) -> str:
        from confluent_kafka.admin import AdminClient, NewTopic

        topic = f"{name}-{uuid4().hex[:8]}"
        admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
        settings = {key.replace("_", "."): str(value) for key, value in config.items()}
        admin.create_topics([NewTopic(topic, partitions, config=settings)])[topic].result(timeout=30)
        return topic

    return make


def sender(broker: Broker) -> Send:
    """The function that the fixture `send` gives, for another broker."""

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
        target: dict[str, Any] = {} if partition is None else {"partition": partition}
        for value in values:
            body = json.dumps(value).encode() if isinstance(value, dict) else value
            producer.produce(topic, body, key, headers=headers, **target)
        assert producer.flush(20) == 0

    return produce


def end_processes(processes: Iterable[subprocess.Popen[Any]]) -> None:
    """Ends the processes that still run, and reads the rest of their output.

    A process gets the time to end its own processes: if these lived on, they would keep its output open.
    """
    for process in processes:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=10)
        if process.poll() is None:
            process.kill()
        with suppress(subprocess.TimeoutExpired, ValueError):
            process.communicate(timeout=10)
