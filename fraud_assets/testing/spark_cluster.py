"""A real Spark cluster on the loopback: a standalone master and workers, from the jars that pyspark brings.

For tests, proofs and benchmarks on Linux. Needs Java 17 or newer.
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
from fraud_assets.system.java import QUICK_START, java_program, summarize_output
from fraud_assets.system.ports import free_ports

_PRODUCT = "Spark"
_UP_SECONDS = 60
_ASK_SECONDS = 5


@dataclass
class _Daemon:
    """A master or a worker: its log and, while it runs, its process, which leads a session of its own."""

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
    """A running cluster; workers are numbered from 1.

    Attributes:
        folder: logs, `worker-1/app-…/0/stderr` among them, and what the executors spill.
        master: for FRAUD_SPARK_MASTER.
        web_ui: address of the master's web UI.
    """

    folder: Path
    master: str
    web_ui: str
    _master: _Daemon = field(repr=False)
    _workers: dict[int, _Daemon] = field(repr=False)
    _start: Callable[[_Daemon], None] = field(repr=False)

    def kill_worker(self, number: int) -> None:
        """Ends a worker, its executors and their Python processes as the end of their machine does: SIGKILL."""
        _end(self._workers[number])

    def start_worker(self, *numbers: int) -> None:
        """Starts workers (all, without a number) that are down, and waits until the master has them.

        Raises:
            EngineError: a worker ended, or was not registered within a minute; with the last lines of its log.
        """
        down = [self._workers[number] for number in numbers or self._workers]
        down = [worker for worker in down if not worker.is_up]
        for worker in down:
            self._start(worker)
        _wait_for(down, lambda worker: worker.port in self._registered())

    def stop(self) -> None:
        """Ends everything at once; what a cluster knows is not worth keeping."""
        for daemon in (*self._workers.values(), self._master):
            _end(daemon)

    def state(self) -> dict[str, Any]:
        """What the master says of its workers and applications. Raises `httpx.HTTPError`."""
        import httpx

        told: dict[str, Any] = httpx.get(f"{self.web_ui}/json/", timeout=_ASK_SECONDS).raise_for_status().json()
        return told

    def _registered(self) -> set[int]:
        """Ports of the workers that the master counts on."""
        import httpx

        try:
            return {worker["port"] for worker in self.state()["workers"] if worker["state"] == "ALIVE"}
        except httpx.HTTPError as error:
            if self._master.is_up:
                return set()
            raise EngineError(f"The master of Spark has ended. {_last_words(self._master)}") from error

    def _up(self) -> bool:
        import httpx

        with suppress(httpx.HTTPError, ValueError):
            return bool(self.state()["status"] == "ALIVE")
        return False


@contextmanager
def standalone(folder: Path, workers: int = 2, cores: int = 1, memory: str = "1g") -> Iterator[StandaloneCluster]:
    """Runs a cluster until the block ends: the master on 127.0.0.1, the workers on 127.0.0.2 and so on, free ports.

    No process of it outlives the block.

    Args:
        folder: of the logs, and of what executors write beside the lake.
        workers: how many, each of one machine's part.
        cores: that each worker offers to executors.
        memory: that each worker offers, as `1g`.

    Raises:
        EngineError: the master or a worker did not start; with the last lines of its log.
        JarsError: there is no Java.
        DiskError: the folder cannot be written.
    """
    import pyspark

    java = java_program(_PRODUCT)
    home = Path(pyspark.__file__).parent
    folder = folder.absolute()
    ports = free_ports(["master", "web_ui"])
    address = f"spark://127.0.0.1:{ports['master']}"

    def begin(daemon: _Daemon, *arguments: object) -> None:
        own = folder / daemon.name
        try:
            own.mkdir(parents=True, exist_ok=True)
            log = daemon.log.open("ab")
        except OSError as error:
            raise DiskError(f"{own} cannot be written: {error.strerror}. Choose another folder.") from error
        with log:
            daemon.process = subprocess.Popen(
                [
                    java,
                    *QUICK_START,
                    "-Dspark.master.rest.enabled=false",
                    "-cp",
                    f"{home}/jars/*",
                    *map(str, arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=own,
                env=_environment(home, daemon),
                # By its session everything that a worker started is found, whoever its parent is.
                start_new_session=True,
            )

    def begin_worker(worker: _Daemon) -> None:
        # Another port each time: the master may not have missed the one that was killed yet.
        worker.port = free_ports(["worker"])["worker"]
        place = ("--host", worker.host, "--port", worker.port, "--webui-port", 0)
        size = ("--cores", cores, "--memory", memory, "--work-dir", folder / worker.name)
        begin(worker, "org.apache.spark.deploy.worker.Worker", *place, *size, address)

    master = _Daemon("master", folder, "127.0.0.1")
    # Addresses of their own: of one machine Spark would not ask a second opinion (speculation).
    daemons = {number: _Daemon(f"worker-{number}", folder, f"127.0.0.{1 + number}") for number in range(1, workers + 1)}
    cluster = StandaloneCluster(folder, address, f"http://127.0.0.1:{ports['web_ui']}", master, daemons, begin_worker)
    try:
        place = ("--host", master.host, "--port", ports["master"], "--webui-port", ports["web_ui"])
        begin(master, "org.apache.spark.deploy.master.Master", *place)
        # A worker that finds no master tries again only after some seconds.
        _wait_for([master], lambda _: cluster._up())
        cluster.start_worker()
        yield cluster
    finally:
        cluster.stop()


def _environment(home: Path, daemon: _Daemon) -> dict[str, str]:
    """Of a daemon, and of the executors that it starts; the user's own Spark has no say."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))},
        "SPARK_HOME": str(home),
        "SPARK_SCALA_VERSION": "2.13",
        "SPARK_CONF_DIR": str(daemon.folder),
        "SPARK_LOCAL_DIRS": str(daemon.folder / daemon.name / "local"),
        # Web UIs listen at every address without it.
        "SPARK_LOCAL_IP": daemon.host,
    }


def _wait_for(daemons: list[_Daemon], ready: Callable[[_Daemon], bool]) -> None:
    deadline = monotonic() + _UP_SECONDS
    for daemon in daemons:
        while not ready(daemon):
            if not daemon.is_up:
                raise EngineError(f"The {daemon.name} of Spark ended at its start. {_last_words(daemon)}")
            if monotonic() > deadline:
                raise EngineError(
                    f"The {daemon.name} of Spark is not ready after {_UP_SECONDS} s. {_last_words(daemon)}"
                )
            sleep(0.05)


def _end(daemon: _Daemon) -> None:
    """Kills the daemon and all that it started, whose end is waited for."""
    if daemon.process is None:
        return
    daemon.process.kill()
    daemon.process.wait()
    deadline = monotonic() + _UP_SECONDS
    while alive := _session(daemon.process.pid):
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if monotonic() > deadline:
            raise EngineError(f"Processes {alive} of Spark's {daemon.name} do not end. End them by hand.")
        sleep(0.01)
    daemon.process = None


def _session(leader: int) -> list[int]:
    """Processes of the session of `leader` that are not over. The system gives its number to nobody while there are."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session = status.read_text().rpartition(")")[2].split()[:4]
            if session == str(leader) and state != "Z":
                found.append(int(status.parent.name))
    return found


def _last_words(daemon: _Daemon) -> str:
    return f"The log {daemon.log} says: {summarize_output(daemon.log.read_bytes())}"
