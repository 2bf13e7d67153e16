"""Readers of both topics, opened and closed together."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from fraud_assets.kafka.broker import find_broker
from fraud_assets.kafka.consumer import TopicReader
from fraud_assets.lake.positions import Positions
from fraud_assets.settings import Settings


@dataclass
class TopicReaders:
    """One reader a topic, for one landing or for many. A context manager.

    Attributes:
        drained: ends of the labels topic up to which the lake is known to hold it.
    """

    labels: TopicReader
    transactions: TopicReader
    drained: Positions = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, group: str = "") -> Self:
        """Readers of both topics; with a `group` the transactions' may follow as a member of it.

        Raises:
            BrokerError: no broker is named, or the embedded one is gone.
        """
        broker = find_broker(settings)
        with ExitStack() as opened:
            labels = opened.enter_context(TopicReader(settings.labels_topic, settings, broker))
            transactions = opened.enter_context(TopicReader(settings.transactions_topic, settings, broker, group))
            opened.pop_all()
        return cls(labels, transactions)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends both connections; where the broker is away for one of them it is for both."""
        wait = self.labels.answers and self.transactions.answers
        self.labels.close(wait=wait)
        self.transactions.close(wait=wait)
