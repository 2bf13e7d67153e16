"""`compose.yaml` matches the project: tested versions, ports on loopback only, and existing settings."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from fraud_assets.settings import Settings, environment_name

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text()


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load(TEXT)["services"]


def test_the_images_have_the_tested_versions(services: dict[str, Any]) -> None:
    pom = resources.files("fraud_assets.testing").joinpath("apache-kafka.pom.xml").read_text()
    kafka = re.search(r"<artifactId>kafka_2\.13</artifactId>\s*<version>([\d.]+)<", pom)
    assert kafka
    assert {services[name]["image"] for name in ("kafka", "topics")} == {f"apache/kafka:{kafka[1]}"}
    constraints = (ROOT / "constraints.txt").read_text()
    mlflow = re.search(r"^mlflow==(\S+)", constraints, re.MULTILINE)
    assert mlflow
    assert f"pip install --no-cache-dir mlflow=={mlflow[1]}\n" in services["mlflow"]["build"]["dockerfile_inline"]


def test_ports_are_published_on_loopback_only(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 6
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_env_file_lines_are_settings_and_match_the_services(services: dict[str, Any]) -> None:
    lines = dict(re.findall(r"^#   (\w+)=(\S+)$", TEXT, re.MULTILINE))
    assert lines.keys() <= {environment_name(name) for name in Settings.model_fields}
    keys = services["objects"]["environment"]
    assert {name: lines[name] for name in keys} == keys
    published = {port.split(":")[1] for service in services.values() for port in service.get("ports", [])}
    urls = ("KAFKA_BOOTSTRAP_SERVERS", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL")
    assert {lines[name].rpartition(":")[2] for name in urls} <= published


def test_compose_accepts_the_file() -> None:
    check = Path(sys.executable).with_name("check-jsonschema")
    command = [check, "--builtin-schema", "vendor.compose-spec", ROOT / "compose.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_platform_uses_the_services(services: dict[str, Any]) -> None:
    """The settings of the containers differ from those in `.env` only in the names of the hosts."""
    lines = dict(re.findall(r"^#   (\w+)=(\S+)$", TEXT, re.MULTILINE))
    inside = {"localhost:9092": "kafka:19092", "localhost:5000": "mlflow:5000", "localhost:8333": "objects:8333"}
    inside["localhost/dagster"] = "postgres/dagster"
    for outside, name in inside.items():
        lines = {key: value.replace(outside, name) for key, value in lines.items()}
    assert services["setup"]["environment"] == lines
    for name in ("landing", "webserver", "daemon"):
        assert lines.items() <= services[name]["environment"].items()
        assert services[name]["volumes"] == ["home:/var/lib/fraud_assets"]
