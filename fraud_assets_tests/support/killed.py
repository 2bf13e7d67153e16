"""Kills processes at a chosen call, and checks that no row is lost or repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from fraud_assets.core.schema import (
    POSITION_COLUMNS,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.operations.reconciliation import reconcile
from fraud_assets.settings import Settings

MESSAGES = 400


START = """
import os, signal, sys
from fraud_assets.settings import load_settings
from fraud_assets.lake.tables import Lake
settings = load_settings(batch_rows=150, land_batch_rows=90, train_min_rows=50, train_trees=5)
lake = Lake.of(settings)
def die_at(module, name, call, after=False):
    # The process dies at the call-th use of a function, before or after its effect.
    real, calls = getattr(module, name), [0]
    def deadly(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(module, name, deadly)
"""


LAND = """from fraud_assets.engines import landing_tables as landing
from fraud_assets.engines.local.landing import land_topics
{}
land_topics(lake, settings)"""


FEATURES = "from fraud_assets.stages import features\n{}\nfeatures.process_landed(lake, settings)"


SCORE = "from fraud_assets.stages import scoring\n{}\nscoring.score_pending(lake, settings)"


def start(settings: Settings, code: str) -> subprocess.Popen[str]:
    """Starts a process on the same lake and broker."""
    environment = {**os.environ, "FRAUD_HOME": str(settings.home_path)}
    return subprocess.Popen(
        [sys.executable, "-c", START + code], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def killed(settings: Settings, code: str) -> None:
    """Runs the code in a process that SIGKILL must end."""
    process = start(settings, code)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors


def message(number: int) -> bytes:
    """A message body: every 10th one is invalid, every 15th one repeats an earlier id."""
    if number % 10 == 3:
        return b'{"transaction_id": ' + str(number).encode()
    body = {
        "transaction_id": number - 1 if number % 15 == 5 else number,
        "tx_datetime": (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=20 * number)).isoformat(),
        "customer_id": number % 17,
        "terminal_id": number % 23,
        "tx_amount": number / 7,
    }
    return json.dumps(body).encode()


def positions(lake: Lake, *tables: Any) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for table in tables:
        columns = open_dataset(lake.open(table)).to_table(columns=list(POSITION_COLUMNS)).to_pydict()
        rows += list(zip(*columns.values(), strict=True))
    return sorted(rows)


def assert_balanced(lake: Lake, settings: Settings) -> None:
    """Asserts that every message landed once and is in either features or quarantine, also by the reconciliation."""
    landed = positions(lake, raw_transactions)
    assert len(landed) == len(set(landed)) == MESSAGES
    assert positions(lake, transaction_features, quarantined_transactions) == landed
    totals = reconcile(lake, settings)
    assert totals["landed"] == totals["features"] + totals["quarantined"] + totals["duplicates"]
    assert totals["quarantined"] == sum(n % 10 == 3 for n in range(MESSAGES))
    assert totals["duplicates"] > 0
