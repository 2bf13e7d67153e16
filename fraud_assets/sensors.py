"""What starts runs by itself. A sensor only looks and requests; every effect is an asset's.

What is pending is read from the tables alone, so a restart or a wiped Dagster home loses nothing.
"""

import json
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import dagster as dg

from fraud_assets.errors import SettingError
from fraud_assets.resources import PlatformResource
from fraud_assets.schedules import land_files, score_new_transactions
from fraud_assets.settings import Settings, load_settings

SENSOR_TAG = "fraud/sensor"
PROGRESS_TAG = "fraud/progress-"
RUN_KEY_TAG = "dagster/run_key"
FAILED = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
ENDED = [*FAILED, dg.DagsterRunStatus.SUCCESS]
_STUCK_AGAIN_SECONDS = 600
# Queued runs too: Dagster's own list of runs in progress leaves them out.
UNDER_WAY = [status for status in dg.DagsterRunStatus if status not in ENDED]


class StuckError(Exception):
    """The same messages failed too often in a row; a person has to look."""


def _interval_seconds() -> int:
    """FRAUD_SENSOR_INTERVAL_SECONDS. With a wrong setting the definitions still load; runs and sensors then name it."""
    try:
        return load_settings().sensor_interval_seconds
    except SettingError:
        return int(Settings.model_fields["sensor_interval_seconds"].default)


def in_flight(instance: dg.DagsterInstance, sensor: str, silent_seconds: float) -> bool:
    """Whether a run that the sensor requested has not ended yet.

    A run whose process was killed stays "started" forever: Dagster's default launcher cannot see it. One without
    any event for `silent_seconds` is marked failed, so that a person sees it and the next attempt goes on.
    """
    alive = False
    for record in instance.get_run_records(dg.RunsFilter(tags={SENSOR_TAG: sensor}, statuses=UNDER_WAY)):
        run = record.dagster_run
        last = instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
        silent = time.time() - (last[0].timestamp if last else record.create_timestamp.timestamp())
        if run.status is dg.DagsterRunStatus.STARTED and silent > silent_seconds:
            instance.report_run_failed(run, f"No event for {silent:.0f} s (FRAUD_RUN_SILENT_SECONDS): it was killed.")
        else:
            alive = True
    return alive


