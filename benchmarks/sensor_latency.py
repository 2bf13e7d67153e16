"""Compares the time from landing to predictions with a no-op run: python benchmarks/sensor_latency.py [--quick]

A Dagster daemon with two code locations launches a process per run, as with `dagster dev`. One location is the
platform. The other is an asset that does nothing, with a sensor of the same kind. Both sensors have an interval of one
second, but Dagster's daemon evaluates sensors every five seconds. Each round therefore begins at a random moment of
these five seconds, and the benchmark also prints the ratio without that wait.
"""

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _lakes as lakes
import micro_batch as traffic

from fraud_assets.core.schema import fraud_predictions
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.setup_home import prepare_home
from fraud_assets.settings import load_settings
from fraud_assets.stages.features import process_landed
from fraud_assets.stages.scoring import score_pending
from fraud_assets.stages.training import train

PATIENCE_SECONDS = 180
HISTORY = 20_000
NO_OP = """
import os
import dagster as dg


@dg.asset
def nothing() -> None: ...


job = dg.define_asset_job("nothing_job", selection=[nothing])


@dg.sensor(job=job, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def nothing_sensor(context):
    try:
        with open(os.environ["BENCHMARK_TRIGGER"]) as file:
            key = file.read()
    except OSError:
        return dg.SkipReason("nothing new")
    return dg.RunRequest(run_key=key)


defs = dg.Definitions(assets=[nothing], jobs=[job], sensors=[nothing_sensor], executor=dg.in_process_executor)
"""


def wait_for_run(instance, job: str, began: float):
    """Returns the finished run of a job that was created after `began`, and its events."""
    import dagster as dg

    done = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    while time.time() < began + PATIENCE_SECONDS:
        for record in instance.get_run_records(dg.RunsFilter(job_name=job, statuses=done), limit=1):
            if record.create_timestamp.timestamp() >= began:
                if record.dagster_run.status != dg.DagsterRunStatus.SUCCESS:
                    sys.exit(f"A run of {job} failed: {record.dagster_run.run_id}")
                return record, instance.all_logs(record.dagster_run.run_id)
        time.sleep(0.2)
    sys.exit(f"No run of {job} ended within {PATIENCE_SECONDS} s.")


def parts(record, events, began: float, ended: float | None = None) -> dict[str, float]:
    """Returns the seconds of a round by phase, from the run's events. Without `ended`, the last step ends the round."""
    first = {}
    steps = {}
    for entry in events:
        event = entry.dagster_event
        if event is None:
            continue
        kind = event.event_type_value
        first.setdefault(kind, entry.timestamp)
        if kind in ("STEP_START", "STEP_SUCCESS"):
            steps.setdefault(event.step_key, []).append(entry.timestamp)
    created = record.create_timestamp.timestamp()
    found = {
        "wait for the sensor": created - began,
        "queue": first["PIPELINE_STARTING"] - created,
        "process start and imports": first["STEP_START"] - first["PIPELINE_STARTING"],
        **{step: times[-1] - times[0] for step, times in steps.items()},
    }
    if ended is None:
        ended = max(times[-1] for times in steps.values())
    return {**found, "all": ended - began, "after the sensor": ended - created}


def main() -> None:
    repeats = 3 if "--quick" in sys.argv else 7
    root = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        # The daemon and its child processes read these variables.
        os.environ.update(
            FRAUD_HOME=folder,
            FRAUD_LAKE_URI="",
            MLFLOW_TRACKING_URI="",
            KAFKA_BOOTSTRAP_SERVERS="",
            FRAUD_SENSOR_INTERVAL_SECONDS="1",
            DAGSTER_HOME=str(home / "dagster"),
            BENCHMARK_TRIGGER=str(home / "trigger"),
            PYTHONPATH=str(root),
        )
        settings = load_settings()
        prepare_home(settings)
        lake = Lake.of(settings)
        lakes.log_progress("preparing a small history and a champion")
        traffic.fill(lake, HISTORY)
        train(lake, settings)
        offset = HISTORY
        traffic.land_batch(lake, offset)
        process_landed(lake, settings)
        score_pending(lake, settings)
        (home / "no_op.py").write_text(NO_OP)
        workspace = home / "workspace.yaml"
        workspace.write_text(
            f"load_from:\n  - python_module: fraud_assets.definitions\n  - python_file: {home / 'no_op.py'}\n"
        )
        from dagster import DagsterInstance

        with (home / "daemon.log").open("w") as log:
            daemon = subprocess.Popen(
                [sys.executable, "-m", "dagster._daemon", "run", "-w", str(workspace)],
                cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            with DagsterInstance.get() as instance:
                rounds: dict[str, list[dict[str, float]]] = {"platform": [], "nothing": []}
                for number in range(repeats + 1):
                    began = time.time()
                    (home / "trigger").write_text(str(number))
                    record, events = wait_for_run(instance, "nothing_job", began)
                    nothing = parts(record, events, began)
                    time.sleep(1 + random.uniform(0, 5))
                    offset += traffic.BATCH
                    known = read_row_count(lake.open(fraud_predictions))
                    traffic.land_batch(lake, offset)
                    began = time.time()
                    while read_row_count(lake.open(fraud_predictions)) < known + traffic.BATCH:
                        if daemon.poll() is not None or time.time() > began + PATIENCE_SECONDS:
                            sys.exit((home / "daemon.log").read_text()[-3000:])
                        time.sleep(0.02)
                    ended = time.time()
                    record, events = wait_for_run(instance, "score_new_transactions", began)
                    platform = parts(record, events, began, ended)
                    lakes.log_progress(
                        f"round {number} of {repeats}: platform {platform['all']:.2f} s, nothing {nothing['all']:.2f} s"
                    )
                    if number:  # The first round starts the code servers.
                        rounds["platform"].append(platform)
                        rounds["nothing"].append(nothing)
                    time.sleep(2 + random.uniform(0, 5))
        finally:
            os.killpg(daemon.pid, signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
    medians = {
        name: {phase: statistics.median(one[phase] for one in taken) for phase in taken[0]}
        for name, taken in rounds.items()
    }
    # The wait is uniform between 0 and 5 s for both, so the mean of all waits is more precise than each median.
    wait = statistics.mean(one["wait for the sensor"] for taken in rounds.values() for one in taken)
    after = {name: phases["after the sensor"] for name, phases in medians.items()}
    ratio = (wait + after["platform"]) / (wait + after["nothing"])
    print(f"From the landing of {traffic.BATCH:,} messages to their committed predictions, by sensor, queue and run")
    print(
        f"  takes {ratio:.2f} times as long as a run of an asset that does nothing "
        f"({lakes.describe_aim(ratio, 1.3, least=False)});"
    )
    print(
        f"  without the wait for the sensor, which is {wait:.1f} s for both: "
        f"{after['platform'] / after['nothing']:.2f} times."
    )
    for name, phases in medians.items():
        shown = [
            f"{phase} {spent / after[name]:.0%}"
            for phase, spent in phases.items()
            if phase not in ("all", "after the sensor", "wait for the sensor")
        ]
        print(f"  Of the {after[name]:.1f} s of {name} after that wait: {', '.join(shown)}, the rest between them.")


if __name__ == "__main__":
    main()
