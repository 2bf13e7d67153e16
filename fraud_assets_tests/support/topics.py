"""Sends messages to Apache Kafka, and runs landers during a test."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Producer

from fraud_assets.settings import Settings
from fraud_assets_tests.support.logged import logged


def produce(settings: Settings, values: list[Any], partition: int = -1, topic: str = "", **more: Any) -> None:
    """Produces to the transactions topic or to `topic` and waits. A dict is sent as JSON; `more` is per message."""
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap_servers, "log_level": 0})
    for value in values:
        body = json.dumps(value).encode() if isinstance(value, dict) else value
        producer.produce(topic or settings.transactions_topic, body, partition=partition, **more)
    assert producer.flush(20) == 0


def done(futures: dict[Any, Future[Any]]) -> None:
    """Waits for the results of requests to the admin client."""
    for future in futures.values():
        future.result(timeout=30)


def numbers(first: int, last: int) -> list[bytes]:
    """Bodies whose sort order is the order of their numbers."""
    return [b"%06d" % number for number in range(first, last)]


@contextmanager
def always_on(land: Callable[[threading.Event], None]) -> Iterator[list[str]]:
    """Runs a lander, `land(stop)`, in a thread until the block ends; returns the lines that are logged."""
    failed: list[BaseException] = []
    stop = threading.Event()

    def run() -> None:
        try:
            land(stop)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    with logged() as lines:
        thread.start()
        try:
            yield lines
        finally:
            stop.set()
            thread.join(60)
            # The error is raised here, so that pytest shows it if the test waited for the lander in vain.
            if failed:
                raise failed[0]
    assert not thread.is_alive()
