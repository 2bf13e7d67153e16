"""`fraud-assets land`: lands the topics and the drop folder into the landing tables."""

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
"""Exit code: a dropped file has not landed, but everything else has."""


@click.command("land", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--engine",
    type=click.Choice(["duckdb", "spark"]),
    help="Engine that lands the transactions topic: this process, or Spark. Default: spark if FRAUD_ENGINE is spark "
    "and an external broker is configured, else duckdb.",
)
@click.option("--once", is_flag=True, help="Land the data that is available now, then exit.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object, with --once.")
def command(engine: str | None, once: bool, as_json: bool) -> None:
    """Land the Kafka topics and the drop folder into the lake, exactly once, until Ctrl-C or SIGTERM.

    Landing commits after FRAUD_LAND_BATCH_ROWS messages, FRAUD_LAND_BATCH_BYTES bytes or FRAUD_LAND_INTERVAL_SECONDS,
    whichever comes first. It logs one line per minute to standard error, serves /metrics for Prometheus and /health
    (200 or 503) at FRAUD_LAND_HTTP, and reports to Dagster, if that is set up, every FRAUD_DAGSTER_EVENT_SECONDS. If
    the broker or the lake is unavailable, landing reports it once, keeps the current batch and retries; with --once,
    it fails.

    Several landers share the partitions of the transactions topic. With --engine spark one lander is enough, because
    Spark distributes the partitions among its executors; it commits at most FRAUD_SPARK_LAND_ROWS messages at a time.
    Both engines write the same rows, and you can switch between them or run both at the same time.

    When stopped, the command finishes the current commit and exits 0. It exits 1 if the broker deleted messages before
    they landed. With --once it exits 3 if everything else landed, but a dropped file went to failed/ or an entry of
    the drop folder could not be landed; the report names it.

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

    # Arrow's own allocator keeps about 30 MB of the memory of a batch, and this process runs for months.
    pa.set_memory_pool(pa.system_memory_pool())
    if as_json and not once:
        raise click.UsageError("--json needs --once.")
    settings = load_settings()
    lake = Lake.of(settings)
    with _start_session(engine, settings) as spark, stopped_by_signals() as stop:
        if once:
            reports = land_once(lake, settings, _choose_engine(settings, spark), stop=stop.is_set)
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
            shown = f" Metrics and health are at {url}." if url else ""
            logger.info(f"Landing into {lake.root}. Drop files into {settings.incoming}.{shown} Press Ctrl-C to stop.")
            land_forever(lake, settings, stop, spark=spark, on_report=partial(report_landed, settings), metrics=metrics)
    logger.info("Stopped. All reported rows are committed.")


@contextmanager
def _start_session(engine: str | None, settings: Settings) -> Iterator[SparkSession | None]:
    """Yields the Spark session, or None if this process lands the topic itself."""
    from fraud_assets.kafka.broker import uses_external_broker

    is_external = uses_external_broker(settings)
    if engine is None:
        engine = "spark" if settings.engine == "spark" and is_external else "duckdb"
    if engine == "duckdb":
        yield None
        return
    if not is_external:
        raise SettingError(
            "--engine spark needs an external broker, and KAFKA_BOOTSTRAP_SERVERS is not set. The embedded broker does "
            "not support Java clients; use --engine duckdb with it."
        )
    from fraud_assets.engines.spark.session import describe_session, require_connector, spark_session

    require_connector(settings)
    logger.info(f"Starting Spark at {settings.spark_master}.")
    with spark_session(settings) as session:
        for sentence in describe_session(session):
            logger.info(sentence)
        yield session


def _choose_engine(settings: Settings, spark: SparkSession | None) -> Engine:
    from fraud_assets.engines.choice import choose_engine

    def session() -> SparkSession:
        assert spark is not None
        return spark

    return choose_engine(settings, session, "duckdb" if spark is None else "spark")
