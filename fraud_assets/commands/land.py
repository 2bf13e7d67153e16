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

    It ends after the commit that is under way, with exit code 0. Dagster, where it is set up, is told
    what landed every 30 s. While the broker is away it waits for it; with
    --once that is an error. Lines go to standard error.

    \b
    Example: fraud-assets land
             fraud-assets land --once --json
    """
    from fraud_assets.lake.tables import Lake
    from fraud_assets.streaming.dagster_events import report_landed
    from fraud_assets.streaming.land import land_forever, land_once, lander_lock, stopped_by_signals

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
        with lander_lock(settings):
            _say(f"Landing into {lake.root}; drop files into {settings.incoming}. Ctrl-C ends it.")
            settings.incoming.mkdir(parents=True, exist_ok=True)
            land_forever(lake, settings, _say, stop, lambda reports: report_landed(settings, reports, _say))
    _say("Stopped; everything that was told is committed.")


def _say(line: str) -> None:
    click.echo(line, err=True)
