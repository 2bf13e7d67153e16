"""`fraud-assets setup`: creates the state folder and sets DAGSTER_HOME."""

from __future__ import annotations

from pathlib import Path

import click

from fraud_assets.settings import load_settings


@click.command("setup", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Create the folders of FRAUD_HOME and dagster.yaml, and set DAGSTER_HOME in the .env file of the current folder.

    If FRAUD_HOME was moved or copied, the paths in the model registry are changed to the current folder. Running it
    again changes nothing. With DAGSTER_POSTGRES_URL, a new dagster.yaml keeps Dagster's history in that database.

    \b
    Example: fraud-assets setup
             DAGSTER_POSTGRES_URL=postgresql+psycopg2://dagster:secret@db/dagster fraud-assets setup
    """
    from fraud_assets.operations.setup_home import set_up_home

    for sentence in set_up_home(load_settings(), Path.cwd() / ".env"):
        click.echo(sentence, err=True)
