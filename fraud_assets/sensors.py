"""Sensors that request runs for new data. A sensor only reads; the assets of the requested run write.

Pending work is derived from the tables only, so a restart or a deleted Dagster home loses nothing.
"""

import json
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import dagster as dg

from fraud_assets.ingest.files.drop_folder import describe_folder
from fraud_assets.resources import PlatformResource
from fraud_assets.schedules import land_files, score_new_transactions
from fraud_assets.settings import load_settings_or_defaults

# Dagster's web UI hides tags with this prefix.
SENSOR_TAG = ".dagster/fraud_sensor"
PROGRESS_TAG = ".dagster/fraud_progress_"
RUN_KEY_TAG = "dagster/run_key"
FAILED = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
ENDED = [*FAILED, dg.DagsterRunStatus.SUCCESS]
_STUCK_RETRY_SECONDS = 600
_INTERVAL_SECONDS = load_settings_or_defaults().sensor_interval_seconds
# Includes queued runs, which Dagster's own list of runs in progress omits.
IN_PROGRESS = [status for status in dg.DagsterRunStatus if status not in ENDED]


class StuckError(Exception):
    """Too many runs in a row failed on the same messages. The cause must be removed manually."""


def has_run_in_progress(instance: dg.DagsterInstance, sensor: str, silent_seconds: float) -> bool:
    """Returns whether a run that the sensor requested has not ended yet.

    A run whose process was killed stays in status "started" forever, because Dagster's default launcher does not notice
    it. A run without an event for `silent_seconds` is therefore marked as failed, so that users see it and the
    sensor can request the next attempt.
    """
    alive = False
    for record in instance.get_run_records(dg.RunsFilter(tags={SENSOR_TAG: sensor}, statuses=IN_PROGRESS)):
        run = record.dagster_run
        last = instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
        silent = time.time() - (last[0].timestamp if last else record.create_timestamp.timestamp())
        if run.status is dg.DagsterRunStatus.STARTED and silent > silent_seconds:
            reason = f"The run had no event for {silent:.0f} s (FRAUD_RUN_SILENT_SECONDS) and counts as killed."
            instance.report_run_failed(run, reason)
        else:
            alive = True
    return alive


