"""Metrics and health of one lander, served over HTTP to Prometheus and to a supervisor."""

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
"""A lander that has not polled its topics for this long counts as failing, regardless of its last report."""

_PORTS_TRIED = 50
_COMMIT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class LandingMetrics:
    """Metrics of one lander since its start, and whether it is healthy."""

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
            "Seconds from the end of reading a batch to its commit.",
            ["table"],
            buckets=_COMMIT_BUCKETS,
            registry=self.registry,
        )
        self.lag = Gauge(
            "fraud_landing_lag_messages",
            "Messages on the broker that have not landed.",
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
            "Age of the oldest message that has not landed; 0 if all have landed.",
            registry=self.registry,
        )
        oldest.set_function(self.oldest_seconds)
        failing = Gauge("fraud_landing_failing", "1 while landing cannot continue, else 0.", registry=self.registry)
        failing.set_function(lambda: float(bool(self.failing)))
        self.files = FileHealth(self.registry, now)
        self._oldest_waiting: float | None = None
        self._failing_since: tuple[str, float] | None = None
        self._unreadable_since: tuple[str, float] | None = None
        self._polled = now()
        self._last_commit: float | None = None

    def record_poll(self) -> None:
        """Records that the lander has polled its topics."""
        self._polled = self._now()

    def record_waiting(self, oldest: float | None) -> None:
        """Records the time (seconds since 1970) of the earliest message of the batch that is about to be committed."""
        self._oldest_waiting = oldest

    def record_landed(self, reports: Iterable[LandingReport]) -> None:
        """Adds committed rows and clears the reason of a failure."""
        for report in reports:
            self.rows.labels(report.table).inc(report.rows)
            self.bytes.labels(report.table).inc(report.bytes)
            if report.rows:
                self._last_commit = self._now()
                self.commit_seconds.labels(report.table).observe(report.seconds)
        self._failing_since = None

    def record_lag(self, topic: str, lag: Mapping[int, int], last: float | None) -> None:
        """Records the lag of this lander's partitions.

        Args:
            topic: the transactions topic.
            lag: messages that have not landed, by partition.
            last: time of the last message that landed, in seconds since 1970.
        """
        for partition, messages in lag.items():
            self.lag.labels(topic, str(partition)).set(messages)
        # The other partitions were assigned to another lander, which shows them.
        for labels in [sample.labels for metric in self.lag.collect() for sample in metric.samples]:
            if labels["topic"] == topic and int(labels["partition"]) not in lag:
                self.lag.remove(topic, labels["partition"])
        # The next messages are not read yet, but they are newer than the last that landed.
        self._oldest_waiting = (last or self._oldest_waiting) if any(lag.values()) else None

    def set_unreadable(self, topic: str, partitions: Mapping[int, str]) -> None:
        """Records the partitions that cannot be read while the others land, with the reason of each."""
        self.unreadable.clear()
        for partition in partitions:
            self.unreadable.labels(topic, str(partition)).set(1)
        since = self._unreadable_since[1] if self._unreadable_since else self._now()
        self._unreadable_since = (" ".join(partitions.values()), since) if partitions else None

    def set_failing(self, reason: str) -> None:
        """Records that landing currently cannot continue."""
        since = self._failing_since[1] if self._failing_since else self._now()
        self._failing_since = (reason, since)

    @property
    def _current_failure(self) -> tuple[str, float] | None:
        return self._failing_since or self._unreadable_since

    @property
    def failing(self) -> str:
        """Why landing cannot continue; empty if it can."""
        if failure := self._current_failure:
            return failure[0]
        silent = self._now() - self._polled
        return f"The topics were not polled for {silent:.0f} s." if silent > HUNG_SECONDS else ""

    def oldest_seconds(self) -> float:
        """Returns the known age in seconds of the oldest message that has not landed; 0 if all have landed."""
        return max(0.0, self._now() - self._oldest_waiting) if self._oldest_waiting is not None else 0.0

    def health(self) -> dict[str, Any]:
        """Returns the state as JSON values.

        `degraded` means that topics land, but an entry of the drop folder does not. A restart would not help.
        """
        failing, failure, file_reason = self.failing, self._current_failure, self.files.reason
        return {
            "status": "failing" if failing else "degraded" if file_reason else "ok",
            "reason": failing or file_reason,
            "failing_seconds": round(self._now() - failure[1], 1) if failure else 0,
            "oldest_unlanded_seconds": round(self.oldest_seconds(), 3),
            "seconds_since_commit": None if self._last_commit is None else round(self._now() - self._last_commit, 3),
            "files": self.files.as_json(),
        }


@contextmanager
def serve_metrics(metrics: LandingMetrics, address: str) -> Iterator[str]:
    """Serves `/metrics` and `/health` (200, or 503 while failing) until the block ends, and yields the URL.

    Args:
        metrics: the metrics to serve.
        address: `host:port` of FRAUD_LAND_HTTP. If the port is in use, the next free port is used. If the address is
            empty, nothing is served and the URL is empty.

    Raises:
        SettingError: the server cannot listen at the address.
    """
    if not address:
        yield ""
        return
    server = _bind_server(metrics, address)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield f"http://{address.rpartition(':')[0]}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _bind_server(metrics: LandingMetrics, address: str) -> WSGIServer:
    host, _, first = address.rpartition(":")
    reason = ""
    for port in range(int(first), min(int(first) + _PORTS_TRIED, 65_536)):
        try:
            return make_server(host, port, _make_app(metrics), BoundedServer, SilentHandler)
        except OSError as error:
            reason = str(error.strerror)
    raise SettingError(
        f"Setting FRAUD_LAND_HTTP is {address!r}: {reason}. Choose another address, or leave it empty to serve nothing."
    )


def _make_app(metrics: LandingMetrics) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
    metrics_app = make_wsgi_app(metrics.registry)

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics_app(environ, start)
        if path == "/health":
            health = metrics.health()
            start("503 Service Unavailable" if health["status"] == "failing" else "200 OK", [_JSON])
            return [json.dumps(health).encode() + b"\n"]
        start("404 Not Found", [_JSON])
        return [b'{"paths": ["/metrics", "/health"]}\n']

    return app


_JSON = ("Content-Type", "application/json")
