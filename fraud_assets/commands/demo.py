"""`fraud-assets demo`: runs the whole platform once in a new folder, from messages to scored predictions."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from fraud_assets.commands.console import show_warnings_only
from fraud_assets.errors import FraudAssetsError
from fraud_assets.samples import FIELD_MAPPINGS, sample_file
from fraud_assets.settings import Settings, load_settings
from fraud_assets.system.env_file import quote_value

DAYS = 60
BAD_MESSAGES = 26
STEPS = {
    "Landing": ["fraud_labels", "raw_transactions"],
    "Features and quarantine": ["transaction_features", "quarantined_transactions"],
    "Training, registry, threshold": ["isolation_forest", "alert_thresholds"],
    "Scoring": ["fraud_predictions"],
}


@click.command()
@click.option("--count", default=20_000, show_default=True, help="Number of simulated transactions.")
@click.option("--seed", default=1, show_default=True, help="Random seed of the simulation.")
@click.option(
    "--data",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Land this file through the drop folder instead of simulating. Repeatable.",
)
@click.option(
    "--sample", type=click.Choice(list(FIELD_MAPPINGS)), help="Land this bundled data set instead of simulating."
)
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    help="New or empty folder for the demo. Default: a new one in FRAUD_HOME/demo.",
)
@click.option("--lake", help="Create the tables under this URI, in a new folder. Default: in the demo's folder.")
def command(
    count: int, seed: int, files: tuple[Path, ...], sample: str | None, home: Path | None, lake: str | None
) -> None:
    """Run the whole platform once in a new folder and print a summary.

    The demo produces or lands data, computes features, trains a model and scores every transaction through the Dagster
    assets. It does not use a configured broker, lake or model registry. The last line of standard output is one JSON
    object; the lines before it are progress and a summary, with the command that opens the demo in the web UI.

    \b
    Example: fraud-assets demo --count 5000
             fraud-assets demo --data april.parquet --data may.parquet
             fraud-assets demo --sample sparkov
             fraud-assets demo --lake s3://my-bucket/demos
    """
    if sample:
        if files:
            raise click.UsageError("--sample and --data cannot be used together.")
        files = (sample_file(sample),)
        os.environ["FRAUD_FIELD_MAPPING"] = FIELD_MAPPINGS[sample]
    show_warnings_only()
    # SIGTERM must end the demo like Ctrl-C, even between Dagster's runs, so that its broker stops.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start = time.monotonic()
    settings = _prepare_settings(home, lake, count, simulated=not files)
    click.echo(f"State of this demo: {settings.home_path}")
    if files:
        with _step(f"Dropping {len(files)} files into incoming/"):
            settings.incoming.mkdir(parents=True, exist_ok=True)
            for file in files:
                _drop_file(file, settings.incoming)
        _materialize_all(settings, topics=False)
    else:
        from fraud_assets.kafka.broker import embedded_broker

        with embedded_broker(settings):
            with _step(f"Producing {count:,} simulated transactions of {DAYS} days, their labels, some bad messages"):
                _produce(settings, count, seed)
            _materialize_all(settings, topics=True)
    _print_summary(settings, time.monotonic() - start)


def _prepare_settings(home: Path | None, lake: str | None, count: int, *, simulated: bool) -> Settings:
    base = load_settings()
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"
    folder = (home or base.home_path / "demo" / stamp).absolute()
    if folder.exists() and any(folder.iterdir()):
        raise FraudAssetsError(f"The folder --home {folder} is not empty. Name a new folder.")
    overrides: dict[str, Any] = {"FRAUD_HOME": str(folder), "FRAUD_FILE_QUIET_SECONDS": "0"}
    # The demo must not use a broker, lake or registry that is configured for real work.
    for name in ("KAFKA_BOOTSTRAP_SERVERS", "KAFKA_CLIENT_PROPERTIES", "FRAUD_LAKE_URI", "MLFLOW_TRACKING_URI"):
        overrides[name] = ""
    if lake:
        overrides["FRAUD_LAKE_URI"] = f"{lake.rstrip('/')}/{stamp}"
    if simulated and "FRAUD_ALERT_BUDGET_PER_DAY" not in os.environ:
        # About one transaction in a hundred. The default budget fits the review team of a bank.
        overrides["FRAUD_ALERT_BUDGET_PER_DAY"] = str(max(1.0, round(count / DAYS / 100, 1)))
    os.environ.update(overrides)
    return load_settings()


def _drop_file(file: Path, incoming: Path) -> None:
    # Landing ignores this name, so it cannot land a file that is only partly copied.
    part = incoming / f"{file.name}.part"
    shutil.copyfile(file, part)
    part.rename(incoming / file.name)


def _produce(settings: Settings, count: int, seed: int) -> None:
    from fraud_assets.commands.simulate import produce_simulated
    from fraud_assets.engines.local.landing import land_topics
    from fraud_assets.lake.tables import Lake

    lake = Lake.of(settings)

    def land(_: str = "") -> None:
        land_topics(lake, settings)

    produce_simulated(settings, count=count, days=DAYS, seed=seed, bad=BAD_MESSAGES, on_wait=land)


def _materialize_all(settings: Settings, *, topics: bool) -> None:
    with _step("Loading Dagster and the platform's definitions"):
        import dagster as dg

        from fraud_assets.definitions import defs
        from fraud_assets.operations.setup_home import prepare_home

        prepare_home(settings)
        _write_env_file(settings)
        instance = dg.DagsterInstance.from_config(str(settings.home_path / "dagster"))
    with instance:
        for name, selection in STEPS.items():
            with _step(name):
                result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
                    asset_selection=[dg.AssetKey(key) for key in selection],
                    instance=instance,
                    run_config={
                        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                        "ops": {"landing": {"config": {"topics": topics}}} if name == "Landing" else {},
                    },
                    raise_on_error=False,
                )
                if not result.success:
                    raise _find_failure(result)


def _write_env_file(settings: Settings) -> None:
    """Writes a `.env` to the demo's folder, so that Dagster commands started there use the demo."""
    # The key of the pseudonyms is never written. Without it no more data can land in the demo's lake.
    names = (
        "FRAUD_LAKE_URI",
        "FRAUD_FILE_QUIET_SECONDS",
        "FRAUD_ALERT_BUDGET_PER_DAY",
        "FRAUD_FIELD_MAPPING",
        "FRAUD_PSEUDONYMISE",
    )
    values = {name: os.environ[name] for name in names if name in os.environ}
    # The path is relative, so that a copy of the demo's folder is an independent home.
    values["FRAUD_HOME"] = "."
    values["DAGSTER_HOME"] = str(settings.home_path / "dagster")
    lines = [f"{name}={quote_value(value)}\n" for name, value in values.items()]
    (settings.home_path / ".env").write_text("".join(lines), encoding="utf-8")


