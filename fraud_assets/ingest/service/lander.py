"""Landing of the drop folder and both topics: once, or always on, as one of any number of landers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType

import pyarrow as pa

from fraud_assets.core.schema import raw_transactions
from fraud_assets.errors import MessagesLostError, TopicRecreatedError
from fraud_assets.ingest.files.landing import land_files
from fraud_assets.ingest.landing import (
    LandingReport,
    LandTopics,
    TopicReaders,
    empty_reports,
    land_batch,
    land_topics,
    merged,
    silent,
    with_files,
)
from fraud_assets.ingest.service.metrics import LandingMetrics
from fraud_assets.ingest.service.outages import Outages, run_with_retries
from fraud_assets.ingest.service.status import Say, StatusReporter, Tell
from fraud_assets.kafka.broker import broker_is_configured, broker_of
from fraud_assets.kafka.topics import new_topics
from fraud_assets.lake.known_topics import LogStarts, positions_in
from fraud_assets.lake.positions import Positions, SourcePartition
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, in place of ending the process."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def land_once(
    lake: Lake, settings: Settings, say: Say, stop: threading.Event, by: LandTopics = land_topics
) -> dict[str, LandingReport]:
    """Drains the drop folder and both topics, these `by` an engine, to their present ends; a report by table name.

    Raises:
        BrokerError: the broker or a topic cannot be read, or a topic does not exist. Not raised where files landed and
            no broker is named.
    """
    files = land_files(lake, settings, say, stop.is_set)
    reports = with_files(empty_reports(), files)
    if stop.is_set() or (files and not broker_is_configured(settings)):
        return reports
    for sentence in new_topics(broker_of(settings), settings):
        say(sentence)
    landed = by(lake, settings, silent, stop=stop.is_set)
    return {name: merged(report, landed[name]) for name, report in reports.items()}


def land_forever(
    lake: Lake,
    settings: Settings,
    say: Say,
    stop: threading.Event,
    tell: Tell = lambda reports: None,
    metrics: LandingMetrics | None = None,
) -> None:
    """Lands until `stop` is set; ends after the commit that is under way.

    Any number of landers share the partitions of the transactions topic; each drains the labels before it commits
    transactions, and one at a time takes the drop folder. What keeps landing from going on (the broker, the lake,
    a disk) is said once, shown by `metrics`, and tried again. `tell` gets what landed by table name, added up over
    FRAUD_DAGSTER_EVENT_SECONDS.

    Raises:
        MessagesLostError: messages are gone that had not landed; nothing is skipped.
        RefusedError: the broker does not let us in at the start. Later that may pass, as an outage does.
        LakeError: the lake cannot be used at the start.
    """
    metrics = metrics or LandingMetrics()
    news = StatusReporter(say, tell, settings.dagster_event_seconds)
    outages = Outages(stop, news, metrics)
    lander = _Lander(lake, settings, stop, news, metrics, outages, consumer_group(lake, settings))
    run_with_retries(outages, lander, lake, settings, say)


def consumer_group(lake: Lake, settings: Settings) -> str:
    """FRAUD_CONSUMER_GROUP, else a name of the lake: landers into two lakes must not share out the partitions.

    Raises:
        LakeError: the lake cannot be used.
    """
    return settings.consumer_group or f"fraud-assets-{lake.open(raw_transactions).metadata().id}"


@dataclass
class _Lander:
    lake: Lake
    settings: Settings
    stop: threading.Event
    news: StatusReporter
    metrics: LandingMetrics
    outages: Outages
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
        if not self.outages.tried(
            partial(self._land, readers, batch, reached), final=(MessagesLostError, TopicRecreatedError)
        ):
            return False
        if reached:
            readers.transactions.landed(reached)
        lag = readers.transactions.lag()
        self._note_unreadable(readers.transactions.unreadable)
        last = _seconds(batch["timestamp"][-1]) if batch.num_rows else None
        self.metrics.lags(self.settings.transactions_topic, lag, last)
        self.news.tick(sum(lag.values()))
        return True

    def _land(self, readers: TopicReaders, batch: pa.Table, reached: Positions) -> bool:
        """Whether the batch is in the lake."""
        if readers.labels.broker.embedded and broker_of(self.settings) != readers.labels.broker:
            return False
        reports = land_batch(self.lake, self.settings, readers, batch, reached, self.stop.is_set)
        self.was_let_in = True
        self.metrics.looked()
        self.metrics.landed(reports.values())
        self.news.landed(reports)
        self.news.recovered("topics")
        return not reached or bool(reports[raw_transactions.name].offsets)

    def _note_unreadable(self, unreadable: Mapping[int, str]) -> None:
        """Shows partitions that cannot be read, and says each change once."""
        topic = self.settings.transactions_topic
        for partition in self.unreadable - unreadable.keys():
            self.news.recovered(f"{topic}/{partition}")
        for partition in unreadable.keys() - self.unreadable:
            self.news.fails(f"{topic}/{partition}", unreadable[partition])
        self.unreadable = set(unreadable)
        self.metrics.cannot_read(topic, unreadable)

    def _stored(self, streams: Collection[SourcePartition], log_starts: LogStarts) -> dict[SourcePartition, int]:
        return positions_in(self.lake, raw_transactions, streams, log_starts)


def _seconds(time: pa.Scalar) -> float | None:
    """A message's time in seconds since 1970; None where it carries none."""
    moment = time.as_py()
    return None if moment is None else moment.timestamp()
