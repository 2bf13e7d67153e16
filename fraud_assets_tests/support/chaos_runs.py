"""Runs `fraud-assets chaos`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fraud_assets.testing.apache_kafka import describe_obstacle


def chaos(tmp_path: Path, *arguments: str, seconds: float) -> dict[str, Any]:
    if reason := describe_obstacle():
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, "-m", "fraud_assets.cli", "chaos", "--json", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)
