"""`fraud-assets land`: topics and drop folder to the landing tables."""

from __future__ import annotations

import json

import click

from fraud_assets.settings import load_settings


@click.command("land", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--once", is_flag=True, help="Drain what is there now and end.")
@click.option("--json", "as_json", is_flag=True, help="With --once: the report as one JSON object on standard output.")
def command(once: bool, as_json: bool) -> None:
    """Land the topics and the drop folder, exactly once, until SIGTERM or Ctrl-C.

    Start more of them to share the partitions of the transactions topic. A commit is made for every
    FRAUD_LAND_BATCH_ROWS messages, FRAUD_LAND_BATCH_BYTES bytes or FRAUD_LAND_INTERVAL_SECONDS. Dagster, where it
    is set up, is told every FRAUD_DAGSTER_EVENT_SECONDS what landed; Prometheus finds /metrics, a supervisor
    /health (200 or 503), at FRAUD_LAND_HTTP.

    It says one line a minute, on standard error. While the broker or the lake is away it says so and tries again;
    with --once that is an error. It ends after the commit that is under way, with exit code 0. Messages that are
    gone before they landed end it with exit code 1.

    \b
    Example: fraud-assets land
             fraud-assets land --once --json
    """
    import pyarrow as pa

    from fraud_assets.lake.tables import Lake
    from fraud_assets.streaming.dagster_events import report_landed
    from fraud_assets.streaming.land import land_forever, land_once, stopped_by_signals
    from fraud_assets.streaming.metrics import LandingMetrics, served
    from fraud_assets.streaming.presence import presence

    # Arrow's own allocator keeps some 30 MB of what a batch has used; this process lives for months.
    pa.set_memory_pool(pa.system_memory_pool())
    if as_json and not once:
        raise click.UsageError("--json goes with --once.")
    settings = load_settings()
    lake = Lake.of(settings)
    with stopped_by_signals() as stop:
        if once:
            reports = land_once(lake, settings, _say, stop)
            if as_json:
                click.echo(json.dumps({name: report.metadata() for name, report in reports.items()}))
            else:
                for name, report in reports.items():
                    refused = f", {report.quarantined:,} quarantined" if report.quarantined else ""
                    click.echo(f"{name}: {report.rows:,} rows landed{refused}")
            return
        metrics = LandingMetrics()
        with served(metrics, settings.land_http) as url, presence(settings, url):
            settings.incoming.mkdir(parents=True, exist_ok=True)
            shown = f" Metrics and health at {url}." if url else ""
            _say(f"Landing into {lake.root}; drop files into {settings.incoming}.{shown} Ctrl-C ends it.")
            land_forever(lake, settings, _say, stop, lambda reports: report_landed(settings, reports, _say), metrics)
    _say("Stopped; everything that was told is committed.")


def _say(line: str) -> None:
    click.echo(line, err=True)