def _find_failure(result: Any) -> BaseException:
    """Returns the cause of a failed run: `KeyboardInterrupt` after a signal, else an error with the step's message."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.error and data.error.cls_name == "DagsterExecutionInterruptedError":
                return KeyboardInterrupt()
            message = data.user_failure_data.description if data.user_failure_data else None
            return FraudAssetsError(message or str(data.error_display_string).splitlines()[-1])
    return FraudAssetsError("The run failed without an error message. Open the run in the web UI of the demo.")


@contextmanager
def _step(name: str) -> Iterator[None]:
    click.echo(f"  {name} … ", nl=False)
    sys.stdout.flush()
    start = time.monotonic()
    try:
        yield
    except BaseException:
        click.echo("failed")
        raise
    click.echo(f"{time.monotonic() - start:.1f} s")


def _print_summary(settings: Settings, seconds: float) -> None:
    from fraud_assets.lake.duckdb_session import connect
    from fraud_assets.lake.tables import Lake
    from fraud_assets.operations.reconciliation import count_alerts, reconcile
    from fraud_assets.stages.calibration import CALIBRATION_DAYS

    lake = Lake.of(settings)
    counts, alerted = reconcile(lake, settings), count_alerts(lake)
    click.echo()
    click.echo(f"  {counts['landed']:>12,} messages landed")
    click.echo(
        f"  {counts['features']:>12,} features + {counts['quarantined']:,} quarantined + "
        f"{counts['duplicates']:,} duplicates = {counts['features'] + counts['quarantined'] + counts['duplicates']:,}"
    )
    if counts["tombstones"]:
        click.echo(f"  {counts['tombstones']:>12,} of the quarantined are tombstones, which are not bad data")
    click.echo(f"  {counts['labels']:>12,} labels")
    week = count_alerts(lake, timedelta(days=CALIBRATION_DAYS)) / CALIBRATION_DAYS
    budget = f"budget {settings.alert_budget_per_day:g} a day, {week:.1f} a day in the last {CALIBRATION_DAYS} days"
    click.echo(f"  {counts['scored']:>12,} scored, {alerted:,} of them alerts ({budget})")
    click.echo("\n  Top alerts (a higher score is more suspicious)")
    click.echo(f"    {'score':>7}  {'amount':>9}  {'when':<16}  {'customer':>9}  {'terminal':>9}  label")
    with connect(settings) as connection:
        for row in _read_top_alerts(connection, lake):
            score, amount, when, *ids, fraud = row
            customer, terminal = (name if len(name) <= 16 else f"{name[:8]}…" for name in ids)
            click.echo(f"    {score:7.4f}  {amount:9.2f}  {when:<16}  {customer:>9}  {terminal:>9}  {fraud}")
    click.echo(f"\n  Tables    {lake.root}")
    click.echo(f"  Registry  {settings.mlflow_uri}")
    click.echo("\n  Next")
    dagster = Path(sys.executable).with_name("dagster")
    click.echo(
        f"    cd {shlex.quote(str(settings.home_path))} && {shlex.quote(str(dagster))} dev -m fraud_assets.definitions"
    )
    click.echo("                        opens this demo in the web UI and starts its sensors")
    click.echo("    fraud-assets dev    runs the platform with live traffic, in the folder where you started this demo")
    summary = {
        "landed": counts["landed"],
        "features": counts["features"],
        "quarantined": counts["quarantined"],
        "duplicates": counts["duplicates"],
        "scored": counts["scored"],
        "alerts": alerted,
        "seconds": round(seconds, 1),
        "lake": lake.root,
    }
    click.echo(json.dumps(summary))


def _read_top_alerts(connection: Any, lake: Any) -> list[tuple[Any, ...]]:
    from fraud_assets.core.schema import fraud_labels, fraud_predictions, transaction_features
    from fraud_assets.lake.scan import register_view

    for table in (fraud_labels, fraud_predictions, transaction_features):
        register_view(connection, table.name, lake.open(table))
    return connection.sql(
        """
        with top as (
            select transaction_id, score from fraud_predictions where is_alert order by score desc, 1 limit 8
        ), verdicts as (
            select transaction_id, arg_max(is_fraud, labelled_at) as is_fraud from fraud_labels
            semi join top using (transaction_id) group by 1
        )
        select top.score, f.tx_amount, left(cast(f.tx_datetime at time zone 'UTC' as varchar), 16), f.customer_id,
            f.terminal_id, case when v.is_fraud then 'fraud' when v.is_fraud is null then '-' else 'genuine' end
        from top join transaction_features f using (transaction_id) left join verdicts v using (transaction_id)
        order by top.score desc
        """
    ).fetchall()
