"""Sends known traffic: each message has a number, which determines whether it is valid, broken or repeated."""

from __future__ import annotations

import json
import random
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic, time_ns
from typing import Any

from fraud_assets.settings import Settings

BROKEN_EVERY = 17
REPEATED_EVERY = 23
LABEL_EVERY = 10
BROKEN_LABEL_EVERY = 7
CUSTOMERS = 200
TERMINALS = 100
NUMBER = "number"
"""Header with the number of a message."""

_HISTORY = timedelta(days=10)


@dataclass
class Sent:
    """The numbers of the messages that the broker acknowledged, and the failures of the others."""

    transactions: set[int] = field(default_factory=set)
    labels: set[int] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    @property
    def broken(self) -> int:
        """Number of transactions that are expected in quarantine because they cannot be parsed."""
        return sum(is_broken(number) for number in self.transactions)

    @property
    def repeated(self) -> int:
        """Number of transactions that are expected in quarantine as `duplicate`, because their id was sent before."""
        return sum(is_repeated(number) for number in self.transactions)

    @property
    def broken_labels(self) -> int:
        """Number of labels that are expected in quarantine."""
        return sum(number % BROKEN_LABEL_EVERY == 0 for number in self.labels)


def is_broken(number: int) -> bool:
    """Whether the transaction with this number cannot be parsed."""
    return number % BROKEN_EVERY == 5


def is_repeated(number: int) -> bool:
    """Whether the transaction with this number repeats the one before it."""
    return number % REPEATED_EVERY == 7 and not is_broken(number) and not is_broken(number - 1)


class Traffic:
    """Sends transactions and labels from a thread of its own until it is stopped.

    Args:
        settings: define the broker and the topics.
        rate: transactions per second.
        seed: random seed of the amounts.
    """

    def __init__(self, settings: Settings, rate: float, seed: int) -> None:
        from confluent_kafka import Producer

        self.sent = Sent()
        self._settings = settings
        self._rate = rate
        self._random = random.Random(seed)
        self._next = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")
        self._producer = Producer(
            {
                "bootstrap.servers": settings.kafka_bootstrap_servers,
                "log_level": 0,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 20,
                # Longer than any fault, so that each message is either acknowledged or a failure of the run.
                "message.timeout.ms": 300_000,
                "reconnect.backoff.max.ms": 500,
            }
        )

    def burst(self, count: int) -> None:
        """Sends `count` transactions at once, with times in the last ten days, and waits until all are acknowledged."""
        begin = datetime.now(UTC) - _HISTORY
        for number in range(count):
            self._send(begin + _HISTORY * number / count)
        self._producer.flush(60)

    def start(self) -> None:
        """Starts sending transactions at the given rate."""
        self._thread.start()

    def stop(self) -> None:
        """Stops sending and waits until all messages are acknowledged."""
        self._stop.set()
        self._thread.join()
        left = self._producer.flush(300)
        if left:
            self.sent.failures.append(f"{left} messages were not acknowledged")

    def abandon(self) -> None:
        """Stops sending without waiting for acknowledgments. The call can be repeated safely."""
        self._stop.set()

    def _run(self) -> None:
        began, sent = monotonic(), 0
        while not self._stop.is_set():
            due = int((monotonic() - began) * self._rate) - sent
            for _ in range(min(due, 1000)):
                self._send(datetime.now(UTC))
            sent += max(0, min(due, 1000))
            self._producer.poll(0)
            self._stop.wait(0.02)

    def _send(self, moment: datetime) -> None:
        number = self._next
        self._next += 1
        content = number - 1 if is_repeated(number) else number
        body = json.dumps(
            {
                "transaction_id": content,
                "tx_datetime": moment.isoformat(),
                "customer_id": content % CUSTOMERS,
                "terminal_id": content * 7 % TERMINALS,
                "tx_amount": round(self._random.lognormvariate(3, 1), 2),
            }
        ).encode()
        if is_broken(number):
            body = body[:-1]
        self._produce(self._settings.transactions_topic, number, str(content % CUSTOMERS), body, self.sent.transactions)
        if number % LABEL_EVERY == 0:
            label: dict[str, Any] = {"transaction_id": number, "is_fraud": number % 40 == 0}
            if number % BROKEN_LABEL_EVERY:
                label["labelled_at"] = datetime.now(UTC).isoformat()
            self._produce(self._settings.labels_topic, number, None, json.dumps(label).encode(), self.sent.labels)

    def _produce(self, topic: str, number: int, key: str | None, body: bytes, acknowledged: set[int]) -> None:
        def on_delivery(error: Any, message: Any) -> None:
            if error is None:
                acknowledged.add(number)
            else:
                self.sent.failures.append(f"message {number} was not acknowledged: {error}")

        while True:
            try:
                self._producer.produce(
                    topic,
                    body,
                    key,
                    headers=[(NUMBER, b"%d" % number)],
                    on_delivery=on_delivery,
                    timestamp=time_ns() // 1_000_000,
                )
                return
            except BufferError:
                self._producer.poll(0.1)
