"""The drop folder in a lander's HTTP responses. Neither connections nor open files stop a lander."""

from __future__ import annotations

import json
import resource
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

from fraud_assets.core.schema import raw_transactions
from fraud_assets.engines.landing_report import LandingReport
from fraud_assets.errors import BrokerError, DiskError
from fraud_assets.ingest.files.landing import land_files
from fraud_assets.ingest.files.stuck_entries import StuckEntries
from fraud_assets.ingest.service import outages
from fraud_assets.ingest.service.bounded_server import BoundedServer
from fraud_assets.ingest.service.lander import land_forever
from fraud_assets.ingest.service.metrics import LandingMetrics, serve_metrics
from fraud_assets.ingest.service.presence import find_running_landers
from fraud_assets.kafka.broker import embedded_broker, find_broker
from fraud_assets.kafka.connection import load_connection, select_known_settings
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings
from fraud_assets_tests.support.dropped import drop
from fraud_assets_tests.support.starting import Send, Start, sender
from fraud_assets_tests.support.topics import always_on
from fraud_assets_tests.support.waiting import until


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def fetch_health(url: str) -> dict[str, Any]:
    return json.loads(fetch(f"{url}/health")[1])


def count_rows(lake: Lake) -> int:
    return read_row_count(lake.open(raw_transactions)) if lake.exists(raw_transactions) else 0


class Panic(BaseException):
    """A panic of delta-rs, which is not an `Exception`."""


# --- The drop folder ------------------------------------------------------------------------------------------------


