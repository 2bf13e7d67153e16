"""What landing shows to Prometheus and to whoever asks for its health, over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import time
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

from fraud_assets.engines.landing_report import LandingReport
from fraud_assets.errors import SettingError
from fraud_assets.ingest.service.bounded_server import BoundedServer, SilentHandler
from fraud_assets.ingest.service.file_health import FileHealth

HUNG_SECONDS = 120.0
"""A lander that has not looked at its topics for so long is not well, whatever it last said."""

_PORTS_TRIED = 50
_COMMIT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class LandingMetrics:
    """Numbers of one lander since its start, and whether it is well."""

    def __init__(self, now: Callable[[], float] = time) -> None:
        self._now = now
        self.registry = CollectorRegistry()
        self.rows = Counter(
            "fraud_landed_rows",
            "Rows committed from the topics; rows of dropped files are not counted.",
            ["table"],
            registry=self.registry,
        )
        self.bytes = Counter(
            "fraud_landed_bytes", "Bytes of keys and bodies committed.", ["table"], registry=self.registry
        )
        self.commit_seconds = Histogram(
            "fraud_landing_commit_seconds",
            "Seconds from a batch in hand to its commit.",
            ["table"],
            buckets=_COMMIT_BUCKETS,
            registry=self.registry,
        )
        self.lag = Gauge(
            "fraud_landing_lag_messages",
            "Messages that the broker has and the lake has not.",
            ["topic", "partition"],
            registry=self.registry,
        )
        self.unreadable = Gauge(
            "fraud_landing_partition_unreadable",
            "1 for a partition whose next message cannot be read.",
            ["topic", "partition"],
            registry=self.registry,
        )
        oldest = Gauge(
            "fraud_landing_oldest_unlanded_seconds",
            "Age of the oldest message that is not in the lake yet; 0 when all is landed.",
            registry=self.registry,
        )
        oldest.set_function(self.oldest_seconds)
        failing = Gauge("fraud_landing_failing", "1 while landing cannot go on, else 0.", registry=self.registry)
        failing.set_function(lambda: float(bool(self.failing)))
        self.files = FileHealth(self.registry, now)
        self._oldest: float | None = None
        self._failing: tuple[str, float] | None = None
        self._unreadable: tuple[str, float] | None = None
        self._looked = now()
        self._committed: float | None = None

    def looked(self) -> None:
        """The lander had a look at its topics."""
        self._looked = self._now()

    def waits(self, oldest: float | None) -> None:
        """A batch is in hand whose earliest message carries this time (seconds since 1970)."""
        self._oldest = oldest

    def landed(self, reports: Iterable[LandingReport]) -> None:
        """Adds what was committed."""
        for report in reports:
            self.rows.labels(report.table).inc(report.rows)
            self.bytes.labels(report.table).inc(report.bytes)
            if report.rows:
                self._committed = self._now()
                self.commit_seconds.labels(report.table).observe(report.seconds)
        self._failing = None

    def lags(self, topic: str, lag: Mapping[int, int], last: float | None) -> None:
        """Messages that wait per partition that this lander has, and the time of the last that landed."""
        for partition, messages in lag.items():
            self.lag.labels(topic, str(partition)).set(messages)
        # Others went to another lander, which shows them.
        for labels in [sample.labels for metric in self.lag.collect() for sample in metric.samples]:
            if labels["topic"] == topic and int(labels["partition"]) not in lag:
                self.lag.remove(topic, labels["partition"])
        # The next ones are not in hand yet, but they came after the last.
        self._oldest = (last or self._oldest) if any(lag.values()) else None

    def cannot_read(self, topic: str, partitions: Mapping[int, str]) -> None:
        """What is wrong with the partitions that cannot be read, while the others land."""
        self.unreadable.clear()
        for partition in partitions:
            self.unreadable.labels(topic, str(partition)).set(1)
        since = self._unreadable[1] if self._unreadable else self._now()
        self._unreadable = (" ".join(partitions.values()), since) if partitions else None

    def fails(self, reason: str) -> None:
        """Landing cannot go on for now."""
        since = self._failing[1] if self._failing else self._now()
        self._failing = (reason, since)

    @property
    def _trouble(self) -> tuple[str, float] | None:
        return self._failing or self._unreadable

    @property
    def failing(self) -> str:
        """Why landing does not go on; empty when it does."""
        if trouble := self._trouble:
            return trouble[0]
        silent = self._now() - self._looked
        return f"No look at the topics for {silent:.0f} s." if silent > HUNG_SECONDS else ""

    def oldest_seconds(self) -> float:
        """Age of the oldest message that is not in the lake, as far as is known; 0 when all is landed."""
        return max(0.0, self._now() - self._oldest) if self._oldest is not None else 0.0

    def health(self) -> dict[str, Any]:
        """The state as JSON values.

        `degraded` means that topics land, but something in the drop folder does not. A restart would not help there.
        """
        failing, trouble, in_files = self.failing, self._trouble, self.files.reason
        return {
            "status": "failing" if failing else "degraded" if in_files else "ok",
            "reason": failing or in_files,
            "failing_seconds": round(self._now() - trouble[1], 1) if trouble else 0,
            "oldest_unlanded_seconds": round(self.oldest_seconds(), 3),
            "seconds_since_commit": None if self._committed is None else round(self._now() - self._committed, 3),
            "files": self.files.as_json(),
        }


@contextmanager
def serve_metrics(metrics: LandingMetrics, address: str) -> Iterator[str]:
    """Serves `/metrics` and `/health` (200, or 503 while failing) until the block ends; gives the URL, `""` for none.

    Args:
        metrics: what to show.
        address: `host:port` of FRAUD_LAND_HTTP; the next free port is taken where that one is not. Empty: nothing.

    Raises:
        SettingError: nothing can be bound there.
    """
    if not address:
        yield ""
        return
    server = _bound(metrics, address)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield f"http://{address.rpartition(':')[0]}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _bound(metrics: LandingMetrics, address: str) -> WSGIServer:
    host, _, first = address.rpartition(":")
    reason = ""
    for port in range(int(first), min(int(first) + _PORTS_TRIED, 65_536)):
        try:
            return make_server(host, port, _app(metrics), BoundedServer, SilentHandler)
        except OSError as error:
            reason = str(error.strerror)
    raise SettingError(f"Setting FRAUD_LAND_HTTP is {address!r}: {reason}. Choose another, or leave it empty for none.")


def _app(metrics: LandingMetrics) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
    numbers = make_wsgi_app(metrics.registry)

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return numbers(environ, start)
        if path == "/health":
            health = metrics.health()
            start("503 Service Unavailable" if health["status"] == "failing" else "200 OK", [_JSON])
            return [json.dumps(health).encode() + b"\n"]
        start("404 Not Found", [_JSON])
        return [b'{"paths": ["/metrics", "/health"]}\n']

    return app


_JSON = ("Content-Type", "application/json")
