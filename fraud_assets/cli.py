"""The command line `fraud-assets`. Each command is a module of `fraud_assets.commands`, loaded when it is called."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import NoReturn

import click

from fraud_assets.errors import FraudAssetsError, convert_disk_error

COMMANDS = {
    "setup": "Create the state folder, and set DAGSTER_HOME in the .env file of the current folder.",
    "dev": "Run the whole platform on this machine with live traffic, until Ctrl-C.",
    "broker": "Run a Kafka broker for demos and development: the embedded one, or Apache Kafka.",
    "simulate": "Produce simulated card transactions and their fraud labels.",
    "replay": "Produce the transactions and fraud labels of files.",
    "land": "Land the Kafka topics and the drop folder into the lake until stopped.",
    "status": "Show what landed, waits and is scored, today's alerts, the champion and failed checks.",
    "evaluate": "Train and test a model on the lake, without registering it.",
    "quarantine": "List quarantined messages, show one, and retry them after a fix.",
    "erase": "Remove a customer from every table and from the kept files.",
    "upgrade": "Add the columns that tables of an earlier version lack.",
    "doctor": "Check settings, broker, lake, registry and Dagster, and name the fix for each fault.",
    "chaos": "Run a separate platform under faults, and verify that no message is lost or counted twice.",
    "demo": "Run the whole platform once in a new folder and print a summary.",
}


class LazyCommands(click.Group):
    """Imports the module of a command only when it is called, so that `--help` is fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"fraud_assets.commands.{cmd_name}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fraud_assets")
def cli() -> None:
    """Real-time card-fraud detection on Dagster.

    Settings are read from environment variables and from `.env`; docs/settings.md lists them. Every command has --help.

    \b
    Example: fraud-assets broker &
             fraud-assets simulate --count 5000 & fraud-assets land
    """
    from fraud_assets.commands.console import configure_logging

    configure_logging()


def main() -> None:
    """Runs the command line. A `FraudAssetsError` becomes one message on standard error, without a stack trace."""
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
        _exit_with(error)
    except OSError as error:
        fault = convert_disk_error(error)
        if fault is None:
            raise
        _exit_with(fault)


def _exit_with(error: FraudAssetsError) -> NoReturn:
    from fraud_assets.commands.console import report_error

    report_error(str(error))
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
