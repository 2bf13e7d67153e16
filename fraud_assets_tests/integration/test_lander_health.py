"""The drop folder in a lander's HTTP responses; neither clients nor open files can end a lander."""

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


def ask(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def health(url: str) -> dict[str, Any]:
    return json.loads(ask(f"{url}/health")[1])


def rows(lake: Lake) -> int:
    return read_row_count(lake.open(raw_transactions)) if lake.exists(raw_transactions) else 0


class Panic(BaseException):
    """As delta-rs raises it."""


# --- The drop folder ------------------------------------------------------------------------------------------------


def test_health_and_metrics_show_the_drop_folder_while_topics_land(
    make_settings: Callable[..., Settings], lake: Lake, send: Send
) -> None:
    settings = make_settings(land_interval_seconds=0.05)
    drop(settings, "z.jsonl", '{"n": 1}\n')
    (settings.incoming / "loop.csv").symlink_to("loop.csv")
    (settings.incoming / "folder").mkdir()
    send("transactions", [b"1"])
    metrics, told = LandingMetrics(), list[dict[str, LandingReport]]()
    with (
        serve_metrics(metrics, "127.0.0.1:0") as url,
        always_on(partial(land_forever, lake, settings, metrics=metrics, on_report=told.append)) as said,
    ):
        until(lambda: rows(lake) == 2 and health(url)["files"]["failed"] == 1)
        until(lambda: "fraud_files_landed_total 1.0" in ask(f"{url}/metrics")[1])
        code, body = ask(f"{url}/health")
        shown = json.loads(body)
        # Messages land, so that a supervisor has no reason to start another.
        assert code == 200
        assert shown["status"] == "degraded"
        assert "Move the files out of the folder" in shown["reason"]
        assert shown["files"]["last_failed"]["file"] == "loop.csv"
        assert "symbolic link" in shown["files"]["last_failed"]["reason"]
        assert list(shown["files"]["stuck"]) == ["folder"]
        numbers = ask(f"{url}/metrics")[1]
        for line in ("fraud_files_failed_total 1.0", "fraud_files_stuck 1.0", "fraud_files_failing 0.0"):
            assert line in numbers
        (settings.incoming / "folder").rmdir()
        until(lambda: health(url)["status"] == "ok")
    assert sum("folder is a folder" in line for line in said) == 1
    # Dagster hears of it too.
    assert {name for reports in told for name in reports["raw_transactions"].failed} == {"loop.csv"}


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), RuntimeError("a fault of ours"), Panic("panicked")]
)
def test_a_drop_folder_that_fails_ends_no_lander(
    make_settings: Callable[..., Settings],
    lake: Lake,
    send: Send,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    settings = make_settings(land_interval_seconds=0.05)
    monkeypatch.setattr(outages, "_LONGEST_PAUSE_SECONDS", 0.05)
    broken = [True]

    def failing(*arguments: Any) -> Any:
        if broken:
            raise error
        return land_files(*arguments)

    monkeypatch.setattr(outages, "land_files", failing)
    drop(settings, "z.jsonl", '{"n": 1}\n')
    metrics = LandingMetrics()
    with always_on(partial(land_forever, lake, settings, metrics=metrics)) as said:
        until(lambda: bool(metrics.health()["files"]["failing"]))
        send("transactions", [b"1"])
        until(lambda: rows(lake) == 1)
        shown = metrics.health()
        assert shown["status"] == "degraded"
        assert str(error.args[-1]) in shown["reason"]
        broken.clear()
        until(lambda: rows(lake) == 2 and metrics.health()["status"] == "ok")
    assert "Landing of files works again." in said


# --- Connections ----------------------------------------------------------------------------------------------------


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, **limits: float) -> Iterator[tuple[str, int]]:
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


