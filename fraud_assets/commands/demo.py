"""`fraud-assets demo`: from a stream to scored predictions in a fresh folder, through the Dagster assets."""

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
@click.option("--count", default=20_000, show_default=True, help="Simulated transactions.")
@click.option("--seed", default=1, show_default=True, help="Seed of the simulation.")
@click.option(
    "--data",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Land these files through the drop folder instead of simulating (repeatable).",
)
@click.option("--sample", type=click.Choice(list(FIELD_MAPPINGS)), help="Land this bundled data set instead, mapped.")
@click.option("--home", type=click.Path(path_type=Path), help="Folder to use; default: a new one under FRAUD_HOME.")
@click.option("--lake", help="Make the tables in a new folder or prefix below this URI; default: in the demo's folder.")
def command(
    count: int, seed: int, files: tuple[Path, ...], sample: str | None, home: Path | None, lake: str | None
) -> None:
    """Run the whole platform once in a fresh folder and say what came of it.

    Progress and the summary are for a person; the last line of standard output is one JSON object.

    \b
    Example: fraud-assets demo --count 5000
             fraud-assets demo --data april.parquet --data may.parquet
             fraud-assets demo --sample sparkov
             fraud-assets demo --lake s3://my-bucket/demos
    """
    if sample:
        if files:
            raise click.UsageError("--sample and --data do not go together.")
        files = (sample_file(sample),)
        os.environ["FRAUD_FIELD_MAPPING"] = FIELD_MAPPINGS[sample]
    show_warnings_only()
    # SIGTERM ends the demo as Ctrl-C does, also between Dagster's runs, so that its broker is withdrawn.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    settings = _fresh(home, lake, count, simulated=not files)
    click.echo(f"State of this demo: {settings.home_path}")
    if files:
        with _step(f"Dropping {len(files)} files into incoming/"):
            settings.incoming.mkdir(parents=True, exist_ok=True)
            for file in files:
                _drop(file, settings.incoming)
        _materialize_all(settings, topics=False)
    else:
        from fraud_assets.kafka.broker import embedded_broker

        with embedded_broker(settings):
            with _step(f"Producing {count:,} simulated transactions of {DAYS} days, their labels, some bad messages"):
                _produce(settings, count, seed)
            _materialize_all(settings, topics=True)
    _summarise(settings, time.monotonic() - began)


def _fresh(home: Path | None, lake: str | None, count: int, *, simulated: bool) -> Settings:
    base = load_settings()
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"
    folder = (home or base.home_path / "demo" / stamp).absolute()
    if folder.exists() and any(folder.iterdir()):
        raise FraudAssetsError(f"--home {folder} is not empty: name a new folder, the demo always starts fresh.")
    overrides: dict[str, Any] = {"FRAUD_HOME": str(folder), "FRAUD_FILE_QUIET_SECONDS": "0"}
    # The demo is self-contained: it never touches a broker, lake or registry that is configured for real work.
    for name in ("KAFKA_BOOTSTRAP_SERVERS", "KAFKA_CLIENT_PROPERTIES", "FRAUD_LAKE_URI", "MLFLOW_TRACKING_URI"):
        overrides[name] = ""
    if lake:
        overrides["FRAUD_LAKE_URI"] = f"{lake.rstrip('/')}/{stamp}"
    if simulated and "FRAUD_ALERT_BUDGET_PER_DAY" not in os.environ:
        # About one transaction in a hundred; the default budget is that of a bank's review team.
        overrides["FRAUD_ALERT_BUDGET_PER_DAY"] = str(max(1.0, round(count / DAYS / 100, 1)))
    os.environ.update(overrides)
    return load_settings()


def _drop(file: Path, incoming: Path) -> None:
    # Copied under a name that landing ignores, so that a half-copied file is never taken.
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
        _remember(settings)
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
                    raise _failure(result)


