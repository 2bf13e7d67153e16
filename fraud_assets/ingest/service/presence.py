"""Finds the landers that run under this FRAUD_HOME.

Each lander holds a file lock, which the operating system releases even if the process is killed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fraud_assets.settings import Settings


def find_running_landers(settings: Settings) -> dict[int, str]:
    """Returns the running `fraud-assets land` processes: process id to the URL of metrics and health, or empty."""
    running = {}
    for path in sorted(_folder(settings).glob("*.lander")):
        try:
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    running[int(path.stem)] = file.read().strip()
                else:
                    path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue
    return running


def is_lander_running(settings: Settings) -> bool:
    """Returns whether a `fraud-assets land` process is running."""
    return bool(find_running_landers(settings))


@contextmanager
def register_lander(settings: Settings, address: str = "") -> Iterator[None]:
    """Registers this process as a lander until the block ends, with the URL of its metrics if it has one."""
    path = _folder(settings) / f"{os.getpid()}.lander"
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as file:
            # Write the address before locking, because a process that finds the lock reads the address.
            file.write(f"{address}\n")
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX)
            # Another process checked the file before it was locked, and removed it as a leftover.
            if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _folder(settings: Settings) -> Path:
    return settings.home_path / "landers"
