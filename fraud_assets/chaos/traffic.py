"""A known stream: every message carries a number, and by its number it is good, broken or a repetition."""

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
"""Header that carries the number of a message."""

_HISTORY = timedelta(days=10)


@dataclass
class Sent:
    """What the broker has taken, by the numbers of the messages."""

    transactions: set[int] = field(default_factory=set)
    labels: set[int] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    @property
    def broken(self) -> int:
        """Transactions that belong into quarantine."""
        return sum(is_broken(number) for number in self.transactions)

    @property
    def repeated(self) -> int:
        """Transactions that are `duplicate`: their id was sent before."""
        return sum(is_repeated(number) for number in self.transactions)

    @property
    def broken_labels(self) -> int:
        """Labels that belong into quarantine."""
        return sum(number % BROKEN_LABEL_EVERY == 0 for number in self.labels)


def is_broken(number: int) -> bool:
    """Whether the transaction of this number cannot be parsed."""
    return number % BROKEN_EVERY == 5


def is_repeated(number: int) -> bool:
    """Whether it is the message before it once more."""
    return number % REPEATED_EVERY == 7 and not is_broken(number) and not is_broken(number - 1)


class Traffic:
    """Sends transactions and labels from a thread of its own, until it is stopped."""

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
                # Longer than any fault lasts: what the harness sends must be known to have arrived.
                "message.timeout.ms": 300_000,
                "reconnect.backoff.max.ms": 500,
            }
        )

    def burst(self, count: int) -> None:
        """Sends so many transactions at once, spread over ten days before now, and waits until all have arrived."""
        begin = datetime.now(UTC) - _HISTORY
        for number in range(count):
            self._send(begin + _HISTORY * number / count)
        self._producer.flush(60)

    def start(self) -> None:
        """Goes on at the rate."""
        self._thread.start()

    def stop(self) -> None:
        """Ends, and waits until all that was sent has arrived."""
        self._stop.set()
        self._thread.join()
        left = self._producer.flush(300)
        if left:
            self.sent.failures.append(f"{left} messages did not arrive")

    def abandon(self) -> None:
        """Ends without waiting for anything to arrive. Safe to repeat."""
        self._stop.set()

    def _run(self) -> None:
        begun, sent = monotonic(), 0
        while not self._stop.is_set():
            due = int((monotonic() - begun) * self._rate) - sent
            for _ in range(min(due, 1000)):
                self._send(datetime.now(UTC))
            sent += max(0, min(due, 1000))
            self._producer.poll(0)
            self._stop.wait(0.02)

    def _send(self, moment: datetime) -> None:
        number = self._next
        self._next += 1
        of = number - 1 if is_repeated(number) else number
        body = json.dumps(
            {
                "transaction_id": of,
                "tx_datetime": moment.isoformat(),
                "customer_id": of % CUSTOMERS,
                "terminal_id": of * 7 % TERMINALS,
                "tx_amount": round(self._random.lognormvariate(3, 1), 2),
            }
        ).encode()
        if is_broken(number):
            body = body[:-1]
        self._produce(self._settings.transactions_topic, number, str(of % CUSTOMERS), body, self.sent.transactions)
        if number % LABEL_EVERY == 0:
            label: dict[str, Any] = {"transaction_id": number, "is_fraud": number % 40 == 0}
            if number % BROKEN_LABEL_EVERY:
                label["labelled_at"] = datetime.now(UTC).isoformat()
            self._produce(self._settings.labels_topic, number, None, json.dumps(label).encode(), self.sent.labels)

    def _produce(self, topic: str, number: int, key: str | None, body: bytes, arrived: set[int]) -> None:
        def taken(error: Any, message: Any) -> None:
            if error is None:
                arrived.add(number)
            else:
                self.sent.failures.append(f"message {number} did not arrive: {error}")

        while True:
            try:
                self._producer.produce(
                    topic,
                    body,
                    key,
                    headers=[(NUMBER, b"%d" % number)],
                    on_delivery=taken,
                    timestamp=time_ns() // 1_000_000,
                )
                return
            except BufferError:
                self._producer.poll(0.1)
