"""Always-on landing in this process: one batch is committed while the next is read."""

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
from fraud_assets.lake.known_topics import LogStarts, find_positions
from fraud_assets.lake.positions import Positions, SourcePartition
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings


@dataclass
class LocalFollower:
    """Lands both topics in this process. Implements `TopicFollower`.

    Attributes:
        has_connected: whether the broker has accepted a connection.
        unreadable: partitions of the transactions topic that cannot be read.
    """

    lake: Lake
    settings: Settings
    stop: threading.Event
    status: StatusReporter
    metrics: LandingMetrics
    retries: RetryPolicy
    group: str
    has_connected: bool = False
    unreadable: set[int] = field(default_factory=set)

    def follow(self) -> bool:
        """Lands new messages until `stop` is set or the embedded broker was restarted. Returns true."""
        with (
            TopicReaders.of(self.settings, self.group) as readers,
            ThreadPoolExecutor(1, "commit") as committer,
            closing(readers.transactions.follow(self._read_positions, self.stop.is_set)) as batches,
        ):
            commit: Future[bool] | None = None
            for batch, reached in batches:
                if commit is not None and not commit.result():
                    return True
                commit = committer.submit(self._land_with_retries, readers, batch, reached)
            if commit is not None:
                commit.result()
        return True

    def _land_with_retries(self, readers: TopicReaders, batch: pa.Table, reached: Positions) -> bool:
        """Returns whether the batch has landed; if not, it must be read again."""
        if batch.num_rows:
            self.metrics.record_waiting(_seconds(batch["timestamp"][0]))
        # The batch stays in memory while the broker or the lake is unavailable.
        if not self.retries.run(
            partial(self._land, readers, batch, reached), final=(MessagesLostError, TopicRecreatedError)
        ):
            return False
        if reached:
            readers.transactions.mark_landed(reached)
        lag = readers.transactions.lag()
        self._report_unreadable(readers.transactions.unreadable)
        last = _seconds(batch["timestamp"][-1]) if batch.num_rows else None
        self.metrics.record_lag(self.settings.transactions_topic, lag, last)
        self.status.report(sum(lag.values()))
        return True

    def _land(self, readers: TopicReaders, batch: pa.Table, reached: Positions) -> bool:
        """Returns whether the batch has landed."""
        if readers.labels.broker.embedded and find_broker(self.settings) != readers.labels.broker:
            return False
        reports = land_batch(self.lake, self.settings, readers, batch, reached, self.stop.is_set)
        self.has_connected = True
        self.metrics.record_poll()
        self.metrics.record_landed(reports.values())
        self.status.landed(reports)
        self.status.recovered("topics")
        return not reached or bool(reports[raw_transactions.name].offsets)

    def _report_unreadable(self, unreadable: Mapping[int, str]) -> None:
        """Shows partitions that cannot be read, and reports each change once."""
        topic = self.settings.transactions_topic
        for partition in self.unreadable - unreadable.keys():
            self.status.recovered(f"{topic}/{partition}")
        for partition in unreadable.keys() - self.unreadable:
            self.status.failed(f"{topic}/{partition}", unreadable[partition])
        self.unreadable = set(unreadable)
        self.metrics.set_unreadable(topic, unreadable)

    def _read_positions(
        self, partitions: Collection[SourcePartition], log_starts: LogStarts
    ) -> dict[SourcePartition, int]:
        return find_positions(self.lake, raw_transactions, partitions, log_starts)


def _seconds(time: pa.Scalar) -> float | None:
    """Returns the time of a message in seconds since 1970, or None if it has none."""
    moment = time.as_py()
    return None if moment is None else moment.timestamp()
