"""`fraud-assets status`: shows on one screen what landed, waits and is scored."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from fraud_assets.errors import FraudAssetsError
from fraud_assets.printable import format_count
from fraud_assets.settings import load_settings

if TYPE_CHECKING:
    from fraud_assets.check_results import FailedCheck
    from fraud_assets.operations.status import Status


@click.command("status", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="Print the status as one JSON object.")
def command(as_json: bool) -> None:
    """Show what landed, waits and is scored, today's alerts against the budget, the champion and failed checks.

    It reads the lake, the model registry and Dagster's event log, and changes nothing. `fraud-assets doctor` looks for
    causes and names fixes. If the registry or Dagster's history cannot be read, the command shows the rest and exits 1.

    \b
    Example: fraud-assets status
             fraud-assets status --json
    """
    from fraud_assets.check_results import find_failed_checks
    from fraud_assets.lake.tables import Lake
    from fraud_assets.operations.status import read_status

    settings = load_settings()
    lake = Lake.of(settings)
    status = read_status(lake, settings)
    failed, history_fault = None, ""
    try:
        failed = find_failed_checks(settings)
    except FraudAssetsError as error:
        history_fault = str(error)
    code = 1 if status.registry_fault or history_fault else 0
    if as_json:
        checks = None if failed is None else [asdict(check) for check in failed]
        facts = {**asdict(status), "failed_checks": checks, "history_fault": history_fault}
        click.echo(json.dumps(facts, default=str))
        sys.exit(code)
    empty = "" if status.newest_landing else ": nothing has landed here yet."
    click.echo(f"Lake {lake.root}{empty}\n")
    for name, text in _describe(status, datetime.now(UTC)):
        click.echo(f"  {name:<15}{text}")
    click.echo(f"  {'Checks':<15}{f'unknown: {history_fault}' if history_fault else _describe_checks(failed)}")
    for check in failed or ():
        click.echo(f"  {'':<15}{check.severity} {check.name} {check.description}".rstrip())
    sys.exit(code)


def _describe(status: Status, now: datetime) -> Iterator[tuple[str, str]]:
    totals = status.totals
    yield (
        "Landed",
        f"{format_count(totals['landed'], 'message')}{_describe_age(status.newest_landing, now, 'the newest')}",
    )
    yield "Features", f"{format_count(totals['features'], 'transaction')}, {totals['waiting']:,} waiting"
    yield (
        "Quarantined",
        f"{format_count(totals['quarantined'], 'message')}, {format_count(totals['duplicates'], 'duplicate')}",
    )
    yield "Labels", f"{totals['labels']:,}, {totals['quarantined_labels']:,} quarantined"
    scored = _describe_age(status.newest_scoring, now, "the last")
    yield "Scored", f"{format_count(totals['scored'], 'transaction')}, {totals['unscored']:,} waiting{scored}"
    if status.newest_transaction:
        yield "Newest data", f"transaction of {status.newest_transaction:%Y-%m-%d %H:%M:%S} UTC"
    if status.day:
        yield "Alerts", f"{status.alerts:,} on {status.day}; the budget is {status.budget:g} per day"
    champion = "none yet" if status.champion is None else f"version {status.champion}"
    yield "Champion", f"unknown: {status.registry_fault}" if status.registry_fault else champion


def _describe_age(moment: datetime | None, now: datetime, what: str) -> str:
    if moment is None:
        return ""
    seconds = max((now - moment).total_seconds(), 0)
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f", {what} {format_count(count, unit)} ago"
    return f", {what} {seconds:.0f} s ago"


def _describe_checks(failed: list[FailedCheck] | None) -> str:
    if failed is None:
        return "unknown: Dagster is not set up here (`fraud-assets setup`)"
    return f"{format_count(len(failed), 'asset check')} failed" if failed else "no asset check failed"
