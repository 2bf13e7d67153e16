"""Kills at the worst moments, races and maintenance between stages: every message is still counted exactly once."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Producer

from fraud_assets.core.schema import (
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.engines.local.landing import land_topics
from fraud_assets.kafka.broker import find_broker
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.maintenance import maintain_lake
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed
from fraud_assets.stages.scoring import score_pending
from fraud_assets.stages.training import train
from fraud_assets_tests.support.killed import (
    FEATURES,
    LAND,
    MESSAGES,
    SCORE,
    assert_balanced,
    killed,
    message,
    positions,
    start,
)


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


def test_a_kill_between_the_landing_commit_and_its_report_repeats_no_message(produced: Settings, lake: Lake) -> None:
    killed(produced, LAND.format("die_at(landing, 'append_landed', 3, after=True)"))
    assert 0 < len(positions(lake, raw_transactions)) < MESSAGES
    land_topics(lake, produced)
    process_landed(lake, produced)
    assert_balanced(lake, produced)


def test_a_kill_in_the_middle_of_scoring_loses_no_prediction(produced: Settings, lake: Lake) -> None:
    land_topics(lake, produced)
    process_landed(lake, produced)
    train(lake, produced, None, None)
    killed(produced, SCORE.format("die_at(scoring, 'commit_append', 2, after=True)"))
    scored = positions(lake, fraud_predictions)
    assert 0 < len(scored) < len(positions(lake, transaction_features))
    score_pending(lake, produced)
    assert positions(lake, fraud_predictions) == positions(lake, transaction_features)


def test_two_concurrent_runs_of_each_stage_count_each_message_once(produced: Settings, lake: Lake) -> None:
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


def test_maintenance_between_landing_and_features_makes_no_row_pending_again(produced: Settings, lake: Lake) -> None:
    """Maintenance compacts the tables and vacuums unused files of any age."""
    vacuum_at_once = produced.model_copy(update={"vacuum_hours": 0})
    land_topics(lake, produced)
    maintain_lake(lake, vacuum_at_once)
    process_landed(lake, produced)
    maintain_lake(lake, vacuum_at_once)
    assert process_landed(lake, produced).landed == 0
    assert land_topics(lake, produced)["raw_transactions"].rows == 0
    assert_balanced(lake, produced)
