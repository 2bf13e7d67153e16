"""What starts runs by itself. A sensor only looks and requests; every effect is an asset's.

What is pending is read from the tables alone, so a restart or a wiped Dagster home loses nothing.
"""

import json
from hashlib import sha256

import dagster as dg
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES

from fraud_assets.resources import PlatformResource
from fraud_assets.schedules import land_files, score_new_transactions
from fraud_assets.settings import load_settings

SENSOR_TAG = "fraud/sensor"
START_TAG = "fraud/start"
FAILED = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


class StuckError(Exception):
    """The same messages failed too often in a row; a person has to look."""


def in_flight(instance: dg.DagsterInstance, sensor: str) -> bool:
    """Whether a run that the sensor requested has not ended yet."""
    filters = dg.RunsFilter(tags={SENSOR_TAG: sensor}, statuses=IN_PROGRESS_RUN_STATUSES)
    return bool(instance.get_run_records(filters, limit=1))


def request(
    instance: dg.DagsterInstance, sensor: str, start: str, target: str, attempts: int, **run: object
) -> dg.RunRequest:
    """A run under a key that Dagster has not seen: where the work starts, where it ends, and the attempt.

    Raises:
        StuckError: `attempts` runs from the same start have failed, whatever came in since.
    """
    failed = instance.get_runs(dg.RunsFilter(tags={SENSOR_TAG: sensor, START_TAG: start}, statuses=FAILED))
    if len(failed) >= attempts:
        last = failed[0]
        raise StuckError(
            f"{len(failed)} runs in a row failed on the same messages, the last is run {last.run_id}. Nothing is lost "
            f"and nothing is skipped: look at that run, remove the cause, then materialize its assets by hand; "
            f"{sensor} goes on from there. (FRAUD_SENSOR_ATTEMPTS is {attempts}.)"
        )
    return dg.RunRequest(
        run_key=f"{start}:{target}:{len(failed)}", tags={SENSOR_TAG: sensor, START_TAG: start}, **run
    )


@dg.sensor(
    name="new_files_sensor",
    job=score_new_transactions,
    minimum_interval_seconds=load_settings().sensor_interval_seconds,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Requests features and predictions (and the first training) when landed messages are pending.",
)
def new_files_sensor(
    context: dg.SensorEvaluationContext, platform: PlatformResource
) -> dg.RunRequest | dg.SkipReason:
    """One coalesced run at a time, from the stored positions to what has landed."""
    from fraud_assets.pipeline.backlog import backlog

    settings, lake = platform.settings(), platform.lake()
    if in_flight(context.instance, "new_files_sensor"):
        return dg.SkipReason("A run is under way; what lands meanwhile is taken by the next one.")
    # Versions are a cheap hint that nothing changed, never what the work is derived from.
    versions = json.dumps(lake.versions())
    if context.cursor == versions:
        return dg.SkipReason("No table has changed since the last look.")
    work = backlog(lake, settings)
    if not work.assets:
        context.update_cursor(versions)
        return dg.SkipReason(work.reason)
    return request(
        context.instance,
        "new_files_sensor",
        work.start,
        work.target,
        settings.sensor_attempts,
        asset_selection=[dg.AssetKey(name) for name in work.assets],
        run_config={"ops": {"model": {"config": {"skip_too_little_data": True}}}} if work.training else {},
    )


@dg.sensor(
    name="dropped_files_sensor",
    job=land_files,
    minimum_interval_seconds=load_settings().sensor_interval_seconds,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Lands dropped files where no `fraud-assets land` process runs.",
)
def dropped_files_sensor(
    context: dg.SensorEvaluationContext, platform: PlatformResource
) -> dg.RunRequest | dg.SkipReason:
    """Requests landing of the drop folder alone; topics are the lander's."""
    from fraud_assets.pipeline.files import waiting_files
    from fraud_assets.streaming.land import lander_is_running

    settings = platform.settings()
    files = waiting_files(settings)
    if not files:
        return dg.SkipReason(f"No file waits in {settings.incoming}.")
    if lander_is_running(settings):
        return dg.SkipReason("`fraud-assets land` runs and takes them.")
    if in_flight(context.instance, "dropped_files_sensor"):
        return dg.SkipReason("A landing run is under way.")
    seen = sha256(json.dumps([[f.name, f.stat().st_mtime_ns] for f in files]).encode()).hexdigest()[:16]
    return request(
        context.instance,
        "dropped_files_sensor",
        seen,
        "files",
        settings.sensor_attempts,
        run_config={"ops": {"landing": {"config": {"topics": False}}}},
    )


SENSORS = [new_files_sensor, dropped_files_sensor]
