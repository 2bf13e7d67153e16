"""SIGKILL at the worst moments, races, and maintenance in between: afterwards the books balance to the message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Producer

from fraud_assets.core.schema import (
    POSITION_COLUMNS,
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.kafka.broker import find_broker
from fraud_assets.lake.tables import Lake, dataset_of
from fraud_assets.operations.maintenance import maintain_lake
from fraud_assets.operations.reconciliation import reconcile
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed
from fraud_assets.stages.scoring import score_pending
from fraud_assets.stages.training import train

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
    """A process of its own on the same lake and broker."""
    environment = {**os.environ, "FRAUD_HOME": str(settings.home_path)}
    return subprocess.Popen(
        [sys.executable, "-c", START + code], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def killed(settings: Settings, code: str) -> None:
    """Runs the code in a process that must die of SIGKILL."""
    process = start(settings, code)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors


def message(number: int) -> bytes:
    """Every 10th body is broken, every 15th repeats an earlier id."""
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


@pytest.fixture
def produced(settings: Settings, broker: Any) -> Settings:
    """A topic with `MESSAGES` messages, some of them bad."""
    producer = Producer({"bootstrap.servers": find_broker(settings).bootstrap})
    for number in range(MESSAGES):
        producer.produce(settings.transactions_topic, message(number), key=str(number % 17).encode())
    assert producer.flush(30) == 0
    return settings.model_copy(
        update={"batch_rows": 150, "land_batch_rows": 90, "train_min_rows": 50, "train_trees": 5}
    )


def positions(lake: Lake, *tables: Any) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for table in tables:
        columns = dataset_of(lake.open(table)).to_table(columns=list(POSITION_COLUMNS)).to_pydict()
        rows += list(zip(*columns.values(), strict=True))
    return sorted(rows)


def assert_balanced(lake: Lake, settings: Settings) -> None:
    """Every message landed once, is in exactly one of features and quarantine, and reports agree."""
    landed = positions(lake, raw_transactions)
    assert len(landed) == len(set(landed)) == MESSAGES
    assert positions(lake, transaction_features, quarantined_transactions) == landed
    totals = reconcile(lake, settings)
    assert totals["landed"] == totals["features"] + totals["quarantined"] + totals["duplicates"]
    assert totals["quarantined"] == sum(n % 10 == 3 for n in range(MESSAGES))
    assert totals["duplicates"] > 0


def test_killed_between_quarantine_and_features(produced: Settings, lake: Lake) -> None:
    land_topics(lake, produced)
    killed(produced, FEATURES.format("die_at(features, 'commit_append', 2)"))
    assert positions(lake, transaction_features) == []
    assert positions(lake, quarantined_transactions) != []
    process_landed(lake, produced)
    assert_balanced(lake, produced)


def test_more_lands_between_the_kill_and_the_next_run(produced: Settings, lake: Lake) -> None:
    killed(produced, LAND.format("die_at(landing, 'append_landed', 2, after=True)"))
    killed(produced, FEATURES.format("die_at(features, 'commit_append', 2)"))
    land_topics(lake, produced)
    process_landed(lake, produced)
    assert_balanced(lake, produced)


def test_killed_between_landing_commit_and_its_report(produced: Settings, lake: Lake) -> None:
    killed(produced, LAND.format("die_at(landing, 'append_landed', 3, after=True)"))
    assert 0 < len(positions(lake, raw_transactions)) < MESSAGES
    land_topics(lake, produced)
    process_landed(lake, produced)
    assert_balanced(lake, produced)


def test_killed_in_the_middle_of_scoring(produced: Settings, lake: Lake) -> None:
    land_topics(lake, produced)
    process_landed(lake, produced)
    train(lake, produced, None, None)
    killed(produced, SCORE.format("die_at(scoring, 'commit_append', 2, after=True)"))
    scored = positions(lake, fraud_predictions)
    assert 0 < len(scored) < len(positions(lake, transaction_features))
    score_pending(lake, produced)
    assert positions(lake, fraud_predictions) == positions(lake, transaction_features)


def test_two_runs_of_each_stage_at_once(produced: Settings, lake: Lake) -> None:
    for code in (LAND, FEATURES):
        racers = [start(produced, code.format("")) for _ in range(2)]
        for racer in racers:
            _, errors = racer.communicate(timeout=60)
            assert racer.returncode == 0, errors
    assert_balanced(lake, produced)
    train(lake, produced, None, None)
    racers = [start(produced, SCORE.format("")) for _ in range(2)]
    for racer in racers:
        _, errors = racer.communicate(timeout=60)
        assert racer.returncode == 0, errors
    assert positions(lake, fraud_predictions) == positions(lake, transaction_features)


def test_maintenance_between_landing_and_features(produced: Settings, lake: Lake) -> None:
    """Compaction and a vacuum of everything that no version needs; no row is new afterwards."""
    eager = produced.model_copy(update={"vacuum_hours": 0})
    land_topics(lake, produced)
    maintain_lake(lake, eager)
    process_landed(lake, produced)
    maintain_lake(lake, eager)
    assert process_landed(lake, produced).landed == 0
    assert land_topics(lake, produced)["raw_transactions"].rows == 0
    assert_balanced(lake, produced)
