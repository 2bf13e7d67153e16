"""Runs a real Spark cluster on the loopback interface: a standalone master and workers, from the jars of pyspark.

Tests, proofs and benchmarks use it, on Linux. It needs Java 17 or newer.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from fraud_assets.errors import DiskError, EngineError
from fraud_assets.system.java import QUICK_START, find_java, summarize_output
from fraud_assets.system.ports import find_free_ports

_PRODUCT = "Spark"
_UP_SECONDS = 60
_HTTP_SECONDS = 5


@dataclass
class _Daemon:
    """A master or a worker: its log and, while it runs, its process, which leads its own session."""

    name: str
    folder: Path
    host: str
    process: subprocess.Popen[bytes] | None = None
    port: int = 0

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class StandaloneCluster:
    """A running cluster. Workers are numbered from 1.

    Attributes:
        folder: folder of logs, such as `worker-1/app-…/0/stderr`, and of files that executors spill.
        master: URL of the master, for FRAUD_SPARK_MASTER.
        web_ui: URL of the master's web UI.
    """

    folder: Path
    master: str
    web_ui: str
    _master: _Daemon = field(repr=False)
    _workers: dict[int, _Daemon] = field(repr=False)
    _start: Callable[[_Daemon], None] = field(repr=False)

    def kill_worker(self, number: int) -> None:
        """Ends a worker, its executors and their Python processes by SIGKILL, as the failure of a machine does."""
        _end(self._workers[number])

    def start_worker(self, *numbers: int) -> None:
        """Starts the workers that do not run, and waits until they are registered; without arguments, all workers.

        Raises:
            EngineError: a worker ended, or was not registered within a minute; with the last lines of its log.
        """
        down = [self._workers[number] for number in numbers or self._workers]
        down = [worker for worker in down if not worker.is_up]
        for worker in down:
            self._start(worker)
        _wait_for(down, lambda worker: worker.port in self._registered())

    def stop(self) -> None:
        """Ends all processes at once by SIGKILL, because the state of the cluster is not needed."""
        for daemon in (*self._workers.values(), self._master):
            _end(daemon)

    def state(self) -> dict[str, Any]:
        """Returns the master's state of its workers and applications. Raises `httpx.HTTPError`."""
        import httpx

        state: dict[str, Any] = httpx.get(f"{self.web_ui}/json/", timeout=_HTTP_SECONDS).raise_for_status().json()
        return state

    def _registered(self) -> set[int]:
        """Returns the ports of the workers that the master lists as alive."""
        import httpx

        try:
            return {worker["port"] for worker in self.state()["workers"] if worker["state"] == "ALIVE"}
        except httpx.HTTPError as error:
            if self._master.is_up:
                return set()
            raise EngineError(f"The master of Spark has ended. {_log_excerpt(self._master)}") from error

    def _is_master_alive(self) -> bool:
        import httpx

        with suppress(httpx.HTTPError, ValueError):
            return bool(self.state()["status"] == "ALIVE")
        return False


@contextmanager
def standalone(folder: Path, workers: int = 2, cores: int = 1, memory: str = "1g") -> Iterator[StandaloneCluster]:
    """Runs a cluster until the block ends: the master on 127.0.0.1, the workers on 127.0.0.2 and so on, on free ports.

    All its processes end with the block.

    Args:
        folder: folder of the logs and of the files that executors write outside the lake.
        workers: number of workers, each in the role of one machine.
        cores: number of cores that each worker offers to executors.
        memory: memory that each worker offers to executors, such as `1g`.

    Yields:
        The running cluster.

    Raises:
        EngineError: the master or a worker did not start; with the last lines of its log.
        JarsError: Java is missing.
        DiskError: the folder cannot be written.
    """
    folder = folder.absolute()
    ports = find_free_ports(["master", "web_ui"])
    address = f"spark://127.0.0.1:{ports['master']}"
    launcher = _Launcher(find_java(_PRODUCT), folder)

    def start_worker(worker: _Daemon) -> None:
        # The port changes at each start because the master may still list the worker that was killed.
        worker.port = find_free_ports(["worker"])["worker"]
        network = ("--host", worker.host, "--port", worker.port, "--webui-port", 0)
        size = ("--cores", cores, "--memory", memory, "--work-dir", folder / worker.name)
        launcher.start(worker, "org.apache.spark.deploy.worker.Worker", *network, *size, address)

    master = _Daemon("master", folder, "127.0.0.1")
    # Each worker has its own address: Spark does not run speculative copies of a task on the same host.
    daemons = {number: _Daemon(f"worker-{number}", folder, f"127.0.0.{1 + number}") for number in range(1, workers + 1)}
    cluster = StandaloneCluster(folder, address, f"http://127.0.0.1:{ports['web_ui']}", master, daemons, start_worker)
    try:
        network = ("--host", master.host, "--port", ports["master"], "--webui-port", ports["web_ui"])
        launcher.start(master, "org.apache.spark.deploy.master.Master", *network)
        # A worker that finds no master retries only after some seconds.
        _wait_for([master], lambda _: cluster._is_master_alive())
        cluster.start_worker()
        yield cluster
    finally:
        cluster.stop()