def was_interrupted(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Returns whether a run failed only because Dagster was stopped during it (Ctrl-C, a restart)."""
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        error = entry.dagster_event.step_failure_data.error if entry.dagster_event else None
        if error and error.cls_name == "DagsterExecutionInterruptedError":
            return True
    return False


def find_wait_seconds(instance: dg.DagsterInstance, sensor: str, interval_seconds: float) -> float:
    """Returns the seconds until a sensor may request its next run; 0 or less after a quiet time."""
    last = instance.get_run_records(dg.RunsFilter(tags={SENSOR_TAG: sensor}), limit=1)
    return last[0].create_timestamp.timestamp() + interval_seconds - time.time() if last else 0.0


def request_run(
    instance: dg.DagsterInstance, sensor: str, progress: Mapping[str, str], target: str, attempts: int, **run: Any
) -> dg.RunRequest | dg.SkipReason:
    """Requests a run with a new run key, made of the progress of each stage, the target and the number of the attempt.

    Args:
        instance: Dagster's instance.
        sensor: name of the sensor.
        progress: for each stage, a text that changes when the stage makes progress.
        target: identifies the end of the pending work.
        attempts: number of failed runs without progress after which the sensor stops.
        **run: further arguments of `RunRequest`.

    Returns:
        The request, or the reason to skip if an earlier run already had the same key.

    Raises:
        StuckError: `attempts` runs failed without progress of a stage, regardless of new data.
    """
    ended = 0
    for stage, mark in progress.items():
        tags = {SENSOR_TAG: sensor, PROGRESS_TAG + stage: mark}
        runs = instance.get_runs(dg.RunsFilter(tags=tags, statuses=FAILED))
        ended = max(ended, len(runs))
        failed = [run for run in runs if len(runs) >= attempts and not was_interrupted(instance, run)]
        if len(failed) >= attempts:
            raise StuckError(
                f"{len(failed)} runs failed on the same messages without progress; the last one is run "
                f"{failed[0].run_id} (FRAUD_SENSOR_ATTEMPTS is {attempts}). No data is lost or skipped. Look at that "
                f"run, remove the cause, then materialize its assets manually; {sensor} continues after that."
            )
    key = "/".join([*(f"{stage}:{mark}" for stage, mark in progress.items()), target, str(ended)])
    done = instance.get_runs(dg.RunsFilter(tags={SENSOR_TAG: sensor, RUN_KEY_TAG: key}), limit=1)
    if done:
        # Dagster would drop the request without a message.
        return dg.SkipReason(
            f"Run {done[0].run_id} covered this work and ended as {done[0].status.value}, but the work is still "
            "pending. The sensor requests another run when more data arrives. To process it now, materialize the "
            "assets manually."
        )
    tags = {SENSOR_TAG: sensor, **{PROGRESS_TAG + stage: mark for stage, mark in progress.items()}}
    return dg.RunRequest(run_key=key, tags=tags, **run)


@dg.sensor(
    name="new_files_sensor",
    job=score_new_transactions,
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Watches the landing table `raw_transactions` for new files, which hold newly landed messages. "
    "Requests features and predictions for them, and the first training as soon as there is enough data. Only one of "
    "its runs is in progress at a time.",
)
def new_files_sensor(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.RunRequest | dg.SkipReason:
    """Requests one run for everything that has landed since the positions stored in the tables."""
    from fraud_assets.stages.backlog import find_backlog, has_champion

    settings, lake = platform.settings(), platform.lake()
    if has_run_in_progress(context.instance, "new_files_sensor", settings.run_silent_seconds):
        return dg.SkipReason("A run is in progress. The next run processes messages that land during it.")
    # Pending work depends only on these values. If they are unchanged, the tables need not be read.
    inputs = [settings.lake, settings.train_min_rows, settings.train_days, has_champion(settings), lake.versions()]
    cursor = json.dumps(inputs)
    if context.cursor == cursor:
        return dg.SkipReason("No table has changed since the last evaluation.")
    wait = find_wait_seconds(context.instance, "new_files_sensor", settings.run_interval_seconds)
    if wait > 0:
        return dg.SkipReason(
            f"The last run started less than {settings.run_interval_seconds} s ago (FRAUD_RUN_INTERVAL_SECONDS). The "
            f"next one can start in {wait:.0f} s."
        )
    work = find_backlog(lake, settings)
    if not work.assets:
        context.update_cursor(cursor)
        return dg.SkipReason(work.reason)
    return request_run(
        context.instance,
        "new_files_sensor",
        work.progress,
        work.target,
        settings.sensor_attempts,
        asset_selection=[dg.AssetKey(name) for name in work.assets],
        run_config={"ops": {"model": {"config": {"skip_too_little_data": True}}}} if work.training else {},
    )


@dg.sensor(
    name="dropped_files_sensor",
    job=land_files,
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Watches the drop folder FRAUD_HOME/incoming. Requests a run that lands its files if no `fraud-assets "
    "land` process is running.",
)
def dropped_files_sensor(
    context: dg.SensorEvaluationContext, platform: PlatformResource
) -> dg.RunRequest | dg.SkipReason:
    """Requests a run that lands only the drop folder, because `fraud-assets land` lands the topics."""
    from fraud_assets.ingest.files.drop_folder import find_waiting_entries
    from fraud_assets.ingest.service.presence import is_lander_running

    settings = platform.settings()
    try:
        waiting = find_waiting_entries(settings)
    except OSError as error:
        return dg.SkipReason(f"The drop folder {settings.incoming} cannot be read: {error.strerror or error}.")
    if not waiting.files:
        remedies = "".join(f" {describe_folder(folder)}" for folder in waiting.folders)
        return dg.SkipReason(f"No files are waiting in {settings.incoming}.{remedies}")
    if is_lander_running(settings):
        return dg.SkipReason("`fraud-assets land` is running and lands the files.")
    if has_run_in_progress(context.instance, "dropped_files_sensor", settings.run_silent_seconds):
        return dg.SkipReason("A landing run is in progress.")
    states = {state: file.name for file in waiting.files if (state := _read_times(file))}
    if not states:
        return dg.SkipReason("The waiting files have just been removed from the drop folder.")
    # A failed landing leaves the oldest file in place, so progress means that another file is the oldest.
    oldest = min(states)
    return request_run(
        context.instance,
        "dropped_files_sensor",
        {"oldest_file": _digest([oldest, states[oldest]])},
        # A file that stayed after a successful run is retried after this time, even if no other file arrives.
        _digest([sorted(states.items()), time.time() // _STUCK_RETRY_SECONDS]),
        settings.sensor_attempts,
        run_config={"ops": {"landing": {"config": {"topics": False}}}},
    )


def _read_times(file: Path) -> tuple[int, int] | None:
    """Returns the change and modification time of a file in nanoseconds, or None if it is gone.

    The change time differs if the same file is dropped again.
    """
    try:
        # `lstat` reads the link itself, because its target may be a loop or unreadable.
        status = file.lstat()
    except FileNotFoundError:
        return None
    return status.st_ctime_ns, status.st_mtime_ns


def _digest(value: object) -> str:
    return sha256(json.dumps(value).encode()).hexdigest()[:16]


SENSORS = [new_files_sensor, dropped_files_sensor]
