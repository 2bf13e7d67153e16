"""Traffic of a population at its own rate: what it paid in the past, and what it pays now, stamped by the clock.

Both follow one rate and one rhythm of the day, so that the features of live traffic look like those of the history.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.kafka.producer import Message
from fraud_assets.settings import Settings
from fraud_assets.simulator.event_order import label_messages, transaction_messages
from fraud_assets.simulator.generator import Population, fraud_labels, payments_between, run_name, transactions
from fraud_assets.simulator.rhythm import DAY, share_per_second

CATCH_UP_SECONDS = 5.0
"""A pause longer than this (a slow lander, a sleeping laptop) is not made good by a burst."""


def past_traffic(people: Population, start: datetime, end: datetime, label_delay: timedelta) -> pa.Table:
    """What a population paid in (start, end], with a column `labelled_at` for the frauds."""
    made = payments_between(people, start, end)
    labelled_at = pc.add(made["tx_datetime"], pa.scalar(label_delay, pa.duration("us")))
    return made.append_column("labelled_at", pc.if_else(made["is_fraud"], labelled_at, None))


@dataclass
class LiveTraffic:
    """An endless stream of a population's payments, and counts of what it made.

    Args:
        rate: transactions a second, the same at any time of day; None means what the people pay by themselves.
        label_delay: time from a fraud to its label.
        stopped: asked several times a second; the stream ends when it says so.
    """

    people: Population
    settings: Settings
    rate: float | None
    label_delay: timedelta
    stopped: Callable[[], bool]
    transactions: int = 0
    labels: int = 0
    frauds: int = 0
    _pending: deque[tuple[datetime, Message]] = field(default_factory=deque)

    def rate_at(self, moment: datetime) -> float:
        """Transactions a second at a moment."""
        return self.rate or max(self.people.payments_per_day * share_per_second(moment), 1 / DAY)

    @property
    def labels_not_due(self) -> int:
        """Frauds whose label has not been sent."""
        return len(self._pending)

    def messages(self) -> Iterator[Message]:
        """The messages as they fall due, until stopped."""
        began = last = datetime.now(UTC)
        # Other ids and other payments in each life of the process, of the same population.
        run = run_name(self.people.seed, began)
        rng = np.random.default_rng((self.people.seed, int(began.timestamp() * 1e6)))
        # The first one comes at once: who starts live traffic wants to see some.
        owed = 1.0
        while not self.stopped():
            now = datetime.now(UTC)
            rate = self.rate_at(now)
            most_owed = max(rate * CATCH_UP_SECONDS, 1.0)
            owed = min(owed + rate * max((now - last).total_seconds(), 0.0), most_owed)
            last = now
            while self._pending and self._pending[0][0] <= now:
                self.labels += 1
                yield self._pending.popleft()[1]
            if owed >= 1:
                times = np.full(int(owed), np.datetime64(now.replace(tzinfo=None), "us"))
                made = transactions(self.people, rng, times, run, self.transactions)
                labels = fraud_labels(made, self.label_delay)
                due = labels["labelled_at"].to_pylist()
                self._pending.extend(zip(due, label_messages(labels, self.settings), strict=True))
                self.frauds += labels.num_rows
                for message in transaction_messages(made, self.settings):
                    self.transactions += 1
                    owed -= 1
                    yield message
            else:
                time.sleep(min(0.1, 1 / rate))