def test_the_oldest_connection_makes_room_for_the_next(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(monkeypatch, max_connections=4, connection_seconds=600) as (url, port), ExitStack() as opened:
        idle = [opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(20)]
        assert ask(f"{url}/health")[0] == 200
        # Three of the idle ones are left at most.
        assert all(map(is_closed, idle[:17]))
        served_by = [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]
        assert len(served_by) <= 4
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\nHost: a\r\n"])
def test_a_connection_has_a_time_limit(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """Also for a client that sends a byte now and then."""
    with serving(monkeypatch, connection_seconds=0.2) as (url, port):
        with socket.create_connection(("127.0.0.1", port)) as slow:
            begun = time.monotonic()
            slow.settimeout(0.05)
            closed = False
            while not closed and time.monotonic() - begun < 10:
                try:
                    slow.sendall(sent[:1] or b"")
                    closed = slow.recv(1) == b""
                except TimeoutError:
                    continue
                except ConnectionError:
                    closed = True
            assert closed
        assert ask(f"{url}/health")[0] == 200


# --- Open files -----------------------------------------------------------------------------------------------------


def test_neither_connections_nor_open_files_end_a_lander(settings: Settings, lake: Lake, start: Start) -> None:
    with embedded_broker(settings) as broker:
        lander = start("land")
        until(lambda: bool(find_running_landers(settings).get(lander.pid)))
        url = find_running_landers(settings)[lander.pid]
        sender(broker)("transactions", [b"1"])
        until(lambda: rows(lake) == 1)
        limits = resource.prlimit(lander.pid, resource.RLIMIT_NOFILE)
        # More idle connections than it may have files open. It lands and answers while they are there, and after.
        resource.prlimit(lander.pid, resource.RLIMIT_NOFILE, (100, limits[1]))
        with ExitStack() as opened:
            for _ in range(150):
                opened.enter_context(socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20))
            sender(broker)("transactions", [b"2"])
            drop(settings, "y.jsonl", '{"n": 1}\n')
            until(lambda: rows(lake) == 3)
            assert ask(f"{url}/health")[0] == 200
        assert health(url)["status"] == "ok"
        resource.prlimit(lander.pid, resource.RLIMIT_NOFILE, (1, limits[1]))
    # Not one more: for the next broker, the lake and the drop folder. What is dropped is not taken for bad.
    drop(settings, "z.jsonl", '{"n": 2}\n')
    with embedded_broker(settings) as broker:
        sender(broker)("transactions", [b"3"])
        assert lander.stderr
        said = next(line for line in lander.stderr if "ulimit -n" in line)
        assert rows(lake) == 3
        resource.prlimit(lander.pid, resource.RLIMIT_NOFILE, limits)
        until(lambda: rows(lake) == 5)
    lander.send_signal(signal.SIGTERM)
    _, rest = lander.communicate(timeout=20)
    assert lander.returncode == 0
    assert "Traceback" not in said + rest
    assert not settings.failed.exists()


def test_too_many_open_files_say_nothing_about_the_broker(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise OSError(24, "Too many open files")

    with embedded_broker(settings):
        for owner, name in ((socket, "create_connection"), (Path, "read_text")):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, exhausted)
                with pytest.raises(BrokerError, match="ulimit -n"):
                    find_broker(settings)
        assert find_broker(settings).embedded


def test_too_many_open_files_are_no_wrong_setting_of_kafka(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """A certificate that cannot be opened now is not a wrong one: an error of a setting would end the lander."""
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


def test_stuck_entries_are_shown_until_they_are_gone(settings: Settings, lake: Lake) -> None:
    metrics, stuck = LandingMetrics(), StuckEntries()
    drop(settings, "a.xlsx", "x")
    settings.failed.write_text("no folder")

    def look() -> dict[str, Any]:
        metrics.files.record_pass(land_files(lake, settings, stuck=stuck), stuck.reasons)
        return metrics.health()

    assert look()["status"] == "degraded"
    assert "cannot be moved" in look()["reason"]
    assert metrics.health()["files"]["failed"] == 0
    (settings.incoming / "a.xlsx").unlink()
    assert look()["status"] == "ok"