def test_health_and_metrics_show_the_drop_folder_while_topics_land(
    make_settings: Callable[..., Settings], lake: Lake, send: Send
) -> None:
    settings = make_settings(land_interval_seconds=0.05)
    drop(settings, "z.jsonl", '{"n": 1}\n')
    (settings.incoming / "loop.csv").symlink_to("loop.csv")
    (settings.incoming / "folder").mkdir()
    send("transactions", [b"1"])
    metrics, all_reports = LandingMetrics(), list[dict[str, LandingReport]]()
    with (
        serve_metrics(metrics, "127.0.0.1:0") as url,
        always_on(partial(land_forever, lake, settings, metrics=metrics, on_report=all_reports.append)) as log_lines,
    ):
        until(lambda: count_rows(lake) == 2 and fetch_health(url)["files"]["failed"] == 1)
        until(lambda: "fraud_files_landed_total 1.0" in fetch(f"{url}/metrics")[1])
        code, body = fetch(f"{url}/health")
        health_report = json.loads(body)
        # Messages land, so a supervisor has no reason to restart the lander.
        assert code == 200
        assert health_report["status"] == "degraded"
        assert "Move the files out of the folder" in health_report["reason"]
        assert health_report["files"]["last_failed"]["file"] == "loop.csv"
        assert "symbolic link" in health_report["files"]["last_failed"]["reason"]
        assert list(health_report["files"]["stuck"]) == ["folder"]
        metrics_text = fetch(f"{url}/metrics")[1]
        for line in ("fraud_files_failed_total 1.0", "fraud_files_stuck 1.0", "fraud_files_failing 0.0"):
            assert line in metrics_text
        (settings.incoming / "folder").rmdir()
        until(lambda: fetch_health(url)["status"] == "ok")
    assert sum("folder is a folder" in line for line in log_lines) == 1
    # The reports for Dagster contain the failed file too.
    assert {name for reports in all_reports for name in reports["raw_transactions"].failed} == {"loop.csv"}


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), RuntimeError("a fault of ours"), Panic("panicked")]
)
def test_an_error_in_the_drop_folder_does_not_stop_the_lander(
    make_settings: Callable[..., Settings],
    lake: Lake,
    send: Send,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    settings = make_settings(land_interval_seconds=0.05)
    monkeypatch.setattr(outages, "_LONGEST_PAUSE_SECONDS", 0.05)
    broken = [True]

    def land_or_fail(*arguments: Any) -> Any:
        if broken:
            raise error
        return land_files(*arguments)

    monkeypatch.setattr(outages, "land_files", land_or_fail)
    drop(settings, "z.jsonl", '{"n": 1}\n')
    metrics = LandingMetrics()
    with always_on(partial(land_forever, lake, settings, metrics=metrics)) as log_lines:
        until(lambda: bool(metrics.health()["files"]["failing"]))
        send("transactions", [b"1"])
        until(lambda: count_rows(lake) == 1)
        health_report = metrics.health()
        assert health_report["status"] == "degraded"
        assert str(error.args[-1]) in health_report["reason"]
        broken.clear()
        until(lambda: count_rows(lake) == 2 and metrics.health()["status"] == "ok")
    assert "Landing of files works again." in log_lines


# --- Connections ----------------------------------------------------------------------------------------------------


@contextmanager
def metrics_server(monkeypatch: pytest.MonkeyPatch, **limits: float) -> Iterator[tuple[str, int]]:
    for name, value in limits.items():
        monkeypatch.setattr(BoundedServer, name, value)
    with serve_metrics(LandingMetrics(), "127.0.0.1:0") as url:
        yield url, int(url.rpartition(":")[2])


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(10)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_the_oldest_connection_is_closed_for_a_new_one(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with metrics_server(monkeypatch, max_connections=4, connection_seconds=600) as (url, port), ExitStack() as opened:
        idle = [opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(20)]
        assert fetch(f"{url}/health")[0] == 200
        # At most three idle connections stay open.
        assert all(map(is_closed, idle[:17]))
        handlers = [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]
        assert len(handlers) <= 4
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\nHost: a\r\n"])
def test_a_connection_has_a_time_limit(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """The limit also applies to a client that sends single bytes."""
    with metrics_server(monkeypatch, connection_seconds=0.2) as (url, port):
        with socket.create_connection(("127.0.0.1", port)) as slow:
            started_at = time.monotonic()
            slow.settimeout(0.05)
            closed = False
            while not closed and time.monotonic() - started_at < 10:
                try:
                    slow.sendall(sent[:1] or b"")
                    closed = slow.recv(1) == b""
                except TimeoutError:
                    continue
                except ConnectionError:
                    closed = True
            assert closed
        assert fetch(f"{url}/health")[0] == 200


# --- Open files -----------------------------------------------------------------------------------------------------


def test_neither_connections_nor_open_files_stop_a_lander(settings: Settings, lake: Lake, start: Start) -> None:
    with embedded_broker(settings) as broker:
        lander = start("land")
        until(lambda: bool(find_running_landers(settings).get(lander.pid)))
        url = find_running_landers(settings)[lander.pid]
        sender(broker)("transactions", [b"1"])
        until(lambda: count_rows(lake) == 1)
        limits = resource.prlimit(lander.pid, resource.RLIMIT_NOFILE)
        # There are more idle connections than the process may have open files. The lander still lands and responds.
        resource.prlimit(lander.pid, resource.RLIMIT_NOFILE, (100, limits[1]))
        with ExitStack() as opened:
            for _ in range(150):
                opened.enter_context(socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20))
            sender(broker)("transactions", [b"2"])
            drop(settings, "y.jsonl", '{"n": 1}\n')
            until(lambda: count_rows(lake) == 3)
            assert fetch(f"{url}/health")[0] == 200
        assert fetch_health(url)["status"] == "ok"
        resource.prlimit(lander.pid, resource.RLIMIT_NOFILE, (1, limits[1]))
    # The process can open no more files: no broker, table or dropped file. The dropped file does not count as bad.
    drop(settings, "z.jsonl", '{"n": 2}\n')
    with embedded_broker(settings) as broker:
        sender(broker)("transactions", [b"3"])
        assert lander.stderr
        log_line = next(line for line in lander.stderr if "ulimit -n" in line)
        assert count_rows(lake) == 3
        resource.prlimit(lander.pid, resource.RLIMIT_NOFILE, limits)
        until(lambda: count_rows(lake) == 5)
    lander.send_signal(signal.SIGTERM)
    _, remaining_log = lander.communicate(timeout=20)
    assert lander.returncode == 0
    assert "Traceback" not in log_line + remaining_log
    assert not settings.failed.exists()


def test_too_many_open_files_are_not_reported_as_a_missing_broker(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise OSError(24, "Too many open files")

    with embedded_broker(settings):
        for owner, name in ((socket, "create_connection"), (Path, "read_text")):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, exhausted)
                with pytest.raises(BrokerError, match="ulimit -n"):
                    find_broker(settings)
        assert find_broker(settings).embedded


def test_too_many_open_files_are_not_reported_as_a_wrong_kafka_setting(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """A certificate that cannot be opened at the moment is not a wrong setting, which would stop the lander."""
    properties = tmp_path / "client.properties"
    properties.write_text("bootstrap.servers=127.0.0.1:1\n")
    authority = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(authority)
    by_file = make_settings(kafka_client_properties=str(properties))
    by_setting = make_settings(kafka_bootstrap_servers="127.0.0.1:1", kafka_ssl_ca_location=str(authority))
    for settings in (by_file, by_setting):
        select_known_settings(load_connection(settings))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
    try:
        for settings in (by_file, by_setting):
            with pytest.raises(DiskError, match="ulimit -n"):
                select_known_settings(load_connection(settings))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_stuck_entries_are_shown_until_they_are_removed(settings: Settings, lake: Lake) -> None:
    metrics, stuck = LandingMetrics(), StuckEntries()
    drop(settings, "a.xlsx", "x")
    settings.failed.write_text("no folder")

    def land_and_get_health() -> dict[str, Any]:
        metrics.files.record_pass(land_files(lake, settings, stuck=stuck), stuck.reasons)
        return metrics.health()

    assert land_and_get_health()["status"] == "degraded"
    assert "cannot be moved" in land_and_get_health()["reason"]
    assert metrics.health()["files"]["failed"] == 0
    (settings.incoming / "a.xlsx").unlink()
    assert land_and_get_health()["status"] == "ok"
