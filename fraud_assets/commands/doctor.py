"""`fraud-assets doctor`: checks each part of the platform and names the fix for each fault."""

from __future__ import annotations

import json
import os
import sys
import threading
import time

import click

from fraud_assets.errors import SettingError
from fraud_assets.settings import load_settings

_COLORS = {"OK": "green", "WARN": "yellow", "FAIL": "red", "SKIP": "cyan"}


@click.command("doctor", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
def command(as_json: bool) -> None:
    """Check settings, broker, topics, lag, lake, registry, Dagster and versions. Nothing is changed.

    Each check prints one line: OK, WARN (it works but needs attention), FAIL, or SKIP (it could not be checked because
    of a fault in another line). A line with the fix follows if there is one. Exits 1 if any check is FAIL, else 0.

    \b
    Example: fraud-assets doctor
             fraud-assets doctor --json
    """
    from fraud_assets.doctor.finding import fail_from_error

    start = time.monotonic()
    try:
        settings = load_settings()
    except SettingError as error:
        findings = [fail_from_error("settings", error)]
    else:
        from fraud_assets.doctor.checks import run_checks

        findings = run_checks(settings)
    failed = any(finding.state == "FAIL" for finding in findings)
    if as_json:
        seconds = round(time.monotonic() - start, 3)
        click.echo(json.dumps({"ok": not failed, "seconds": seconds, "checks": [f.as_json() for f in findings]}))
    else:
        for finding in findings:
            click.echo(
                f"{click.style(f'{finding.state:<5}', _COLORS[finding.state])} {finding.name:<20} {finding.text}"
            )
            if finding.fix:
                click.echo(f"{'':<27}→ {finding.fix}")
    if any(thread.name.startswith("check ") for thread in threading.enumerate()):
        # A check that hangs in a library could prevent the interpreter from exiting.
        sys.stdout.flush()
        os._exit(1)
    sys.exit(1 if failed else 0)
