"""Checks Dagster: its home, the daemon, sensors and schedules, and failed runs."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fraud_assets.doctor.finding import Finding, fail, ok, warn
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from dagster import DagsterInstance

_SILENT_SECONDS = 120
"""Seconds without a heartbeat after which the daemon counts as ended. It sends one every 30 s."""

_LOOK_BACK = timedelta(days=1)


def check_dagster(settings: Settings) -> list[Finding]:
    """Checks Dagster's home and daemon; looks for sensors and schedules that are off or fail, and for failed runs."""
    home = _find_home(settings)
    if home is None:
        fix = "Run `fraud-assets setup`. Without Dagster, only `fraud-assets land` and single commands work."
        return [warn("dagster", f"no dagster.yaml in {settings.home_path / 'dagster'} or DAGSTER_HOME", fix)]
    import dagster as dg

    try:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            return [_check_home(home, settings, dg.__version__), *_check_daemon(instance), *_check_triggers(instance),
                    *_check_runs(instance)]  # fmt: skip
    # Dagster raises the exceptions of its database driver and of its YAML reader unchanged.
    except Exception as error:  # noqa: BLE001
        cause = " ".join(str(error).split())[:200]
        fix = f"Correct {home / 'dagster.yaml'}, or move it away and run `fraud-assets setup`."
        return [fail("dagster", f"{home} cannot be used ({type(error).__name__}: {cause})", fix)]


def _check_home(home: Path, settings: Settings, version: str) -> Finding:
    """Checks that Dagster's home belongs to this FRAUD_HOME: a copied `.env` still names the original's."""
    text = f"Dagster {version}, {home}"
    other = home.parent
    if (other / "incoming").is_dir() and settings.home_path.is_dir() and not other.samefile(settings.home_path):
        fix = "Run `fraud-assets setup`, which writes the DAGSTER_HOME of this home to `.env`, or correct DAGSTER_HOME."
        return warn("dagster", f"{text} belongs to another FRAUD_HOME than {settings.home_path}", fix)
    return ok("dagster", text)


def _find_home(settings: Settings) -> Path | None:
    from fraud_assets.dagster_events import find_dagster_home

    return find_dagster_home(settings)


def _check_daemon(instance: DagsterInstance) -> list[Finding]:
    beats = instance.get_daemon_heartbeats()
    needed = [kind for kind in instance.get_required_daemon_types() if kind in ("SENSOR", "SCHEDULER")]
    needed += [kind for kind in instance.get_required_daemon_types() if kind == "QUEUED_RUN_COORDINATOR"]
    start = "Start `fraud-assets dev`, or `dagster-daemon run` in addition to `dagster-webserver`."
    if not any(kind in beats for kind in needed):
        return [warn("daemon", "has never run, so sensors and schedules do nothing", start)]
    last = min((beats[kind].timestamp if kind in beats else 0.0) for kind in needed)
    silent = time.time() - last
    if silent > _SILENT_SECONDS:
        return [fail("daemon", f"no heartbeat since {_format_time(last)}, so sensors and schedules do nothing", start)]
    errors = [error.message.strip().splitlines()[0] for kind in needed for error in beats[kind].errors or ()]
    if errors:
        return [fail("daemon", f"runs with errors: {errors[0][:200]}", "Read the log of the daemon.")]
    return [ok("daemon", f"last heartbeat {silent:.0f} s ago")]


def _check_triggers(instance: DagsterInstance) -> list[Finding]:
    """Looks for sensors and schedules that are turned off, and for those whose last tick failed."""
    from fraud_assets.schedules import SCHEDULES
    from fraud_assets.sensors import SENSORS

    names = {*(sensor.name for sensor in SENSORS), *(schedule.name for schedule in SCHEDULES)}
    known = [state for state in instance.all_instigator_state() if state.name in names]
    off, found = [], []
    for state in known:
        if state.status.value == "STOPPED":
            off.append(state.name)
            continue
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1):
            if tick.status.value == "FAILURE" and tick.error is not None:
                reason = " ".join((tick.error.cause or tick.error).message.split())[:400]
                fix = f"Remove that cause. {state.name} runs again by itself."
                found.append(fail("sensors", f"{state.name} failed at {_format_time(tick.timestamp)}: {reason}", fix))
    if off:
        fix = "Turn them on in the web UI, under Automation, unless they are off on purpose."
        found.append(warn("sensors", f"turned off: {', '.join(sorted(off))}", fix))
    return found or [ok("sensors", f"{len(known)} of {len(names)} sensors and schedules known, none is off or fails")]


def _check_runs(instance: DagsterInstance) -> list[Finding]:
    import dagster as dg

    since = datetime.now(UTC) - _LOOK_BACK
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], created_after=since)
    records = instance.get_run_records(failed, limit=100)
    if not records:
        return [ok("runs", "none failed within a day")]
    last = records[0].dagster_run
    later = dg.RunsFilter(
        job_name=last.job_name, statuses=[dg.DagsterRunStatus.SUCCESS], created_after=records[0].create_timestamp
    )
    text = f"{len(records)} failed within a day, the last {last.run_id} of {last.job_name}"
    if instance.get_run_records(later, limit=1):
        return [ok("runs", f"{text}; a later run of that job succeeded")]
    return [warn("runs", text, "Look at it in the web UI, under Runs. No message is skipped in the meantime.")]


def _format_time(timestamp: float) -> str:
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%S} UTC" if timestamp else "an unknown time"
