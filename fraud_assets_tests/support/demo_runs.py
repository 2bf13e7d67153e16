"""Runs `fraud-assets demo`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def demo(home: Path, *arguments: str) -> dict[str, Any]:
    """Runs a demo in a separate process and returns the summary in its last line."""
    result = subprocess.run(
        [sys.executable, "-m", "fraud_assets.cli", "demo", "--home", str(home), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith(("FRAUD_", "KAFKA_"))},
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.strip() == ""
    return json.loads(result.stdout.splitlines()[-1])
