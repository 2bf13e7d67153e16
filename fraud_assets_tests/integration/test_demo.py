"""`make demo` as users run it: in a new folder, with a summary and a JSON object as the last line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pyarrow.compute as pc
import pytest

from fraud_assets.core.schema import fraud_predictions, transaction_features
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.samples import sample_file
from fraud_assets_tests.support.demo_runs import demo

KEYS = ["landed", "features", "quarantined", "duplicates", "scored", "alerts", "seconds", "lake"]


INTERRUPTED_DEMO = """
import os
from fraud_assets import cli
from fraud_assets.ingest import landing

def stop(*arguments, **named):
    os.kill(os.getpid(), NUMBER)
    raise AssertionError("the signal was not taken")

landing.land_once = stop
cli.main()
"""
"""Code that runs the command line and sends a signal to its own process in the landing step."""


def test_a_demo_in_a_new_folder_accounts_for_every_message(tmp_path: Path) -> None:
    summary = demo(tmp_path / "home", "--count", "5000")
    assert list(summary) == KEYS
    assert summary["landed"] == summary["features"] + summary["quarantined"] + summary["duplicates"]
    assert summary["landed"] == 5000 + 26
    assert summary["scored"] == summary["features"] == 5000 + 26 - summary["quarantined"] - summary["duplicates"]
    assert summary["quarantined"] > 0
    assert 0 < summary["alerts"] < 0.05 * summary["scored"]
    lake = Lake(summary["lake"])
    times = open_dataset(lake.open(transaction_features)).to_table(columns=["tx_datetime"])["tx_datetime"]
    assert pc.max(times).as_py() - pc.min(times).as_py() > timedelta(days=45)
    ids = open_dataset(lake.open(fraud_predictions)).to_table(columns=["transaction_id"])["transaction_id"]
    assert len(ids) == len(ids.unique())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_demo_with_a_short_message(tmp_path: Path, number: int) -> None:
    code = INTERRUPTED_DEMO.replace("NUMBER", str(int(number)))
    result = subprocess.run(
        [sys.executable, "-c", code, "demo", "--home", str(tmp_path / "home"), "--data", str(sample_file("sparkov"))],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={name: value for name, value in os.environ.items() if not name.startswith(("FRAUD_", "KAFKA_"))},
    )
    assert (result.returncode, result.stderr.strip()) == (130, "Interrupted.")
    assert result.stdout.endswith("Landing … failed\n")
