"""Runs a command and checks its error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `fraud-assets …` in a separate process."""
    return subprocess.run(
        [sys.executable, "-m", "fraud_assets.cli", *arguments],
        env={
            **os.environ,
            "FRAUD_HOME": str(home),
            "DAGSTER_HOME": "",
            "FRAUD_KAFKA_TIMEOUT_SECONDS": "2",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_one_sentence(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Asserts that the command failed without a stack trace and that its last line contains all the words."""
    assert result.returncode not in (0, -9), result.stderr
    assert "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in line
