"""`fraud-assets evaluate`: trains and tests a model on the data of the lake."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta

import click

from fraud_assets.settings import load_settings

_DAYS = click.IntRange(min=1)


@click.command("evaluate", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--train-start",
    type=click.DateTime(["%Y-%m-%d"]),
    help="First training day, UTC. Default: the latest start whose test days are older than FRAUD_FEEDBACK_DELAY_DAYS.",
)
@click.option("--train-days", type=_DAYS, default=7, show_default=True, help="Days to train on.")
@click.option(
    "--delay-days",
    type=click.IntRange(min=0),
    default=7,
    show_default=True,
    help="Days between training and test, in which the labels of the training days arrive.",
)
@click.option("--test-days", type=_DAYS, default=7, show_default=True, help="Days to test on.")
@click.option(
    "--model",
    type=click.Choice(["platform", "book"]),
    default="platform",
    show_default=True,
    help="The platform's Isolation Forest, or the handbook's: 10 trees on standardized inputs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def command(
    train_start: datetime | None, train_days: int, delay_days: int, test_days: int, model: str, as_json: bool
) -> None:
    """Train and test an Isolation Forest on the data of the lake, by the protocol of the Fraud Detection Handbook.

    The model is trained on some days and tested on days after the label delay. Nothing is registered, and the tables do
    not change. Cards whose fraud is known by the test day are left out. AUC ROC and average precision measure the
    ranking of transactions. Card precision@100 is the share of compromised cards among the 100 most suspicious cards of
    a day.

    \b
    Example: fraud-assets evaluate
             fraud-assets evaluate --train-start 2018-07-11 --model book --json
    """
    from fraud_assets.core.evaluation import Protocol
    from fraud_assets.lake.tables import Lake
    from fraud_assets.stages.evaluation import evaluate_lake, find_latest_start

    start = time.monotonic()
    settings = load_settings()
    lake = Lake.of(settings)
    first = train_start.date() if train_start else find_latest_start(lake, settings, train_days, delay_days, test_days)
    protocol = Protocol(first, train_days, delay_days, test_days)
    result = evaluate_lake(lake, settings, protocol, "book" if model == "book" else "platform")
    if as_json:
        facts = {
            **result.metadata(),
            "model": model,
            "train_start": str(protocol.train_start),
            "test_start": str(protocol.test_start),
            "test_end": str(protocol.test_end),
            "seconds": round(time.monotonic() - start, 3),
        }
        click.echo(json.dumps(facts))
        return
    last_train_day, last_test_day = (end - timedelta(days=1) for end in (protocol.train_end, protocol.test_end))
    click.echo(f"Isolation Forest ({model}) on the lake {lake.root}\n")
    for name, text in (
        ("Trained on", f"{protocol.train_start} to {last_train_day}: {result.train_rows:,} transactions"),
        ("Tested on", f"{protocol.test_start} to {last_test_day}: {result.test_rows:,} transactions, "
                      f"{result.test_frauds:,} frauds"),
        ("Left out", f"{result.test_rows_of_compromised_cards:,} transactions of cards known to be compromised"),
        ("AUC ROC", f"{result.auc_roc:.3f}"),
        ("Average precision", f"{result.average_precision:.3f}"),
        ("Card precision@100", f"{result.card_precision_at_100:.3f}"),
    ):  # fmt: skip
        click.echo(f"  {name:<20}{text}")
