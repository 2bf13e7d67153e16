"""`fraud-assets erase`: removes a customer from every table and kept file."""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING

import click

from fraud_assets.printable import escape_unprintable
from fraud_assets.settings import load_settings

if TYPE_CHECKING:
    from fraud_assets.operations.holdings import Holdings
    from fraud_assets.settings import Settings

_SHOWN = 5


logger = logging.getLogger(__name__)


@click.command("erase", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--customer", required=True, metavar="ID", help="The original customer_id, even if it is pseudonymized.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and change nothing.")
@click.option(
    "--unreadable", is_flag=True, help="Also remove messages and lines that cannot be parsed but mention the id."
)
@click.option("--now", is_flag=True, help="Also remove the files of older table versions now.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation. Needed without a terminal, and with --json.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def command(customer: str, dry_run: bool, unreadable: bool, now: bool, yes: bool, as_json: bool) -> None:
    """Remove a customer from every table and from the kept files, and print what was removed.

    Removes landed messages, quarantined messages, features, predictions, labels, and the rows of dropped files in
    processed/ and failed/. The rows do not land again and are not scored again, and the reconciliation of the tables
    still balances. If the command is interrupted, run it again.

    Older versions of the tables keep the rows until maintenance removes their files after FRAUD_VACUUM_HOURS. With
    --now they are removed immediately, and readers of an older version fail. The command does not remove the messages
    on the Kafka broker.

    \b
    Example: fraud-assets erase --customer 4711 --dry-run
             fraud-assets erase --customer 4711 --yes --now --json
    """
    from dataclasses import replace

    from fraud_assets.core.schema import transaction_features
    from fraud_assets.lake.held_days import describe_held_days
    from fraud_assets.lake.tables import Lake
    from fraud_assets.operations.erasure import erase_customer, vacuum_now
    from fraud_assets.operations.holdings import find_holdings

    if not customer.strip():
        raise click.UsageError("--customer is blank. Give the customer_id.")
    if not dry_run and not yes and (as_json or not sys.stdin.isatty()):
        raise click.UsageError(
            "The command removes data permanently and cannot ask for confirmation here. Add --yes to confirm."
        )
    settings = load_settings()
    lake = Lake.of(settings)
    found = find_holdings(lake, settings, customer)
    if found.empty:
        logger.info(f"No rows of customer {customer!r} were found: {describe_held_days(lake, transaction_features)}.")
    left = _remaining(found, unreadable=unreadable and not dry_run)
    if dry_run:
        if as_json:
            click.echo(json.dumps({"tables": found.rows, "files": found.file_rows, "removed": False, **left}))
        else:
            _print_rows("Found", found.rows, found.file_rows)
            _print_remaining(found, customer, unreadable=False)
        return
    nothing = found.empty and not (unreadable and (found.mentions.num_rows or found.unreadable_lines))
    if not yes and not nothing:
        _print_rows("Found", found.rows, found.file_rows)
        click.confirm("Remove this permanently?", abort=True)
    report = erase_customer(lake, settings, customer, unreadable=unreadable, found=found)
    if now:
        logger.info("Removing the files of older table versions. Readers of these versions will fail.")
        report = replace(report, vacuumed_files=vacuum_now(lake))
    if as_json:
        removed = {"unreadable": report.unreadable, "vacuumed_files": report.vacuumed_files}
        click.echo(json.dumps({"tables": report.tables, "files": report.files, "removed": True, **removed, **left}))
        return
    _print_rows("Removed", report.tables, report.files)
    if report.unreadable:
        click.echo(f"{report.unreadable:>12,}  messages and lines that could not be read but mentioned the id")
    _print_remaining(found, customer, unreadable=unreadable)
    click.echo(_describe_old_versions(settings, report.vacuumed_files, now=now))


def _remaining(found: Holdings, *, unreadable: bool) -> dict[str, object]:
    """Returns the remaining messages, lines and files that may hold the id, as JSON values."""
    return {
        "unreadable_messages": [] if unreadable else _positions(found),
        "unreadable_lines": {} if unreadable else found.unreadable_lines,
        "closed_files": found.closed_files,
        "waiting_files": [escape_unprintable(path) for path in found.waiting],
    }


def _positions(found: Holdings) -> list[str]:
    return [f"{row['topic']}/{row['partition']}/{row['offset']}" for row in found.mentions.to_pylist()]


def _print_rows(title: str, tables: dict[str, int], files: dict[str, int]) -> None:
    click.echo(f"{title}:")
    for name, rows in (*tables.items(), *files.items()):
        click.echo(f"{rows:>12,}  {name}")


def _print_remaining(found: Holdings, customer: str, *, unreadable: bool) -> None:
    positions = [] if unreadable else _positions(found)
    if positions:
        click.echo(
            f"{len(positions):,} messages cannot be parsed but mention {customer}. Look at them, and add --unreadable "
            "to remove them:"
        )
        for position in positions[:_SHOWN]:
            click.echo(f"  fraud-assets quarantine show {position}")
        if len(positions) > _SHOWN:
            click.echo(f"  … and {len(positions) - _SHOWN:,} more (--json lists all)")
    for path, lines in () if unreadable else found.unreadable_lines.items():
        click.echo(f"{path}: {lines:,} lines cannot be parsed but mention {customer}. Add --unreadable to remove them.")
    for path in found.closed_files:
        click.echo(f"{path} cannot be opened. Remove it if it may contain rows of the customer.")
    for waiting in found.waiting:
        click.echo(
            f"{escape_unprintable(waiting)} contains rows of the customer and has not landed yet. Remove it, or run "
            "this command again after it has landed."
        )


def _describe_old_versions(settings: Settings, vacuumed: int, *, now: bool) -> str:
    if now:
        return f"{vacuumed:,} files of older table versions were removed; no version of the lake contains the rows."
    return (
        f"Older versions of the tables contain the rows until maintenance removes their files in "
        f"{settings.vacuum_hours} hours (FRAUD_VACUUM_HOURS). Add --now to remove them immediately."
    )
