"""What goes wrong, each a function on the run; `FAULTS` says how often each comes and what it needs."""

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

from fraud_assets.chaos.processes import LAND, Processes, worker
from fraud_assets.testing.apache_kafka import Cluster
from fraud_assets.testing.object_store import ObjectStore

_OUTAGE_SECONDS = (0.5, 2.5)
_LET_RUN_SECONDS = (0.3, 1.5)


@dataclass(frozen=True)
class LakeLocation:
    """Where the lake is: in a folder, perhaps on a disk of its own, or on an object store."""

    uri: str
    disk: Path | None = None
    store: ObjectStore | None = None


@dataclass
class Run:
    """What faults act upon."""

    processes: Processes
    cluster: Cluster
    place: LakeLocation
    random: random.Random

    def wait(self, span: tuple[float, float]) -> None:
        """A moment of random length."""
        sleep(self.random.uniform(*span))


Fault = Callable[[Run], None]


def kill_lander(run: Run) -> None:
    """SIGKILL to one of the landers."""
    run.processes.kill(run.random.choice(["land-1", "land-2"]))


def kill_features(run: Run) -> None:
    """SIGKILL to the features process."""
    run.processes.kill("features")


def kill_scoring(run: Run) -> None:
    """SIGKILL to the scoring process."""
    run.processes.kill("scoring")


def kill_all(run: Run) -> None:
    """SIGKILL to all of them at once, as a power cut does."""
    for name in run.processes.names():
        run.processes.kill(name)


def kill_broker(run: Run) -> None:
    """SIGKILL to a node of the broker, and a new start."""
    node = run.random.randrange(run.cluster.brokers) + 1
    run.cluster.kill(node)
    run.processes.kills += 1
    run.wait(_OUTAGE_SECONDS)
    run.cluster.start(node)


def restart_broker(run: Run) -> None:
    """A node of the broker is stopped in good order and started again."""
    node = run.random.randrange(run.cluster.brokers) + 1
    run.cluster.stop(node)
    run.wait(_LET_RUN_SECONDS)
    run.cluster.start(node)


def rebalance(run: Run) -> None:
    """A third lander comes for a moment, and goes in good order or by SIGKILL."""
    run.processes.start("land-3", LAND, for_ever=False)
    run.wait((2.0, 5.0))
    if run.random.random() < 0.5:
        run.processes.kill("land-3")
    run.processes.stop("land-3")


def race(run: Run) -> None:
    """A second run of features and of scoring beside the first; one of them may be killed."""
    for kind in ("features", "scoring"):
        run.processes.start(f"{kind}-again", worker(kind, "--once"), for_ever=False)
    run.wait((1.0, 3.0))
    if run.random.random() < 0.3:
        run.processes.kill(f"{run.random.choice(['features', 'scoring'])}-again")


def assets(run: Run) -> None:
    """Two runs of the Dagster assets at once."""
    command = ("-m", "dagster", "asset", "materialize", "-m", "fraud_assets.definitions", "--select")
    for number in (1, 2):
        name = f"assets-{number}"
        if name not in run.processes.names():
            run.processes.start(name, (*command, "transaction_features,fraud_predictions"), for_ever=False)


def maintenance(run: Run) -> None:
    """Compaction, checkpoint and vacuum in between; it may be killed."""
    if "maintenance" in run.processes.names():
        return
    run.processes.start("maintenance", worker("maintenance", "--once"), for_ever=False)
    if run.random.random() < 0.3:
        run.wait((1.0, 3.0))
        run.processes.kill("maintenance")


def full_disk(run: Run) -> None:
    """The disk of the lake is full for a moment."""
    assert run.place.disk is not None
    ballast = run.place.disk / "ballast"
    try:
        with ballast.open("wb") as file:
            _fill(file.fileno(), run.place.disk)
        run.wait(_OUTAGE_SECONDS)
    finally:
        ballast.unlink(missing_ok=True)


def _fill(file: int, disk: Path) -> None:
    """Takes all that is free, while others take and give back."""
    space = os.statvfs(disk)
    piece, filled = space.f_bavail * space.f_frsize, 0
    while piece >= space.f_frsize:
        try:
            os.posix_fallocate(file, filled, piece)
            filled += piece
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            piece //= 2


def read_only_disk(run: Run) -> None:
    """The disk of the lake cannot be written for a moment."""
    assert run.place.disk is not None
    disk = str(run.place.disk)
    for _ in range(50):
        # Refused while a file is open for writing.
        if not subprocess.run(["mount", "-o", "remount,ro", disk], capture_output=True, check=False).returncode:
            break
        sleep(0.02)
    try:
        run.wait(_OUTAGE_SECONDS)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], capture_output=True, check=True)


def closed_folders(run: Run) -> None:
    """The folders of the tables cannot be written for a moment."""
    lake = Path(run.place.uri)
    folders = [lake, *(path for path in lake.rglob("*") if path.is_dir())]
    try:
        for folder in folders:
            folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
        run.wait(_OUTAGE_SECONDS)
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)


def kill_store(run: Run) -> None:
    """SIGKILL to the object store, and a new start."""
    assert run.place.store is not None
    run.place.store.kill()
    run.processes.kills += 1
    run.wait(_OUTAGE_SECONDS)
    run.place.store.start()


def freeze_store(run: Run) -> None:
    """The object store takes requests and does not answer for a moment."""
    assert run.place.store is not None
    run.place.store.freeze()
    run.wait(_OUTAGE_SECONDS)
    run.place.store.thaw()


FAULTS: dict[Fault, int] = {
    kill_lander: 8,
    kill_features: 6,
    kill_scoring: 6,
    kill_all: 2,
    kill_broker: 1,
    restart_broker: 1,
    rebalance: 2,
    race: 3,
    assets: 1,
    maintenance: 4,
}
"""Faults that need nothing special, and how often each comes among them."""

DISK_FAULTS: dict[Fault, int] = {full_disk: 2, read_only_disk: 2}
"""For a lake on a disk of its own, which only root can mount."""

FOLDER_FAULTS: dict[Fault, int] = {closed_folders: 2}
"""For a lake in a folder: root is not held up by permissions."""

STORE_FAULTS: dict[Fault, int] = {kill_store: 2, freeze_store: 2}
"""For a lake on an object store."""
