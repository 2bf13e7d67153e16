"""Lands topics in this process: it reads from the committed offsets and appends batch by batch, labels first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import closing
from time import monotonic

import pyarrow as pa

from fraud_assets.core.pseudonyms import pseudonymise
from fraud_assets.core.schema import Table, fraud_labels, raw_transactions
from fraud_assets.engines.landing_report import LandingReport, create_reports, key_by_partition
from fraud_assets.engines.landing_tables import append_labels, append_transactions, build_loss_note, count_payload_bytes
from fraud_assets.kafka.consumer import TopicReader
from fraud_assets.kafka.schemas import create_label_decoder
from fraud_assets.kafka.topic_client import never
from fraud_assets.kafka.topic_readers import TopicReaders
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.known_topics import find_positions
from fraud_assets.lake.positions import Positions, SourcePartition, committed_offset, find_largest_positions
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

logger = logging.getLogger(__name__)


def land_topics(
    lake: Lake,
    settings: Settings,
    *,
    transactions: bool = True,
    readers: TopicReaders | None = None,
    stop: Callable[[], bool] = never,
) -> dict[str, LandingReport]:
    """Drains both topics up to their ends at the time of the call, labels first.

    Args:
        lake: The lake to land into.
        settings: The settings of the broker and of landing.
        transactions: Whether to drain the transactions topic. If false, only the labels topic is drained.
        readers: Open readers; default: readers that are opened and closed here.
        stop: Called between commits. Once it returns true, landing ends; committed batches stay.

    Returns:
        A report for each landing table, by table name.

    Raises:
        BrokerError, MessagesLostError, LakeError: Nothing is skipped, and committed batches stay.
    """
    if readers is None:
        with TopicReaders.of(settings) as opened:
            return land_topics(lake, settings, transactions=transactions, readers=opened, stop=stop)
    # Both ends are read before the first message, so that the labels are never older than the transactions that land
    # after them.
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
    """Drains the labels topic up to `ends`. Rejected labels go to quarantine."""
    decoder = create_label_decoder(settings)

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
    """Drains the transactions topic up to `ends`. Bodies land byte for byte, unless FRAUD_PSEUDONYMISE is set."""

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
    """Drains the labels topic up to its current end, then appends a batch of transactions.

    Args:
        lake: The lake to land into.
        settings: The settings of the broker and of landing.
        readers: Readers of both topics.
        batch: The transactions; it may have no rows.
        reached: The positions to commit with the batch; see `GroupReader.follow`.
        stop: Returns whether a stop is requested. If it returns true before the labels are drained, the batch does not
            land.

    Returns:
        A report for each landing table, by table name.

    Raises:
        TopicRecreatedError: The batch belongs to a previous topic of the same name.
        BrokerError, MessagesLostError, LakeError: Nothing is skipped, committed batches stay, and the same batch can
            be retried.
    """
    reports = create_reports()
    reports[fraud_labels.name], is_drained = land_new_labels(lake, settings, readers, stop)
    if reached and is_drained:
        readers.transactions.check_topic_id(next(iter(reached)).topic_id)
        started = monotonic()
        rows = append_transactions(lake, settings, batch, readers.transactions.accepted, reached)
        reports[raw_transactions.name] = LandingReport(
            raw_transactions.name,
            rows,
            count_payload_bytes(batch) if rows else 0,
            seconds=monotonic() - started,
            offsets=key_by_partition(reached),
        )
    return reports


def land_new_labels(
    lake: Lake, settings: Settings, readers: TopicReaders, stop: Callable[[], bool] = never
) -> tuple[LandingReport, bool]:
    """Drains the labels topic up to its current end.

    If no label is new, which is usual, the table is not opened.

    Returns:
        The report, and whether the topic was drained before `stop` requested a stop.
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
    """Reads from the committed offsets of a table up to `ends` and appends batch by batch.

    `append` returns the number of rows that it kept and that it rejected. If their sum is less than the batch, another
    lander is ahead, and reading restarts at the offsets that the table holds by then.
    """
    started = monotonic()
    rows = size = quarantined = 0
    other_is_ahead = True
    known = find_positions(lake, table, ends, lambda: reader.log_starts(stop))
    while other_is_ahead and not stop():
        other_is_ahead = False
        with closing(reader.read(known, ends, stop)) as batches:
            for batch in batches:
                kept, rejected = append(batch)
                rows, quarantined = rows + kept, quarantined + rejected
                known = {**known, **find_largest_positions(batch)}
                if kept or rejected:
                    size += count_payload_bytes(batch)
                    logger.info(f"{table.name}: landed {rows:,} rows from topic {reader.topic}")
                if stop():
                    break
                if kept + rejected < batch.num_rows:
                    other_is_ahead = True
                    break
        if other_is_ahead:
            known = read_committed_offsets(lake, table, ends)
    if tails := reader.tails(known):
        reader.check_topic_id(next(iter(tails)).topic_id)
        append_landed(lake, table, table.schema.empty_table(), tails, build_loss_note(reader.accepted))
        known = {**known, **tails}
    return LandingReport(
        table.name,
        rows,
        size,
        quarantined,
        monotonic() - started,
        key_by_partition(known),
        key_by_partition({source: max(0, end - known[source]) for source, end in ends.items()}),
    )


def read_committed_offsets(
    lake: Lake, table: Table, partitions: Iterable[SourcePartition]
) -> dict[SourcePartition, int]:
    """Returns the last offset of each source partition that the table holds now; -1 if it holds none."""
    handle = lake.open(table)
    return {partition: committed_offset(handle, partition) for partition in partitions}
