"""The commands and scripts of the documentation run as a reader types them, page by page."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fraud_assets.registry.models import find_champion_version
from fraud_assets.settings import Settings, load_settings
from fraud_assets_tests.support.documentation import PAGES, blocks, console_commands
from fraud_assets_tests.support.starting import ROOT, end_processes
from fraud_assets_tests.support.waiting import until

pytestmark = [pytest.mark.xdist_group("documented"), pytest.mark.timeout(600)]

NOT_RUN = {
    "make ": "CI runs `make test` and `make test-cluster`; the others are run by hand",
    "sudo ": "run by hand; `test_deploy.py` verifies the units",
    "docker ": "there is no container engine; the steps of the Dockerfile were run by hand in an empty Debian",
    "python3.11 -m venv /opt": "run by hand",
    "/opt/fraud_assets/bin/pip": "run by hand",
    "mvn ": "run by hand; `test_spark_session.py` covers FRAUD_SPARK_JARS",
    "mlflow ui": "a server; run by hand",
    "fraud-assets land ": "a service; `test_land_process.py` runs it",
    "fraud-assets land --engine spark": "a service; `test_spark_landing.py` runs it",
    "curl ": "`test_lander_health.py` requests this address",
    "fraud-assets chaos": "`test_chaos.py` runs it",
    "FRAUD_ENGINE=spark ": "`test_spark_cluster.py` materializes on Spark",
}
"""Commands that are not run here, by their beginning, and where they are run instead."""


def is_run(command: str) -> bool:
    if command.startswith("fraud-assets land --once"):
        return True
    return not any(command.startswith(beginning) for beginning in NOT_RUN)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder like the root of the repository after `make setup` and a demo, with a running broker."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / ".venv").symlink_to(sys.prefix)
    run_bash(folder, "fraud-assets demo --home .fraud\nfraud-assets setup")
    broker = subprocess.Popen([sys.executable, "-m", "fraud_assets.cli", "broker"], cwd=folder, env=environment(folder))
    try:
        until(lambda: (folder / ".fraud" / "broker.json").exists())
        yield folder
    finally:
        end_processes([broker])


def environment(folder: Path) -> dict[str, str]:
    """The environment of a new shell in the folder, with the virtual environment activated."""
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "PATH": f"{folder}/.venv/bin:{kept['PATH']}", "PYTHONPATH": str(ROOT)}


def run_bash(folder: Path, script: str) -> str:
    """Runs a script in bash until its first failing command; returns all output."""
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert "Traceback" not in result.stdout
    return result.stdout


def load_settings_of(folder: Path) -> Settings:
    return load_settings(_env_file=folder / ".env", home=folder / ".fraud")


COMMANDS = {
    page.name: [command for command in console_commands(page.read_text(encoding="utf-8")) if is_run(command)]
    for page in PAGES
}


@pytest.mark.parametrize("page", [name for name, commands in COMMANDS.items() if commands])
def test_the_commands_of_a_page_succeed_in_its_order(workplace: Path, page: str) -> None:
    run_bash(workplace, "\n".join(f"echo '$ {number}'\n{line}" for number, line in enumerate(COMMANDS[page], 1)))


def test_a_retried_file_lands(workplace: Path) -> None:
    commands = [
        line for line in COMMANDS["ingest.md"] if "land --once" in line or "may.csv" in line or "failed" in line
    ]
    output = run_bash(workplace, "\n".join(commands).replace("may.csv", "june.csv"))
    assert "exit code 3" in output
    assert "terminal_id" in output, "the reason names the missing column"
    assert (workplace / ".fraud" / "processed" / "june.csv").exists()


@pytest.mark.parametrize("number", range(2))
def test_the_queries_return_rows(workplace: Path, number: int) -> None:
    script = blocks((ROOT / "docs" / "query.md").read_text(encoding="utf-8"), "python")[number]
    output = run_python(workplace, script)
    assert ("score" if number == 0 else "missing_field") in output


def test_the_script_rolls_the_model_back(workplace: Path) -> None:
    run_bash(
        workplace, "dagster asset materialize -m fraud_assets.definitions --select isolation_forest,alert_thresholds"
    )
    before = find_champion_version(load_settings_of(workplace))
    (script,) = blocks((ROOT / "docs" / "operate.md").read_text(encoding="utf-8"), "python")
    run_python(workplace, script)
    assert find_champion_version(load_settings_of(workplace)) == before - 1
    run_bash(workplace, "dagster asset materialize -m fraud_assets.definitions --select fraud_predictions")


@pytest.mark.parametrize(("shell", "words"), [("bash", "fraud-assets qua"), ("zsh", "fraud-assets qua")])
def test_commands_are_completed(workplace: Path, shell: str, words: str) -> None:
    completed = run_bash(
        workplace, f"COMP_WORDS='{words}' COMP_CWORD=1 _FRAUD_ASSETS_COMPLETE={shell}_complete fraud-assets"
    )
    assert "quarantine" in completed
    assert "fraud-assets" in run_bash(workplace, f"_FRAUD_ASSETS_COMPLETE={shell}_source fraud-assets")


def run_python(folder: Path, script: str) -> str:
    (folder / "script.py").write_text(script)
    return run_bash(folder, "python script.py")