@dataclass(frozen=True)
class _Launcher:
    """Starts the processes of daemons with the jars of pyspark."""

    java: str
    folder: Path

    def start(self, daemon: _Daemon, *arguments: object) -> None:
        """Starts a daemon. The arguments are its main class and its options."""
        import pyspark

        home = Path(pyspark.__file__).parent
        work = self.folder / daemon.name
        try:
            work.mkdir(parents=True, exist_ok=True)
            log = daemon.log.open("ab")
        except OSError as error:
            raise DiskError(f"{work} cannot be written: {error.strerror}. Choose another folder.") from error
        options = [*QUICK_START, "-Dspark.master.rest.enabled=false", "-cp", f"{home}/jars/*"]
        with log:
            daemon.process = subprocess.Popen(
                [self.java, *options, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=work,
                env=_environment(home, daemon),
                # The session identifies all processes that a worker started, regardless of their parent.
                start_new_session=True,
            )


def _environment(home: Path, daemon: _Daemon) -> dict[str, str]:
    """Returns the environment of a daemon and of its executors, without the user's own Spark settings."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))},
        "SPARK_HOME": str(home),
        "SPARK_SCALA_VERSION": "2.13",
        "SPARK_CONF_DIR": str(daemon.folder),
        "SPARK_LOCAL_DIRS": str(daemon.folder / daemon.name / "local"),
        # Without it, web UIs listen on all addresses.
        "SPARK_LOCAL_IP": daemon.host,
    }


def _wait_for(daemons: list[_Daemon], ready: Callable[[_Daemon], bool]) -> None:
    deadline = monotonic() + _UP_SECONDS
    for daemon in daemons:
        while not ready(daemon):
            if not daemon.is_up:
                raise EngineError(f"The {daemon.name} of Spark ended during startup. {_log_excerpt(daemon)}")
            if monotonic() > deadline:
                raise EngineError(
                    f"The {daemon.name} of Spark was not ready within {_UP_SECONDS} s. {_log_excerpt(daemon)}"
                )
            sleep(0.05)


def _end(daemon: _Daemon) -> None:
    """Kills the daemon and all processes of its session, and waits until they have ended."""
    if daemon.process is None:
        return
    daemon.process.kill()
    daemon.process.wait()
    deadline = monotonic() + _UP_SECONDS
    while alive := _find_session(daemon.process.pid):
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if monotonic() > deadline:
            raise EngineError(f"Processes {alive} of Spark's {daemon.name} did not end. End them by hand.")
        sleep(0.01)
    daemon.process = None


def _find_session(leader: int) -> list[int]:
    """Returns the running processes of the session of `leader`.

    The system does not reuse the id of the leader while processes of its session exist.
    """
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session = status.read_text().rpartition(")")[2].split()[:4]
            if session == str(leader) and state != "Z":
                found.append(int(status.parent.name))
    return found


def _log_excerpt(daemon: _Daemon) -> str:
    """Returns the last lines of a daemon's log for an error message."""
    return f"The log {daemon.log} ends with: {summarize_output(daemon.log.read_bytes())}"
