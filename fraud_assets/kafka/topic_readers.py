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
    """A reader of each topic, for one landing or for many. A context manager.

    Attributes:
        drained: End offsets of the labels topic up to which the lake is known to hold it.
    """

    labels: TopicReader
    transactions: TopicReader
    drained: Positions = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, group: str = "") -> Self:
        """Opens the readers of both topics.

        Args:
            settings: The broker and the names of the topics.
            group: Consumer group in which the reader of the transactions can `follow`.

        Raises:
            BrokerError: No broker is configured, or the embedded broker no longer runs.
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
        """Closes both connections. A broker that is unavailable to one of them is unavailable to both."""
        wait = self.labels.is_answering and self.transactions.is_answering
        self.labels.close(wait=wait)
        self.transactions.close(wait=wait)
