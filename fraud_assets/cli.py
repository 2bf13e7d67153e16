"""`fraud-assets …`: the command line. Each command is a module of `fraud_assets.commands`, loaded when called."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import click

from fraud_assets.errors import FraudAssetsError, disk_fault

COMMANDS = {
    "broker": "Run a broker in the foreground: the embedded one, or Apache Kafka.",
    "simulate": "Produce simulated transactions and their late fraud labels.",
    "replay": "Produce the transactions and labels of files.",
    "land": "Land the topics and the drop folder for as long as it lives.",
    "evaluate": "Train and test by the handbook's protocol on what the lake holds.",
    "quarantine": "List what was refused, show it, drive it again after a fix.",
    "erase": "Remove a customer from every table and from kept files.",
    "upgrade": "Add the columns that tables of an earlier version lack.",
    "doctor": "Check settings, broker, lake, registry and Dagster, with the fix for each fault.",
    "chaos": "Run the platform while everything goes wrong, and count every message.",
    "demo": "Stream to scored predictions in a fresh folder, with a summary.",
}


class LazyCommands(click.Group):
    """Imports a command's module only when it is called, so that `--help` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"fraud_assets.commands.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fraud_assets")
def cli() -> None:
    """Real-time card-fraud detection on Dagster.

    Settings come from the environment or `.env`; the README lists them.

    \b
    Example: fraud-assets broker &
             fraud-assets simulate --count 5000 & fraud-assets land
    """
    from fraud_assets.commands.console import configure_logging

    configure_logging()


def main() -> None:
    """Entry point: a user's mistake is one sentence on standard error, never a stack trace."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except FraudAssetsError as error:
        _fail(error)
    except OSError as error:
        fault = disk_fault(error)
        if fault is None:
            raise
        _fail(fault)


def _fail(error: FraudAssetsError) -> NoReturn:
    click.echo(f"Error: {error}", err=True)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
