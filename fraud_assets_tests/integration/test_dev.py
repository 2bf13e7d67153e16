"""`fraud-assets dev` runs the whole platform, and ends all of its processes."""

from __future__ import annotations

import os
import signal
import socket

import requests

from fraud_assets.kafka.broker import find_broker
from fraud_assets.settings import Settings
from fraud_assets.system.ports import find_free_ports, is_free
from fraud_assets_tests.support.starting import Start
from fraud_assets_tests.support.waiting import until


def is_served(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


def test_dev_runs_broker_landing_and_web_ui_until_it_is_stopped(start: Start, settings: Settings) -> None:
    ports = find_free_ports(["web", "landing"])
    landing = f"127.0.0.1:{ports['landing']}"
    dev = start("dev", "--no-traffic", "--port", str(ports["web"]), FRAUD_LAND_HTTP=landing)
    until(
        lambda: is_served(f"http://127.0.0.1:{ports['web']}/server_info") and is_served(f"http://{landing}/health"), 200
    )
    broker = find_broker(settings)
    assert broker.embedded
    second = start("dev", "--no-traffic", "--port", str(ports["web"]))
    assert "A lander already runs" in second.communicate(timeout=60)[1]
    assert second.returncode == 1
    os.kill(dev.pid, signal.SIGINT)
    output, errors = dev.communicate(timeout=60)
    assert dev.returncode == 0, output + errors
    until(lambda: is_free(ports["web"]) and is_free(ports["landing"]))
    assert not settings.broker_file.exists()


def test_dev_refuses_a_port_that_is_in_use(start: Start) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        dev = start("dev", "--port", str(other.getsockname()[1]))
        _, errors = dev.communicate(timeout=60)
    assert dev.returncode == 1
    assert "is in use" in errors
    assert "started" not in errors
