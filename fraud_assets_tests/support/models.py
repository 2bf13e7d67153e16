"""A small model, and processes that register it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from datetime import timedelta

from fraud_assets.registry.home import find_sqlite_path
from fraud_assets.registry.models import find_champion_version
from fraud_assets.registry.registration import TrainingFacts
from fraud_assets.settings import load_settings
from fraud_assets_tests.support.synthetic import FIRST, features


def facts():
    return TrainingFacts(20, FIRST, FIRST + timedelta(days=1), 3, 42, features(20), {"threshold": 0.6})


REGISTER = """
from fraud_assets_tests.support.models import facts
from fraud_assets.core.training import fit
from fraud_assets.registry.registration import register_model, set_champion
from fraud_assets.settings import load_settings
settings = load_settings()
for _ in range(2):
    set_champion(register_model(fit(facts().example, 3), facts(), settings).version, settings)
"""


def start(code, settings):
    environment = {**os.environ, "FRAUD_HOME": str(settings.home_path), "MLFLOW_TRACKING_URI": ""}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(code, settings):
    process = start(code, settings)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(code, process.returncode, out, err)


def assert_first_trainings_are_quiet(home, processes):
    """Asserts that processes which share a new registry all register their models and print nothing."""
    settings = load_settings(home=home, mlflow_tracking_uri="")
    started = [start(REGISTER, settings) for _ in range(processes)]
    for process in started:
        out, err = process.communicate(timeout=100)
        assert (process.returncode, out, err) == (0, "", "")
    with sqlite3.connect(find_sqlite_path(settings.mlflow_uri)) as connection:
        versions = connection.execute("select version from model_versions order by 1").fetchall()
    assert versions == [(version,) for version in range(1, 2 * processes + 1)]
    assert find_champion_version(settings) >= processes
