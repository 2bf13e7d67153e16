"""Follows both topics in this process: one batch is committed while the next is read."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa

from fraud_assets.core.schema import raw_transactions
from fraud_assets.engines.local.landing import land_batch
from fraud_assets.errors import MessagesLostError, TopicRecreatedError
from fraud_assets.ingest.service.metrics import LandingMetrics
from fraud_assets.ingest.service.outages import RetryPolicy
from fraud_assets.ingest.service.status import StatusReporter
from fraud_assets.kafka.broker import find_broker
from fraud_assets.kafka.topic_readers import TopicReaders
from fraud_assets.lake.known_topics import LogStarts, positions_in
from fraud_assets.lake.positions import Positions, SourcePartition
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings


@dataclass
class LocalFollower:
    """Follows both topics in this process. Implements `TopicFollower`."""

    lake: Lake
    settings: Settings
    stop: threading.Event
    status: StatusReporter
    metrics: LandingMetrics
    retries: RetryPolicy
    group: str
    was_let_in: bool = False
    unreadable: set[int] = field(default_factory=set)
    """Partitions of the transactions topic that cannot be read."""

    def follow(self) -> bool:
        """Lands what comes to the topics until told to stop, or until an embedded broker was restarted."""
        # One batch is committed while the next is read.
        with (
            TopicReaders.of(self.settings, self.group) as readers,
            ThreadPoolExecutor(1, "commit") as committer,
            closing(readers.transactions.follow(self._stored, self.stop.is_set)) as batches,
        ):
            under_way: Future[bool] | None = None
            for batch, reached in batches:
                if under_way is not None and not under_way.result():
                    return True
                under_way = committer.submit(self._landed, readers, batch, reached)
            if under_way is not None:
                under_way.result()
        return True

    def _landed(self, readers: TopicReaders, batch: pa.Table, reached: Positions) -> bool:
        """Whether the batch is in the lake; False where it has to be read again."""
        if batch.num_rows:
            self.metrics.waits(_seconds(batch["timestamp"][0]))
        # What is in hand stays in hand while the broker or the lake is away.
        if not self.retries.run(
            partial(self._land, readers, batch, reached), final=(MessagesLostError, TopicRecreatedError)
        ):
            return False
        if reached:
            readers.transactions.mark_landed(reached)
        lag = readers.transactions.lag()
        self._note_unreadable(readers.transactions.unreadable)
        last = _seconds(batch["timestamp"][-1]) if batch.num_rows else None
        self.metrics.lags(self.settings.transactions_topic, lag, last)
        self.status.tick(sum(lag.values()))
        return True

    def _land(self, readers: TopicReaders, batch: pa.Table, reached: Positions) -> bool:
        """Whether the batch is in the lake."""
        if readers.labels.broker.embedded and find_broker(self.settings) != readers.labels.broker:
            return False
        reports = land_batch(self.lake, self.settings, readers, batch, reached, self.stop.is_set)
        self.was_let_in = True
        self.metrics.looked()
        self.metrics.landed(reports.values())
        self.status.landed(reports)
        self.status.recovered("topics")
        return not reached or bool(reports[raw_transactions.name].offsets)

    def _note_unreadable(self, unreadable: Mapping[int, str]) -> None:
        """Shows partitions that cannot be read, and says each change once."""
        topic = self.settings.transactions_topic
        for partition in self.unreadable - unreadable.keys():
            self.status.recovered(f"{topic}/{partition}")
        for partition in unreadable.keys() - self.unreadable:
            self.status.failed(f"{topic}/{partition}", unreadable[partition])
        self.unreadable = set(unreadable)
        self.metrics.cannot_read(topic, unreadable)

    def _stored(self, streams: Collection[SourcePartition], log_starts: LogStarts) -> dict[SourcePartition, int]:
        return positions_in(self.lake, raw_transactions, streams, log_starts)


def _seconds(time: pa.Scalar) -> float | None:
    """A message's time in seconds since 1970; None where it carries none."""
    moment = time.as_py()
    return None if moment is None else moment.timestamp()
