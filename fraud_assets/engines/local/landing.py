"""Lands topics in this process: reads from the committed offsets and appends batch by batch, labels first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import closing
from time import monotonic

import pyarrow as pa

from fraud_assets.core.pseudonyms import pseudonymise
from fraud_assets.core.schema import Table, fraud_labels, raw_transactions
from fraud_assets.engines.landing_report import LandingReport, by_partition, empty_reports
from fraud_assets.engines.landing_tables import append_labels, append_transactions, loss_note, payload_bytes
from fraud_assets.kafka.consumer import TopicReader
from fraud_assets.kafka.schemas import label_decoder
from fraud_assets.kafka.topic_readers import TopicReaders
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.known_topics import positions_in
from fraud_assets.lake.positions import Positions, SourcePartition, committed_offset, positions_of
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

logger = logging.getLogger(__name__)


def never() -> bool:
    """Nobody asks to stop."""
    return False


def land_topics(
    lake: Lake,
    settings: Settings,
    *,
    transactions: bool = True,
    readers: TopicReaders | None = None,
    stop: Callable[[], bool] = never,
) -> dict[str, LandingReport]:
    """Drains both topics to the ends seen at the start, labels first; gives a report by table name.

    Args:
        transactions: without, only labels.
        readers: open readers to use; without, they are opened and closed here.
        stop: asked between commits; when it says so, what is committed stays and the rest waits.

    Raises:
        BrokerError, MessagesLostError, LakeError: nothing is skipped; what was committed stays.
    """
    if readers is None:
        with TopicReaders.of(settings) as opened:
            return land_topics(lake, settings, transactions=transactions, readers=opened, stop=stop)
    # Both ends before the first read: a label is never older news than the transactions drained after it.
    label_ends = readers.labels.end_offsets(stop)
    transaction_ends = readers.transactions.end_offsets(stop) if transactions else {}
    reports = {fraud_labels.name: land_labels(lake, settings, readers.labels, label_ends, stop)}
    if transactions:
        reports[raw_transactions.name] = land_transactions(lake, settings, readers.transactions, transaction_ends, stop)
    return reports


def land_labels(
    lake: Lake,
    settings: Settings,
    reader: TopicReader,
    ends: Positions,
    stop: Callable[[], bool] = never,
) -> LandingReport:
    """Drains the labels topic up to `ends`; bad labels go to quarantine."""
    decoder = label_decoder(settings)

    def append(batch: pa.Table) -> tuple[int, int]:
        return append_labels(lake, settings, pseudonymise(batch, settings.pseudonym_policy, decoder))

    return _drain(lake, fraud_labels, reader, ends, append, stop)


def land_transactions(
    lake: Lake,
    settings: Settings,
    reader: TopicReader,
    ends: Positions,
    stop: Callable[[], bool] = never,
) -> LandingReport:
    """Drains the transactions topic up to `ends`, every body byte for byte but for what FRAUD_PSEUDONYMISE names."""

    def append(batch: pa.Table) -> tuple[int, int]:
        return append_transactions(lake, settings, batch, reader.accepted), 0

    return _drain(lake, raw_transactions, reader, ends, append, stop)


def land_batch(
    lake: Lake,
    settings: Settings,
    readers: TopicReaders,
    batch: pa.Table,
    reached: Positions,
    stop: Callable[[], bool] = never,
) -> dict[str, LandingReport]:
    """Drains the labels topic to its end of this moment, then appends a batch of transactions; a report by table.

    `reached` are the positions that go with the batch, which may have no rows; see `GroupReader.follow`.
    When `stop` says so before the labels are drained, the transactions are left for the next time.

    Raises:
        TopicRecreatedError: the batch is of a topic that is no more.
        BrokerError, MessagesLostError, LakeError: nothing is skipped, what was committed stays, and the same batch
            may be tried again.
    """
    reports = empty_reports()
    reports[fraud_labels.name], is_drained = land_new_labels(lake, settings, readers, stop)
    if reached and is_drained:
        readers.transactions.check_topic_id(next(iter(reached)).topic_id)
        begun = monotonic()
        rows = append_transactions(lake, settings, batch, readers.transactions.accepted, reached)
        reports[raw_transactions.name] = LandingReport(
            raw_transactions.name,
            rows,
            payload_bytes(batch) if rows else 0,
            seconds=monotonic() - begun,
            offsets=by_partition(reached),
        )
    return reports


def land_new_labels(
    lake: Lake, settings: Settings, readers: TopicReaders, stop: Callable[[], bool] = never
) -> tuple[LandingReport, bool]:
    """Drains the labels topic to its end of this moment; gives the report, and False where `stop` came before the end.

    Most of the time there is no new label, and the table need not be opened to know it.
    """
    ends = readers.labels.end_offsets(stop)
    if ends == readers.drained:
        return LandingReport(fraud_labels.name), True
    report = land_labels(lake, settings, readers.labels, ends, stop)
    readers.drained = {} if any(report.lag.values()) else ends
    return report, ends == readers.drained or not stop()


def _drain(
    lake: Lake,
    table: Table,
    reader: TopicReader,
    ends: Positions,
    append: Callable[[pa.Table], tuple[int, int]],
    stop: Callable[[], bool],
) -> LandingReport:
    """Reads from what the table holds to `ends` and appends batch by batch.

    `append` gives the rows that it kept and those that it refused; fewer than the batch has means that another
    lander is ahead, and reading goes on from what the table holds by then.
    """
    begun = monotonic()
    rows = size = quarantined = 0
    ahead = True
    known = positions_in(lake, table, ends, lambda: reader.log_starts(stop))
    while ahead and not stop():
        ahead = False
        with closing(reader.read(known, ends, stop)) as batches:
            for batch in batches:
                kept, refused = append(batch)
                rows, quarantined = rows + kept, quarantined + refused
                known = {**known, **positions_of(batch)}
                if kept or refused:
                    size += payload_bytes(batch)
                    logger.info(f"{table.name}: {rows:,} rows landed from {reader.topic}")
                if stop():
                    break
                if kept + refused < batch.num_rows:
                    ahead = True
                    break
        if ahead:
            known = committed_offsets(lake, table, ends)
    if tails := reader.tails(known):
        reader.check_topic_id(next(iter(tails)).topic_id)
        append_landed(lake, table, table.schema.empty_table(), tails, loss_note(reader.accepted))
        known = {**known, **tails}
    return LandingReport(
        table.name,
        rows,
        size,
        quarantined,
        monotonic() - begun,
        by_partition(known),
        by_partition({stream: max(0, end - known[stream]) for stream, end in ends.items()}),
    )


def committed_offsets(lake: Lake, table: Table, streams: Iterable[SourcePartition]) -> dict[SourcePartition, int]:
    """Last offset of each stream that the table holds now; -1 if none."""
    handle = lake.open(table)
    return {stream: committed_offset(handle, stream) for stream in streams}
