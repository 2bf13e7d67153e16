"""`fraud-assets evaluate`: trains and tests a model on the data of the lake."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fraud_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from fraud_assets.core.declarations import FeatureFile
    from fraud_assets.core.evaluation import Evaluation, Protocol
    from fraud_assets.lake.tables import Lake

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
@click.option(
    "--features",
    "features",
    help="Evaluate the inputs of a feature file instead of the stored ones: its path, or `default` or `book` of the "
    "package. They are computed in memory from the transactions of the lake.",
)
@click.option(
    "--weeks",
    type=_DAYS,
    default=1,
    show_default=True,
    help="With --features: number of training windows. Each begins --train-days before the next one.",
)
@click.option("--seeds", type=_DAYS, default=1, show_default=True, help="With --features: number of random seeds.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def command(
    train_start: datetime | None,
    train_days: int,
    delay_days: int,
    test_days: int,
    model: str,
    features: str | None,
    weeks: int,
    seeds: int,
    as_json: bool,
) -> None:
    """Train and test an Isolation Forest on the data of the lake, by the protocol of the Fraud Detection Handbook.

    The model is trained on some days and tested on days after the label delay. Nothing is registered, and the tables do
    not change. Cards whose fraud is known by the test day are left out. AUC ROC and average precision measure the
    ranking of transactions. Card precision@100 is the share of compromised cards among the 100 most suspicious cards of
    a day. With --features, the inputs of a feature file are tried: the platform itself does not use such files yet.

    \b
    Example: fraud-assets evaluate
             fraud-assets evaluate --train-start 2018-07-11 --model book --json
             fraud-assets evaluate --features default --weeks 5 --seeds 3
    """
    from fraud_assets.core.evaluation import Protocol
    from fraud_assets.lake.tables import Lake
    from fraud_assets.stages.evaluation import evaluate_lake, find_latest_start

    start = time.monotonic()
    settings = load_settings()
    lake = Lake.of(settings)
    first = train_start.date() if train_start else find_latest_start(lake, settings, train_days, delay_days, test_days)
    protocol = Protocol(first, train_days, delay_days, test_days)
    if features is not None:
        if model == "book":
            raise click.UsageError("--features cannot be used with --model book.")
        _evaluate_file(lake, settings, features, protocol, weeks, seeds, as_json=as_json)
        return
    if weeks > 1 or seeds > 1:
        raise click.UsageError("--weeks and --seeds need --features.")
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
    _print_result(result, model, protocol, lake)


def _print_result(result: Evaluation, model: str, protocol: Protocol, lake: Lake) -> None:
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


def _evaluate_file(
    lake: Lake, settings: Settings, features: str, newest: Protocol, weeks: int, seeds: int, *, as_json: bool
) -> None:
    """Evaluates a feature file over several weeks and prints each week, and the mean and deviation of all."""
    import numpy as np

    from fraud_assets.stages.declared_evaluation import evaluate_declared

    file = _read_features(features)
    starts = [newest.train_start - timedelta(days=week * newest.train_days) for week in range(weeks)]
    protocols = [replace(newest, train_start=start) for start in starts]
    results = evaluate_declared(lake, settings, file, protocols, seeds)
    names = {"AUC ROC": "auc_roc", "average precision": "average_precision", "card p@100": "card_precision_at_100"}
    figures = {
        result.protocol.train_start: np.array(
            [[getattr(found, name) for name in names.values()] for found in result.evaluations]
        )
        for result in results
    }
    every = np.concatenate(list(figures.values()))
    mean, deviation = every.mean(axis=0), every.std(axis=0)
    if as_json:
        weeks_as_json = {
            str(start): dict(zip(names.values(), week.mean(axis=0).round(6).tolist(), strict=True))
            for start, week in figures.items()
        }
        totals = {
            "mean": dict(zip(names.values(), mean.round(6).tolist(), strict=True)),
            "deviation": dict(zip(names.values(), deviation.round(6).tolist(), strict=True)),
        }
        click.echo(json.dumps({"features": features, "seeds": seeds, "weeks": weeks_as_json, **totals}))
        return
    click.echo(f"Isolation Forest on {len(file.model)} inputs of {features}, lake {lake.root}\n")
    click.echo(f"  {'trained from':<16}" + "".join(f"{name:>20}" for name in names))
    for start, week in figures.items():
        click.echo(f"  {start!s:<16}" + "".join(f"{value:>20.3f}" for value in week.mean(axis=0)))
    spread = [f"{value:.3f} ± {other:.3f}" for value, other in zip(mean, deviation, strict=True)]
    click.echo(f"  {'all':<16}" + "".join(f"{text:>20}" for text in spread))


def _read_features(features: str) -> FeatureFile:
    """Reads a feature file of the package by its name, or any by its path.

    Raises:
        FeatureFileError: The file cannot be read or is invalid.
    """
    from fraud_assets.core.declarations import SHIPPED_FILES, read_feature_file, read_shipped_file
    from fraud_assets.errors import FeatureFileError

    if features in SHIPPED_FILES:
        return read_shipped_file(features)
    try:
        return read_feature_file(Path(features).read_text(encoding="utf-8"), features)
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise FeatureFileError(
            f"The feature file {features!r} cannot be read: {cause}. Give its path, or {' or '.join(SHIPPED_FILES)}."
        ) from error
