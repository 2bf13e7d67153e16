"""The files in `deploy/` are valid, and their commands exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fraud_assets.cli import COMMANDS
from fraud_assets.settings import Settings, environment_name

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def test_hadolint_finds_no_fault_in_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    lint = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert lint.returncode == 0, lint.stdout + lint.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        # systemd checks that the program exists.
        text = unit.read_text(encoding="utf-8").replace("/opt/fraud_assets/bin/", "/usr/bin/env ")
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    files = sorted(str(path) for path in tmp_path.iterdir())
    verify = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True, check=False)
    assert (verify.returncode, verify.stderr) == (0, "")


def test_the_units_start_programs_that_exist() -> None:
    commands = [re.findall(r"^ExecStart=/opt/fraud_assets/bin/(.*)$", unit.read_text(), re.MULTILINE) for unit in UNITS]
    programs = [command.split() for (command,) in commands]
    assert {program[0] for program in programs} == {"fraud-assets", "dagster-webserver", "dagster-daemon"}
    assert {program[1] for program in programs if program[0] == "fraud-assets"} <= COMMANDS.keys()


def test_the_example_environment_names_settings() -> None:
    names = re.findall(r"^(\w+)=", (DEPLOY / "environment.example").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(names) <= {environment_name(field) for field in Settings.model_fields}


def test_a_command_runs_with_the_environment_of_the_services(tmp_path: Path) -> None:
    """The script runs with its own folders, and without changing the user."""
    text = (DEPLOY / "as-fraud").read_text(encoding="utf-8")
    text = text.replace("/var/lib/fraud_assets", str(tmp_path)).replace("/etc/fraud_assets/", f"{tmp_path}/")
    text = text.replace("setpriv --reuid fraud --regid fraud --init-groups -- ", "")
    (tmp_path / "as-fraud").write_text(text)
    example = (DEPLOY / "environment.example").read_text(encoding="utf-8")
    (tmp_path / "environment").write_text(f"{example}KAFKA_SASL_PASSWORD='a b#$1&'\n")
    shown = subprocess.run(
        ["sh", tmp_path / "as-fraud", "sh", "-c", 'pwd; echo "$DAGSTER_HOME"; echo "$KAFKA_SASL_PASSWORD"'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.splitlines() == [str(tmp_path), "/var/lib/fraud_assets/dagster", "a b#$1&"]
    usage = subprocess.run(["sh", tmp_path / "as-fraud"], capture_output=True, text=True, check=False)
    assert usage.returncode == 2
    assert "usage" in usage.stderr
