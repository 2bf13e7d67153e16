"""Lands everything that the drop folder and both topics hold when the call starts."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fraud_assets.engines.base import Engine
from fraud_assets.engines.landing_report import LandingReport, create_reports, merge_reports
from fraud_assets.engines.local.engine import LocalEngine
from fraud_assets.ingest.files.drop_folder import wait_for_changing_entries
from fraud_assets.ingest.files.file_report import add_file_reports
from fraud_assets.ingest.files.landing import land_files
from fraud_assets.kafka.broker import find_broker, is_broker_configured
from fraud_assets.kafka.topic_client import never
from fraud_assets.kafka.topics import describe_missing_topics
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

logger = logging.getLogger(__name__)


def land_once(
    lake: Lake,
    settings: Settings,
    engine: Engine | None = None,
    *,
    transactions: bool = True,
    topics: bool = True,
    stop: Callable[[], bool] = never,
) -> dict[str, LandingReport]:
    """Lands the drop folder, then drains the topics to their current ends, labels first.

    If a file was dropped just before the call, it waits up to FRAUD_FILE_QUIET_SECONDS for that file.

    Args:
        lake: the lake to land into.
        settings: define the broker, the topics and the drop folder.
        engine: drains the topics; default: this process.
        transactions: if false, only the labels topic is drained. The drop folder is skipped, because files hold
            transactions.
        topics: if false, only the drop folder is landed.
        stop: called between commits; once it returns true, landing ends. Committed rows stay. The
            remaining messages land in a later call.

    Returns:
        A report for each landing table, by table name.

    Raises:
        BrokerError: the broker or a topic cannot be read, or a topic does not exist. Files that landed before stay
            landed. Not raised if files landed and no broker is configured, because landing the files is then the whole
            task.
        LakeError: a table cannot be written.
    """
    engine = engine or LocalEngine(settings)
    reports = create_reports(transactions=transactions)
    if transactions:
        wait_for_changing_entries(settings, stop)
        files = land_files(lake, settings, stop)
        reports = add_file_reports(reports, files)
        if topics and files and not is_broker_configured(settings):
            logger.info("No broker is configured, so only the drop folder was landed.")
            topics = False
    if not topics or stop():
        return reports
    for sentence in describe_missing_topics(find_broker(settings), settings):
        logger.warning(sentence)
    landed = engine.land_topics(lake, transactions=transactions, stop=stop)
    return {name: merge_reports(report, landed[name]) for name, report in reports.items()}
