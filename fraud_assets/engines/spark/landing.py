"""Lands both topics with Spark up to their current ends.

Executors read the transactions topic and write data files, and the driver commits them. Labels are few; the driver
drains them itself before every batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from fraud_assets.core.schema import fraud_labels, raw_transactions
from fraud_assets.engines.landing_report import LandingReport, create_reports, key_by_partition, merge_reports
from fraud_assets.engines.local.landing import land_new_labels, read_committed_offsets
from fraud_assets.engines.spark.batch_landing import LandedBatch, ReplanError
from fraud_assets.engines.spark.topic_query import TopicQuery
from fraud_assets.errors import EngineError
from fraud_assets.kafka.topic_readers import TopicReaders
from fraud_assets.lake.known_topics import find_positions
from fraud_assets.lake.positions import Positions
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


def drain_topics(
    session: Callable[[], SparkSession],
    lake: Lake,
    settings: Settings,
    readers: TopicReaders,
    stop: Callable[[], bool],
) -> dict[str, LandingReport]:
    """Drains both topics to their current ends, labels first.

    Args:
        session: Returns the Spark session; called only if there is something to land.
        lake: The lake to land into.
        settings: The settings of the broker and of Spark.
        readers: Readers of both topics.
        stop: Returns whether a stop is requested.

    Returns:
        A report for each landing table, by table name.

    Raises:
        EngineError: A job failed twice without progress.
        BrokerError, MessagesLostError, LakeError: Nothing is skipped, and committed batches stay.
    """
    started = monotonic()
    ends = readers.transactions.end_offsets(stop)
    reports = create_reports()
    reports[fraud_labels.name], _ = land_new_labels(lake, settings, readers, stop)

    def add_batch(batch: LandedBatch) -> None:
        for name, report in batch.reports.items():
            reports[name] = merge_reports(reports[name], report)
        if rows := batch.reports[raw_transactions.name].rows:
            logger.info(f"{raw_transactions.name}: landed {rows:,} rows from topic {settings.transactions_topic}")

    rows_at_failure = -1
    while not stop():
        first = readers.transactions.first_offsets(partial(find_positions, lake, raw_transactions), stop)
        if all(first.get(source, 0) > end for source, end in ends.items()):
            break
        try:
            TopicQuery(session(), lake, settings, readers, add_batch, stop).run(bounded=True)
            break
        except ReplanError:
            continue
        except EngineError:
            # The loss of an executor or a new partition leader can be temporary, so one retry without progress is made.
            if reports[raw_transactions.name].rows == rows_at_failure:
                raise
            rows_at_failure = reports[raw_transactions.name].rows
    total = reports[raw_transactions.name]
    reports[raw_transactions.name] = _complete_report(total, lake, ends, monotonic() - started)
    return reports


def _complete_report(total: LandingReport, lake: Lake, ends: Positions, seconds: float) -> LandingReport:
    """Returns the report on the transactions with the duration, and the offsets and the lag of all partitions."""
    known = read_committed_offsets(lake, raw_transactions, ends)
    lag = {source: max(0, end - known[source]) for source, end in ends.items()}
    return LandingReport(
        total.table,
        total.rows,
        total.bytes,
        seconds=seconds,
        offsets=key_by_partition(known),
        lag=key_by_partition(lag),
    )
