"""`fraud-assets land`: topics and drop folder to the landing tables."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from fraud_assets.errors import SettingError
from fraud_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from fraud_assets.engines.base import Engine

logger = logging.getLogger(__name__)

_FILES_FAILED = 3
"""Exit code: all that could be landed has landed, but a dropped file has not."""


@click.command("land", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--engine",
    type=click.Choice(["python", "spark"]),
    help="What lands the transactions topic: this process, or Spark. Default: spark where FRAUD_ENGINE is spark and a "
    "broker is named, else python.",
)
@click.option("--once", is_flag=True, help="Drain what is there now and end.")
@click.option("--json", "as_json", is_flag=True, help="With --once: the report as one JSON object on standard output.")
def command(engine: str | None, once: bool, as_json: bool) -> None:
    """Land the topics and the drop folder, exactly once, until SIGTERM or Ctrl-C.

    Start more of them to share the partitions of the transactions topic. With --engine spark one is enough: Spark
    shares them out among its executors, and commits at most FRAUD_SPARK_LAND_ROWS messages at a time. Both landers
    write the same rows and may follow each other, or run at once. A commit is made for every
    FRAUD_LAND_BATCH_ROWS messages, FRAUD_LAND_BATCH_BYTES bytes or FRAUD_LAND_INTERVAL_SECONDS. Dagster, where it
    is set up, is told every FRAUD_DAGSTER_EVENT_SECONDS what landed; Prometheus finds /metrics, a supervisor
    /health (200 or 503), at FRAUD_LAND_HTTP.

    It says one line a minute, on standard error. While the broker or the lake is away it says so and tries again;
    with --once that is an error. It ends after the commit that is under way, with exit code 0. Messages that are
    gone before they landed end it with exit code 1. With --once the exit code is 3 where everything else landed, but
    a dropped file went to failed/ or something in the drop folder could not be taken; the report names it.

    \b
    Example: fraud-assets land
             fraud-assets land --once --json
             fraud-assets land --engine spark
    """
    from functools import partial

    import pyarrow as pa

    from fraud_assets.dagster_events import report_landed
    from fraud_assets.ingest.landing import land_once
    from fraud_assets.ingest.service.lander import land_forever, stopped_by_signals
    from fraud_assets.ingest.service.metrics import LandingMetrics, serve_metrics
    from fraud_assets.ingest.service.presence import register_lander
    from fraud_assets.lake.tables import Lake

    # Arrow's own allocator keeps some 30 MB of what a batch has used; this process lives for months.
    pa.set_memory_pool(pa.system_memory_pool())
    if as_json and not once:
        raise click.UsageError("--json goes with --once.")
    settings = load_settings()
    lake = Lake.of(settings)
    with _session(engine, settings) as spark, stopped_by_signals() as stop:
        if once:
            reports = land_once(lake, settings, _engine(settings, spark), stop=stop.is_set)
            if as_json:
                click.echo(json.dumps({name: report.metadata() for name, report in reports.items()}))
            else:
                for name, report in reports.items():
                    refused = f", {report.quarantined:,} quarantined" if report.quarantined else ""
                    click.echo(f"{name}: {report.rows:,} rows landed{refused}")
            if any(report.failed or report.stuck for report in reports.values()):
                sys.exit(_FILES_FAILED)
            return
        metrics = LandingMetrics()
        with serve_metrics(metrics, settings.land_http) as url, register_lander(settings, url):
            settings.incoming.mkdir(parents=True, exist_ok=True)
            shown = f" Metrics and health at {url}." if url else ""
            logger.info(f"Landing into {lake.root}; drop files into {settings.incoming}.{shown} Ctrl-C ends it.")
            land_forever(lake, settings, stop, spark=spark, on_report=partial(report_landed, settings), metrics=metrics)
    logger.info("Stopped; everything that was told is committed.")


@contextmanager
def _session(engine: str | None, settings: Settings) -> Iterator[SparkSession | None]:
    """The session of a lander on Spark, None for one in this process."""
    from fraud_assets.kafka.broker import uses_external_broker

    is_named = uses_external_broker(settings)
    if engine is None:
        engine = "spark" if settings.engine == "spark" and is_named else "python"
    if engine == "python":
        yield None
        return
    if not is_named:
        raise SettingError(
            "--engine spark needs a broker of its own, and KAFKA_BOOTSTRAP_SERVERS is not set: the embedded one does "
            "not answer Java's clients, so land from it with --engine python."
        )
    from fraud_assets.engines.spark.session import describe_session, require_connector, spark_session

    require_connector(settings)
    logger.info(f"Starting Spark at {settings.spark_master}.")
    with spark_session(settings) as session:
        for sentence in describe_session(session):
            logger.info(sentence)
        yield session


def _engine(settings: Settings, spark: SparkSession | None) -> Engine:
    if spark is None:
        from fraud_assets.engines.local.engine import LocalEngine

        return LocalEngine(settings)
    from fraud_assets.engines.spark.engine import SparkEngine

    return SparkEngine(settings, lambda: spark)