def interrupted(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a run failed only because Dagster was stopped under it (Ctrl-C, a restart), no fault of the work."""
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        error = entry.dagster_event.step_failure_data.error if entry.dagster_event else None
        if error and error.cls_name == "DagsterExecutionInterruptedError":
            return True
    return False


def request(
    instance: dg.DagsterInstance, sensor: str, progress: Mapping[str, str], target: str, attempts: int, **run: Any
) -> dg.RunRequest | dg.SkipReason:
    """A run under a key that Dagster has not seen: how far each stage is, where the work ends, and the attempt.

    Raises:
        StuckError: `attempts` runs failed without progress of one stage, whatever came in since.
    """
    ended = 0
    for stage, mark in progress.items():
        tags = {SENSOR_TAG: sensor, PROGRESS_TAG + stage: mark}
        runs = instance.get_runs(dg.RunsFilter(tags=tags, statuses=FAILED))
        ended = max(ended, len(runs))
        failed = [run for run in runs if len(runs) >= attempts and not interrupted(instance, run)]
        if len(failed) >= attempts:
            raise StuckError(
                f"{len(failed)} runs failed on the same messages without any progress, the last is run "
                f"{failed[0].run_id}. Nothing is lost and nothing is skipped: look at that run, remove the cause, then "
                f"materialize its assets by hand; {sensor} goes on from there. (FRAUD_SENSOR_ATTEMPTS is {attempts}.)"
            )
    key = "/".join([*(f"{stage}:{mark}" for stage, mark in progress.items()), target, str(ended)])
    done = instance.get_runs(dg.RunsFilter(tags={SENSOR_TAG: sensor, RUN_KEY_TAG: key}), limit=1)
    if done:
        # Dagster would drop the request without a word.
        return dg.SkipReason(
            f"Run {done[0].run_id} was for exactly this and ended as {done[0].status.value}, but it is still to do. It "
            "is asked for again once more comes in; materialize the assets by hand to have it now."
        )
    tags = {SENSOR_TAG: sensor, **{PROGRESS_TAG + stage: mark for stage, mark in progress.items()}}
    return dg.RunRequest(run_key=key, tags=tags, **run)


@dg.sensor(
    name="new_files_sensor",
    job=score_new_transactions,
    minimum_interval_seconds=_interval_seconds(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Requests features and predictions (and the first training) when landed messages are pending.",
)
def new_files_sensor(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.RunRequest | dg.SkipReason:
    """One coalesced run at a time, from the stored positions to what has landed."""
    from fraud_assets.stages.backlog import find_backlog, has_champion

    settings, lake = platform.settings(), platform.lake()
    if in_flight(context.instance, "new_files_sensor", settings.run_silent_seconds):
        return dg.SkipReason("A run is under way; what lands meanwhile is taken by the next one.")
    # What is pending follows from these alone; versions are a cheap hint that nothing changed, never the work.
    facts = [settings.lake, settings.train_min_rows, settings.train_days, has_champion(settings), lake.versions()]
    look = json.dumps(facts)
    if context.cursor == look:
        return dg.SkipReason("No table has changed since the last look.")
    work = find_backlog(lake, settings)
    if not work.assets:
        context.update_cursor(look)
        return dg.SkipReason(work.reason)
    return request(
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
    minimum_interval_seconds=_interval_seconds(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Lands dropped files where no `fraud-assets land` process runs.",
)
def dropped_files_sensor(
    context: dg.SensorEvaluationContext, platform: PlatformResource
) -> dg.RunRequest | dg.SkipReason:
    """Requests landing of the drop folder alone; topics are the lander's."""
    from fraud_assets.ingest.files.drop_folder import folder_remedy, waiting_entries
    from fraud_assets.ingest.service.presence import lander_is_running

    settings = platform.settings()
    try:
        waiting = waiting_entries(settings)
    except OSError as error:
        return dg.SkipReason(f"{settings.incoming} cannot be read: {error.strerror or error}.")
    if not waiting.files:
        remedies = "".join(f" {folder_remedy(folder)}" for folder in waiting.folders)
        return dg.SkipReason(f"No file waits in {settings.incoming}.{remedies}")
    if lander_is_running(settings):
        return dg.SkipReason("`fraud-assets land` runs and takes them.")
    if in_flight(context.instance, "dropped_files_sensor", settings.run_silent_seconds):
        return dg.SkipReason("A landing run is under way.")
    states = {state: file.name for file in waiting.files if (state := _state(file))}
    if not states:
        return dg.SkipReason("The files were taken at this moment.")
    # A landing that fails leaves the oldest file where it is, whatever else is dropped.
    oldest = min(states)
    return request(
        context.instance,
        "dropped_files_sensor",
        {"oldest_file": _digest([oldest, states[oldest]])},
        # A file that a successful run had to leave there is tried again after a while, also where nothing else comes.
        _digest([sorted(states.items()), time.time() // _STUCK_AGAIN_SECONDS]),
        settings.sensor_attempts,
        run_config={"ops": {"landing": {"config": {"topics": False}}}},
    )


def _state(file: Path) -> tuple[int, int] | None:
    """When the file came and was changed; the same file dropped again came anew. None: it is gone."""
    try:
        # Of a link itself: what it leads to may be a loop or closed to us.
        status = file.lstat()
    except FileNotFoundError:
        return None
    return status.st_ctime_ns, status.st_mtime_ns


def _digest(value: object) -> str:
    return sha256(json.dumps(value).encode()).hexdigest()[:16]


SENSORS = [new_files_sensor, dropped_files_sensor]
