"""Defines the faults that a chaos run applies, and how often it applies each of them."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from fraud_assets.chaos.processes import LAND, Processes, worker_command
from fraud_assets.testing.apache_kafka import Cluster
from fraud_assets.testing.object_store import ObjectStore

_OUTAGE_SECONDS = (0.5, 2.5)
_LET_RUN_SECONDS = (0.3, 1.5)


@dataclass(frozen=True)
class LakeLocation:
    """The location of the lake under test.

    Attributes:
        uri: the value of FRAUD_LAKE_URI for the lake.
        disk: mount point of the lake's own disk; None if it has none.
        store: the object store that holds the lake; None if the lake is in a folder.
    """

    uri: str
    disk: Path | None = None
    store: ObjectStore | None = None


@dataclass
class Run:
    """The platform under test, to which faults are applied."""

    processes: Processes
    cluster: Cluster
    lake_location: LakeLocation
    random: random.Random

    def wait(self, span: tuple[float, float]) -> None:
        """Sleeps for a random time between two numbers of seconds."""
        sleep(self.random.uniform(*span))


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: name of the fault in the outcome of the run.
        apply: applies the fault to the run and returns when it is over.
        weight: how often the fault is chosen, relative to the weights of the others.
    """

    name: str
    apply: Callable[[Run], None]
    weight: int


def kill_lander(run: Run) -> None:
    """Sends SIGKILL to one of the landers."""
    run.processes.kill(run.random.choice(["land-1", "land-2"]))


def kill_features(run: Run) -> None:
    """Sends SIGKILL to the features process."""
    run.processes.kill("features")


def kill_scoring(run: Run) -> None:
    """Sends SIGKILL to the scoring process."""
    run.processes.kill("scoring")


def kill_all(run: Run) -> None:
    """Sends SIGKILL to all processes at once, as in a power cut."""
    for name in run.processes.names():
        run.processes.kill(name)


def kill_broker(run: Run) -> None:
    """Sends SIGKILL to a node of the broker and starts it again."""
    node = run.random.randrange(run.cluster.brokers) + 1
    run.cluster.kill(node)
    run.processes.kills += 1
    run.wait(_OUTAGE_SECONDS)
    run.cluster.start(node)


def restart_broker(run: Run) -> None:
    """Shuts down a node of the broker cleanly and starts it again."""
    node = run.random.randrange(run.cluster.brokers) + 1
    run.cluster.stop(node)
    run.wait(_LET_RUN_SECONDS)
    run.cluster.start(node)


def rebalance(run: Run) -> None:
    """Starts a third lander for a few seconds and ends it with SIGTERM or SIGKILL."""
    run.processes.start("land-3", LAND, restarts=False)
    run.wait((2.0, 5.0))
    if run.random.random() < 0.5:
        run.processes.kill("land-3")
    run.processes.stop("land-3")


def race_stages(run: Run) -> None:
    """Starts a second process each for features and scoring; may kill one of them."""
    for kind in ("features", "scoring"):
        run.processes.start(f"{kind}-again", worker_command(kind, "--once"), restarts=False)
    run.wait((1.0, 3.0))
    if run.random.random() < 0.3:
        run.processes.kill(f"{run.random.choice(['features', 'scoring'])}-again")


def race_assets(run: Run) -> None:
    """Starts two runs of the Dagster assets at once."""
    command = ("-m", "dagster", "asset", "materialize", "-m", "fraud_assets.definitions", "--select")
    for number in (1, 2):
        name = f"assets-{number}"
        if name not in run.processes.names():
            run.processes.start(name, (*command, "transaction_features,fraud_predictions"), restarts=False)


def run_maintenance(run: Run) -> None:
    """Starts compaction, checkpoint and vacuum; may kill the process."""
    if "maintenance" in run.processes.names():
        return
    run.processes.start("maintenance", worker_command("maintenance", "--once"), restarts=False)
    if run.random.random() < 0.3:
        run.wait((1.0, 3.0))
        run.processes.kill("maintenance")


def fill_disk(run: Run) -> None:
    """Fills the disk of the lake for a few seconds."""
    assert run.lake_location.disk is not None
    ballast = run.lake_location.disk / "ballast"
    try:
        with ballast.open("wb") as file:
            _allocate_all(file.fileno(), run.lake_location.disk)
        run.wait(_OUTAGE_SECONDS)
    finally:
        ballast.unlink(missing_ok=True)


def _allocate_all(file: int, disk: Path) -> None:
    """Allocates all free space of the disk, while other processes allocate and free space."""
    space = os.statvfs(disk)
    size, allocated = space.f_bavail * space.f_frsize, 0
    while size >= space.f_frsize:
        try:
            os.posix_fallocate(file, allocated, size)
            allocated += size
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            size //= 2


def make_disk_read_only(run: Run) -> None:
    """Makes the disk of the lake read-only for a few seconds."""
    assert run.lake_location.disk is not None
    disk = str(run.lake_location.disk)
    for _ in range(50):
        # The remount fails while a file is open for writing.
        if not subprocess.run(["mount", "-o", "remount,ro", disk], capture_output=True, check=False).returncode:
            break
        sleep(0.02)
    try:
        run.wait(_OUTAGE_SECONDS)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], capture_output=True, check=True)


def make_folders_read_only(run: Run) -> None:
    """Makes the folders of the tables read-only for a few seconds."""
    lake = Path(run.lake_location.uri)
    folders = [lake, *(path for path in lake.rglob("*") if path.is_dir())]
    try:
        for folder in folders:
            folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
        run.wait(_OUTAGE_SECONDS)
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)


def kill_store(run: Run) -> None:
    """Sends SIGKILL to the object store and starts it again."""
    assert run.lake_location.store is not None
    run.lake_location.store.kill()
    run.processes.kills += 1
    run.wait(_OUTAGE_SECONDS)
    run.lake_location.store.start()


def freeze_store(run: Run) -> None:
    """Freezes the object store: it accepts requests but does not answer for a few seconds."""
    assert run.lake_location.store is not None
    run.lake_location.store.freeze()
    run.wait(_OUTAGE_SECONDS)
    run.lake_location.store.thaw()


FAULTS = (
    Fault("kill_lander", kill_lander, 8),
    Fault("kill_features", kill_features, 6),
    Fault("kill_scoring", kill_scoring, 6),
    Fault("kill_all", kill_all, 2),
    Fault("kill_broker", kill_broker, 1),
    Fault("restart_broker", restart_broker, 1),
    Fault("rebalance", rebalance, 2),
    Fault("race", race_stages, 3),
    Fault("assets", race_assets, 1),
    Fault("maintenance", run_maintenance, 4),
)
"""Faults that any lake location allows."""

DISK_FAULTS = (Fault("full_disk", fill_disk, 2), Fault("read_only_disk", make_disk_read_only, 2))
"""Faults of a lake on a disk of its own, which only root can mount."""

FOLDER_FAULTS = (Fault("closed_folders", make_folders_read_only, 2),)
"""Faults of a lake in a folder. They have no effect for root, which ignores permissions."""

STORE_FAULTS = (Fault("kill_store", kill_store, 2), Fault("freeze_store", freeze_store, 2))
"""Faults of a lake on an object store."""
