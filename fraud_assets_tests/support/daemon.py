"""A Dagster daemon that ticks when a test requests it."""

from __future__ import annotations

from typing import Any

import dagster as dg
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from fraud_assets.definitions import build_defs
from fraud_assets.errors import LakeError
from fraud_assets.resources import PlatformResource
from fraud_assets.sensors import RUN_KEY_TAG, new_files_sensor
from fraud_assets.settings import Settings


class Daemon:
    """Evaluates a sensor and runs its requests, as Dagster's daemon does, with one instance and one cursor."""

    def __init__(self, settings: Settings, sensor: dg.SensorDefinition = new_files_sensor) -> None:
        shared = ("home", "file_quiet_seconds", "train_min_rows", "train_trees", "run_interval_seconds")
        self.platform = PlatformResource(overrides={name: str(getattr(settings, name)) for name in shared})
        self.definitions = build_defs({"platform": self.platform})
        self.sensor = sensor
        self.job = self.definitions.resolve_job_def(str(sensor.job_name))
        self.wipe()

    def wipe(self) -> None:
        """Starts with a new Dagster instance, without runs and without a cursor."""
        self.instance = dg.DagsterInstance.ephemeral()
        self.cursor: str | None = None

    def look(self) -> dg.RunRequest | dg.SkipReason:
        """Evaluates the sensor once and keeps its cursor, unless the evaluation fails."""
        with dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources={"platform": self.platform}
        ) as context:
            result = self.sensor(context)
            self.cursor = context.cursor
        assert isinstance(result, dg.RunRequest | dg.SkipReason)
        return result

    def requested(self) -> dg.RunRequest:
        """The run that the sensor requests. No run has its run key yet; otherwise Dagster would drop the request."""
        result = self.look()
        assert isinstance(result, dg.RunRequest), result.skip_message
        assert result.run_key not in {run.tags.get(RUN_KEY_TAG) for run in self.instance.get_runs()}
        return result

    def skipped(self) -> str:
        """The reason for which the sensor requests no run."""
        result = self.look()
        assert isinstance(result, dg.SkipReason), result
        return result.skip_message or ""

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """Executes a request; the result may be a failure."""
        return self.job.execute_in_process(
            run_config=request.run_config,
            asset_selection=list(request.asset_selection) if request.asset_selection else None,
            tags=tags_of(request),
            instance=self.instance,
            raise_on_error=False,
        )

    def start(self, request: dg.RunRequest, status: dg.DagsterRunStatus) -> None:
        """Creates the run of a request in the given status, without executing it."""
        module = LoadableTargetOrigin(module_name="fraud_assets.definitions")
        repository = RemoteRepositoryOrigin(ManagedGrpcPythonEnvCodeLocationOrigin(module), "__repository__")
        self.instance.create_run_for_job(
            self.job, tags=tags_of(request), status=status, remote_job_origin=RemoteJobOrigin(repository, self.job.name)
        )


def tags_of(request: dg.RunRequest) -> dict[str, str]:
    """The tags that Dagster gives the request's run."""
    assert request.run_key
    return {**request.tags, RUN_KEY_TAG: request.run_key}


def fails(*_: Any) -> None:
    """A stage that cannot write its table."""
    raise LakeError("The disk is full.")
