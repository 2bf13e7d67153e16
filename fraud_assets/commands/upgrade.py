"""`fraud-assets upgrade`: adds the columns that tables of an earlier version lack."""

from __future__ import annotations

import json

import click

from fraud_assets.settings import load_settings


@click.command("upgrade", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def command(dry_run: bool, as_json: bool) -> None:
    """Add the columns that the tables of an earlier version of the platform lack.

    Stop the landers and Dagster's daemon first. Existing rows hold null in the added columns. Running the command
    again changes nothing. Exits 1 if a table needs other changes; the error message then names the fix.

    \b
    Example: fraud-assets upgrade --dry-run
             fraud-assets upgrade
    """
    from fraud_assets.lake.tables import Lake
    from fraud_assets.operations.upgrade import upgrade_lake

    lake = Lake.of(load_settings())
    upgrades = upgrade_lake(lake, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, "added": {one.table: list(one.added) for one in upgrades}}))
        return
    if not upgrades:
        click.echo(f"All tables of {lake.root} have the columns of this version.")
    for one in upgrades:
        click.echo(f"{one.table}: {'would add' if dry_run else 'added'} {', '.join(one.added)}")
