"""Which landers run under this FRAUD_HOME. The operating system forgets those that end, however they end."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fraud_assets.settings import Settings


def running_landers(settings: Settings) -> dict[int, str]:
    """The `fraud-assets land` processes that run: process id to the address of `/metrics` and `/health`, or empty."""
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


def lander_is_running(settings: Settings) -> bool:
    """Whether a `fraud-assets land` process runs."""
    return bool(running_landers(settings))


@contextmanager
def register_lander(settings: Settings, address: str = "") -> Iterator[None]:
    """Counts this process among the landers until the block ends, at `address` if it has one."""
    path = _folder(settings) / f"{os.getpid()}.lander"
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as file:
            # The address first: who finds it locked reads it.
            file.write(f"{address}\n")
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who looked before it was locked took it for left over and removed it.
            if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _folder(settings: Settings) -> Path:
    return settings.home_path / "landers"
