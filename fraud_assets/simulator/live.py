"""Simulates the past payments of a population, and its live payments, which have the current time.

Both have the same rate and the same distribution over the day, so that the features of live traffic resemble those of
the history.
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
from fraud_assets.simulator.event_order import make_label_messages, make_transaction_messages
from fraud_assets.simulator.generator import (
    Population,
    name_run,
    select_fraud_labels,
    simulate_payments,
    simulate_transactions,
)
from fraud_assets.simulator.payment_times import DAY, compute_share_per_second

CATCH_UP_SECONDS = 5.0
"""Maximum number of seconds whose payments are sent at once after a pause.

A long pause, for example of a slow lander or a sleeping laptop, therefore causes no burst.
"""


def simulate_past_traffic(people: Population, start: datetime, end: datetime, label_delay: timedelta) -> pa.Table:
    """Simulates the payments of a population in (start, end].

    Returns:
        A table of the schema SIMULATED with an additional column `labelled_at`, null for genuine payments.
    """
    made = simulate_payments(people, start, end)
    labelled_at = pc.add(made["tx_datetime"], pa.scalar(label_delay, pa.duration("us")))
    return made.append_column("labelled_at", pc.if_else(made["is_fraud"], labelled_at, None))


@dataclass
class LiveTraffic:
    """Makes a population's live payments without end, and counts them.

    Attributes:
        people: the population that pays.
        settings: define the contract and the topics.
        rate: transactions per second at any time of day; None means the population's own rate.
        label_delay: time from a fraud to its label.
        stopped: called several times per second; the messages end when it returns True.
        transactions: number of transactions that were yielded.
        labels: number of labels that were yielded.
        frauds: number of frauds among the transactions.
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
        """Returns the number of transactions per second at a time of day."""
        return self.rate or max(self.people.payments_per_day * compute_share_per_second(moment), 1 / DAY)

    @property
    def labels_not_due(self) -> int:
        """Number of frauds whose label has not been sent."""
        return len(self._pending)

    def messages(self) -> Iterator[Message]:
        """Yields each message when it is due, until `stopped`."""
        began = last = datetime.now(UTC)
        # Each process makes different payments with different ids, of the same population.
        run = name_run(self.people.seed, began)
        rng = np.random.default_rng((self.people.seed, int(began.timestamp() * 1e6)))
        # The first payment is due at once, so that the user sees traffic soon after the start.
        due_count = 1.0
        while not self.stopped():
            now = datetime.now(UTC)
            rate = self.rate_at(now)
            max_due_count = max(rate * CATCH_UP_SECONDS, 1.0)
            due_count = min(due_count + rate * max((now - last).total_seconds(), 0.0), max_due_count)
            last = now
            while self._pending and self._pending[0][0] <= now:
                self.labels += 1
                yield self._pending.popleft()[1]
            if due_count >= 1:
                times = np.full(int(due_count), np.datetime64(now.replace(tzinfo=None), "us"))
                made = simulate_transactions(self.people, rng, times, run, self.transactions)
                labels = select_fraud_labels(made, self.label_delay)
                labelled_at = labels["labelled_at"].to_pylist()
                self._pending.extend(zip(labelled_at, make_label_messages(labels, self.settings), strict=True))
                self.frauds += labels.num_rows
                for message in make_transaction_messages(made, self.settings):
                    self.transactions += 1
                    due_count -= 1
                    yield message
            else:
                time.sleep(min(0.1, 1 / rate))
