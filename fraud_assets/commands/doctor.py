"""`fraud-assets doctor`: a line for each part of the platform, with the fix where it is needed."""

from __future__ import annotations

import json
import os
import sys
import threading
import time

import click

from fraud_assets.errors import SettingError
from fraud_assets.settings import load_settings

_COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red", "SKIP": "cyan"}


@click.command("doctor", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="The findings as one JSON object.")
def command(as_json: bool) -> None:
    """Check settings, broker, topics, lag, lake, registry, Dagster and versions; changes nothing.

    One line each: OK, WARN (it works, but somebody should know), FAIL, or SKIP (another line says why it could not
    be checked). The exit code is 1 if any line is FAIL, else 0.

    \b
    Example: fraud-assets doctor
             fraud-assets doctor --json
    """
    from fraud_assets.doctor.finding import fail_from_error

    began = time.monotonic()
    try:
        settings = load_settings()
    except SettingError as error:
        findings = [fail_from_error("settings", error)]
    else:
        from fraud_assets.doctor.checks import run_checks

        findings = run_checks(settings)
    failed = any(finding.state == "FAIL" for finding in findings)
    if as_json:
        seconds = round(time.monotonic() - began, 3)
        click.echo(json.dumps({"ok": not failed, "seconds": seconds, "checks": [f.as_json() for f in findings]}))
    else:
        for finding in findings:
            click.echo(
                f"{click.style(f'{finding.state:<5}', _COLOURS[finding.state])} {finding.name:<20} {finding.text}"
            )
            if finding.fix:
                click.echo(f"{'':<27}→ {finding.fix}")
    if any(thread.name.startswith("check ") for thread in threading.enumerate()):
        # A check that hangs in a library's code could keep the interpreter from ending.
        sys.stdout.flush()
        os._exit(1)
    sys.exit(1 if failed else 0)
