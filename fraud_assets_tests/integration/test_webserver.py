"""The web server loads the workspace file and shows the expected assets, jobs, sensors and schedules."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from fraud_assets.operations.setup_home import prepare_home
from fraud_assets.settings import Settings

REPOSITORY = Path(__file__).parents[2]
WORKSPACE = str(REPOSITORY / "workspace.yaml")
DEPENDENCIES: dict[str, set[str]] = {
    "transactions_topic": set(),
    "labels_topic": set(),
    "drop_folder": set(),
    "raw_transactions": {"transactions_topic", "drop_folder"},
    "fraud_labels": {"labels_topic", "drop_folder"},
    "transaction_features": {"raw_transactions", "fraud_labels"},
    "quarantined_transactions": {"raw_transactions", "fraud_labels"},
    "isolation_forest": {"transaction_features"},
    "alert_thresholds": {"transaction_features"},
    "fraud_predictions": {"transaction_features", "isolation_forest", "alert_thresholds"},
    "model_registry": {"isolation_forest"},
    "lake_maintenance": set(),
}

Query = Callable[[str], dict[str, Any]]


@pytest.fixture
def query(settings: Settings) -> Iterator[Query]:
    """`query(text)` sends a GraphQL query to a web server that runs only for the test, and returns the data.

    The server does not run in the repository's folder, because there the `.env` would override the environment.
    """
    prepare_home(settings)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "FRAUD_HOME": str(settings.home_path),
        "DAGSTER_HOME": str(settings.home_path / "dagster"),
        "PYTHONPATH": str(REPOSITORY),
    }
    log = settings.home_path / "webserver.log"
    with log.open("w") as output, requests.Session() as session:
        server = subprocess.Popen(
            [sys.executable, "-m", "dagster_webserver", "-w", WORKSPACE, "-h", "127.0.0.1", "-p", str(port)],
            cwd=settings.home_path,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # Retry every quarter of a second, for at most a minute, until the server listens.
        session.mount("http://", HTTPAdapter(max_retries=Retry(240, backoff_factor=0.25, backoff_max=0.25)))

        def send_query(text: str) -> dict[str, Any]:
            answer = session.post(f"http://127.0.0.1:{port}/graphql", json={"query": text}, timeout=60).json()
            assert "errors" not in answer, answer
            return answer["data"]

        try:
            yield send_query
        finally:
            server.terminate()
            try:
                server.wait(20)
            finally:
                # The code server is a child process of the web server.
                kill_group(server.pid)


def kill_group(leader: int) -> None:
    """Kill the remaining processes of a process group."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def test_the_asset_graph_sensors_schedules_and_jobs_are_shown(query: Query) -> None:
    nodes = query("{ assetNodes { assetKey { path } dependencyKeys { path } groupName isExecutable } }")["assetNodes"]
    graph = {node["assetKey"]["path"][-1]: {key["path"][-1] for key in node["dependencyKeys"]} for node in nodes}
    assert graph == DEPENDENCIES
    external = {node["assetKey"]["path"][-1] for node in nodes if not node["isExecutable"]}
    assert external == {"transactions_topic", "labels_topic", "drop_folder", "model_registry"}

    locations = query(
        """{ repositoriesOrError { __typename ... on RepositoryConnection { nodes {
            location { name }
            jobs { name }
            sensors { name sensorState { status } }
            schedules { name cronSchedule scheduleState { status } }
        } } } }"""
    )["repositoriesOrError"]
    (repository,) = locations["nodes"]
    assert repository["location"]["name"] == "fraud_assets"
    assert {sensor["name"]: sensor["sensorState"]["status"] for sensor in repository["sensors"]} == {
        "new_files_sensor": "RUNNING",
        "dropped_files_sensor": "RUNNING",
    }
    assert {s["name"]: (s["cronSchedule"], s["scheduleState"]["status"]) for s in repository["schedules"]} == {
        "training_schedule": ("0 3 * * 1", "RUNNING"),
        "maintenance_schedule": ("*/15 * * * *", "RUNNING"),
    }
    jobs = {job["name"] for job in repository["jobs"]}
    assert jobs >= {"score_new_transactions", "land_files", "train_model", "maintain_lake"}
