"""Starts, kills and restarts the processes under test, and records those that failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from fraud_assets.settings import Settings

_DAGSTER = "dagster"
_USER_PREFIXES = ("FRAUD_", "KAFKA_", "MLFLOW_", "AWS_", "SCHEMA_")
LAND = ("-m", "fraud_assets.cli", "land")


def worker_command(kind: str, *arguments: str) -> tuple[str, ...]:
    """Returns the arguments of Python that run a worker."""
    return ("-m", "fraud_assets.chaos.worker", kind, *arguments)


@dataclass
class Process:
    """A process under test; if `restarts` is true, `Processes.maintain` starts it again after it ended."""

    name: str
    command: tuple[str, ...]
    log: Path
    running: subprocess.Popen[bytes]
    restarts: bool = True

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.running.poll() is not None


@dataclass
class Processes:
    """All processes of a chaos run.

    Attributes:
        settings: settings that the processes get as environment variables.
        folder: folder of the logs and working directory of the processes.
        deaths: processes that failed by themselves, each with the last lines of its log.
        failed_runs: number of failed Dagster runs. A run may fail, for example on a full disk; the next one continues.
        kills: number of SIGKILLs.
    """

    settings: Settings
    folder: Path
    deaths: list[str] = field(default_factory=list)
    failed_runs: int = 0
    kills: int = 0
    _processes: dict[str, Process] = field(default_factory=dict)

    def start(self, name: str, command: tuple[str, ...], *, restarts: bool = True) -> None:
        """Starts a process; with `restarts`, `maintain` starts it again after it ended."""
        log = self.folder / f"{name}.log"
        self._processes[name] = Process(name, command, log, self._popen(command, log), restarts)

    def kill(self, name: str) -> bool:
        """Ends a process by SIGKILL, as a power cut or the kernel's OOM killer does.

        Returns:
            False if the process had already ended.
        """
        process = self._processes.get(name)
        if process is None or process.ended:
            return False
        process.running.kill()
        process.running.wait()
        self.kills += 1
        return True

    def stop(self, name: str) -> None:
        """Ends a process by SIGTERM and waits for it."""
        process = self._processes.pop(name, None)
        if process is None:
            return
        if not process.ended:
            process.running.send_signal(signal.SIGTERM)
            try:
                process.running.wait(30)
            except subprocess.TimeoutExpired:
                process.running.kill()
                process.running.wait()
                self.deaths.append(f"{name} did not end within 30 s of SIGTERM")
        self._record_end(process)

    def maintain(self) -> None:
        """Restarts processes that were killed; records processes that failed by themselves."""
        for name, process in list(self._processes.items()):
            if not process.ended:
                continue
            self._record_end(process)
            if process.restarts:
                process.running = self._popen(process.command, process.log)
            else:
                del self._processes[name]

    def end_all(self) -> None:
        """Ends all processes by SIGTERM."""
        for name in list(self._processes):
            self.stop(name)

    def names(self, prefix: str = "") -> list[str]:
        """Returns the names of the running processes that start with the prefix."""
        return [name for name, process in self._processes.items() if name.startswith(prefix) and not process.ended]

    def _record_end(self, process: Process) -> None:
        code = process.running.returncode
        expected = (0, -signal.SIGKILL, -signal.SIGTERM)
        if code == 1 and _DAGSTER in process.command:
            self.failed_runs += 1
        elif code not in expected:
            last = process.log.read_text(errors="replace").strip().splitlines()[-3:]
            self.deaths.append(f"{process.name} ended with code {code}: {' | '.join(last)[-600:]}")

    def _popen(self, command: tuple[str, ...], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, *command],
                cwd=self.folder,
                env=environment(self.settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )


def environment(settings: Settings) -> dict[str, str]:
    """Returns the environment of the processes: the settings of the run, without those of the user."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(_USER_PREFIXES)}
    return {
        **others,
        "FRAUD_HOME": str(settings.home_path),
        "FRAUD_LAKE_URI": settings.lake_uri,
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "DAGSTER_HOME": str(settings.home_path / "dagster"),
        "FRAUD_LAND_INTERVAL_SECONDS": str(settings.land_interval_seconds),
        "FRAUD_KAFKA_TIMEOUT_SECONDS": str(settings.kafka_timeout_seconds),
        "FRAUD_BATCH_ROWS": str(settings.batch_rows),
        "FRAUD_LAND_BATCH_ROWS": str(settings.land_batch_rows),
        "FRAUD_DUCKDB_MEMORY_LIMIT": settings.duckdb_memory_limit,
        "FRAUD_LAKE_TIMEOUT_SECONDS": str(settings.lake_timeout_seconds),
        "AWS_ENDPOINT_URL": settings.aws_endpoint_url,
        "AWS_REGION": settings.aws_region,
        "AWS_ACCESS_KEY_ID": settings.aws_access_key_id,
        "AWS_SECRET_ACCESS_KEY": settings.aws_secret_access_key.get_secret_value(),
        "PYTHONWARNINGS": "ignore",
    }
