"""The long form of cluster/test_object_store.py: thousands of races for a key, and minutes of random kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Producer

from fraud_assets.core.schema import (
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.errors import LakeError
from fraud_assets.kafka.broker import embedded_broker
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.reconciliation import reconcile
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed
from fraud_assets.stages.scoring import score_pending
from fraud_assets.stages.training import train
from fraud_assets.testing.object_store import object_store
from fraud_assets_tests.support.killed import message, positions
from fraud_assets_tests.support.starting import ROOT
from fraud_assets_tests.support.store_client import assert_one_winner_each, client

pytestmark = [pytest.mark.timeout(1800)]

PROCESSES = 3
KEYS = 150
MESSAGES = 20_000
SECONDS = 240
RUN_FOREVER = """
import sys, time
from fraud_assets.errors import FraudAssetsError
from fraud_assets.lake.tables import Lake
from fraud_assets.stages.features import process_landed
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.settings import load_settings
settings = load_settings(batch_rows=700, land_batch_rows=300, lake_timeout_seconds=2)
lake = Lake.of(settings)
while True:
    try:
        land_topics(lake, settings) if sys.argv[1] == "land" else process_landed(lake, settings)
    except FraudAssetsError as error:
        print(error, file=sys.stderr)
    time.sleep(0.05)
"""


RACE = """
import json, sys
from pathlib import Path
from fraud_assets.testing.object_store import ObjectStore
from fraud_assets_tests.support.store_client import client, race_for_keys
ports, prefix, keys, name = json.loads(sys.argv[1])
print(json.dumps(race_for_keys(client(ObjectStore(Path(), ports), prefix), keys, name)))
"""


def test_every_race_for_a_key_has_one_winner(tmp_path: Path) -> None:
    """Threads of several processes put the same new keys. Exactly one writer of each key succeeds."""
    keys, prefix = [f"{number:020}.json" for number in range(KEYS)], uuid4().hex
    with object_store(tmp_path / "s3") as store:
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", RACE, json.dumps([store.ports, prefix, keys, f"process-{number}"])],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
            )
            for number in range(PROCESSES)
        ]
        results = [json.loads(racer.communicate(timeout=1500)[0]) for racer in racers]
        won = {key_and_body: body for result in results for key_and_body, body in result.items()}
        assert len(won) == sum(map(len, results)) == KEYS
        assert_one_winner_each(client(store, prefix), keys, won)


def test_minutes_of_random_kills_lose_and_repeat_no_message(
    tmp_path: Path, make_settings: Callable[..., Settings]
) -> None:
    """Two landers and two feature runs race while one of them or the store itself is killed every few seconds."""
    rng = random.Random(7)
    with object_store(tmp_path / "s3") as store:
        settings = make_settings(**store.settings("proof"), lake_timeout_seconds=30)
        environment = {**os.environ, **store.environment("proof"), "FRAUD_HOME": str(settings.home_path)}
        lake = Lake.of(settings)
        with embedded_broker(settings) as broker:
            producer = Producer({"bootstrap.servers": broker.bootstrap, "log_level": 0})
            log = (tmp_path / "processes.log").open("a")

            def start_process(stage: str) -> subprocess.Popen[bytes]:
                command = [sys.executable, "-c", RUN_FOREVER, stage]
                return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

            running = {
                name: start_process(name.split("-")[0]) for name in ("land-1", "land-2", "features-1", "features-2")
            }
            kills = {"store": 0, "process": 0}
            started, sent = time.monotonic(), 0
            try:
                while (elapsed := time.monotonic() - started) < SECONDS or sent < MESSAGES:
                    due = min(MESSAGES, int(MESSAGES * elapsed / SECONDS) + 1)
                    for number in range(sent, due):
                        producer.produce(settings.transactions_topic, message(number), key=str(number % 17).encode())
                    assert producer.flush(30) == 0
                    sent = due
                    time.sleep(rng.uniform(1, 4))
                    if rng.random() < 0.15:
                        store.kill()
                        store.start()
                        kills["store"] += 1
                    else:
                        name = rng.choice(sorted(running))
                        assert running[name].poll() is None, "a process ended by itself"
                        running[name].send_signal(signal.SIGKILL)
                        running[name].wait()
                        running[name] = start_process(name.split("-")[0])
                        kills["process"] += 1
            finally:
                for process in running.values():
                    process.kill()
                    process.wait()
                log.close()
            land_topics(lake, settings)
            process_landed(lake, settings)
        landed = positions(lake, raw_transactions)
        assert len(landed) == len(set(landed)) == MESSAGES
        assert positions(lake, transaction_features, quarantined_transactions) == landed
        totals = reconcile(lake, settings)
        assert totals["landed"] == totals["features"] + totals["quarantined"] + totals["duplicates"]
        assert kills["store"] >= 3
        assert kills["process"] >= 20
        print(json.dumps({**totals, **kills, "versions": lake.versions()}))
        train(lake, settings, None, None)
        score_pending(lake, settings)
        assert positions(lake, fraud_predictions) == positions(lake, transaction_features)
        store.kill()
        with pytest.raises(LakeError):
            lake.open(raw_transactions)
        store.start()
        assert positions(lake, raw_transactions) == landed