def _remember(settings: Settings) -> None:
    """A `.env` in the demo's folder, so that Dagster's commands started there show the demo."""
    # Which fields are pseudonymised, but never the key: without it nothing more lands there.
    names = (
        "FRAUD_LAKE_URI",
        "FRAUD_FILE_QUIET_SECONDS",
        "FRAUD_ALERT_BUDGET_PER_DAY",
        "FRAUD_FIELD_MAPPING",
        "FRAUD_PSEUDONYMISE",
    )
    values = {name: os.environ[name] for name in names if name in os.environ}
    # Relative: a copy of the demo's folder is a home of its own.
    values["FRAUD_HOME"] = "."
    values["DAGSTER_HOME"] = str(settings.home_path / "dagster")
    lines = [f"{name}={quote_value(value)}\n" for name, value in values.items()]
    (settings.home_path / ".env").write_text("".join(lines), encoding="utf-8")


def _failure(result: Any) -> BaseException:
    """Why a run failed: `KeyboardInterrupt` where a signal stopped it, else the sentence of the step that failed."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.error and data.error.cls_name == "DagsterExecutionInterruptedError":
                return KeyboardInterrupt()
            words = data.user_failure_data.description if data.user_failure_data else None
            return FraudAssetsError(words or str(data.error_display_string).splitlines()[-1])
    return FraudAssetsError("the run failed without a reason")


@contextmanager
def _step(name: str) -> Iterator[None]:
    click.echo(f"  {name} … ", nl=False)
    sys.stdout.flush()
    began = time.monotonic()
    try:
        yield
    except BaseException:
        click.echo("failed")
        raise
    click.echo(f"{time.monotonic() - began:.1f} s")


def _summarise(settings: Settings, seconds: float) -> None:
    from fraud_assets.lake.duckdb_session import connect
    from fraud_assets.lake.tables import Lake
    from fraud_assets.operations.reconciliation import count_alerts, reconcile
    from fraud_assets.stages.training import CALIBRATION_DAYS

    lake = Lake.of(settings)
    counts, alerted = reconcile(lake, settings), count_alerts(lake)
    _say = click.echo
    _say()
    _say(f"  {counts['landed']:>12,} messages landed")
    _say(
        f"  {counts['features']:>12,} features + {counts['quarantined']:,} quarantined + "
        f"{counts['duplicates']:,} duplicates = {counts['features'] + counts['quarantined'] + counts['duplicates']:,}"
    )
    if counts["tombstones"]:
        _say(f"  {counts['tombstones']:>12,} of the quarantined are tombstones, no bad data")
    _say(f"  {counts['labels']:>12,} labels of the past")
    week = count_alerts(lake, timedelta(days=CALIBRATION_DAYS)) / CALIBRATION_DAYS
    budget = f"budget {settings.alert_budget_per_day:g} a day, {week:.1f} a day in the last {CALIBRATION_DAYS} days"
    _say(f"  {counts['scored']:>12,} scored, {alerted:,} of them alerts ({budget})")
    _say("\n  Top alerts (a higher score is more suspicious)")
    _say(f"    {'score':>7}  {'amount':>9}  {'when':<16}  {'customer':>9}  {'terminal':>9}  label")
    with connect(settings) as connection:
        for row in _top_alerts(connection, lake):
            score, amount, when, *ids, fraud = row
            customer, terminal = (name if len(name) <= 16 else f"{name[:8]}…" for name in ids)
            _say(f"    {score:7.4f}  {amount:9.2f}  {when:<16}  {customer:>9}  {terminal:>9}  {fraud}")
    _say(f"\n  Tables    {lake.root}")
    _say(f"  Registry  {settings.mlflow_uri}")
    _say("\n  Next")
    dagster = Path(sys.executable).with_name("dagster")
    _say(
        f"    cd {shlex.quote(str(settings.home_path))} && {shlex.quote(str(dagster))} dev -m fraud_assets.definitions"
    )
    _say("                this demo in the web UI, its sensors on (.env in that folder names it)")
    _say("    make dev    the same, live")
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
    _say(json.dumps(summary))


def _top_alerts(connection: Any, lake: Any) -> list[tuple[Any, ...]]:
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
