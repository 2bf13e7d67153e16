"""`fraud-assets evaluate --features` tries the inputs of a feature file on the lake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fraud_assets.core.schema import TABLES
from fraud_assets.ingest.landing import land_once
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed
from fraud_assets_tests.support.commands import assert_one_sentence, run

OWN_FILE = """
model = ["tx_amount", "pause"]
entities = { customer = ["customer_id"] }
aggregates = { pause = { function = "seconds_since_previous", entity = "customer", over = "7d", empty = -1 } }
"""


@pytest.fixture
def simulated(settings: Settings, lake: Lake) -> Lake:
    """A lake with 60 days of simulated payments and their labels."""
    settings.incoming.mkdir(parents=True)
    file = settings.incoming / "simulated.parquet"
    made = run(settings.home_path, "simulate", "--count", "8000", "--days", "60", "--out", str(file))
    assert made.returncode == 0, made.stderr
    land_once(lake, settings, topics=False)
    process_landed(lake, settings)
    return lake


def test_several_weeks_and_seeds_are_evaluated_and_nothing_is_written(
    simulated: Lake, settings: Settings, tmp_path: Path
) -> None:
    versions = simulated.versions()
    options = ("--weeks", "2", "--seeds", "2", "--json")
    found = run(settings.home_path, "evaluate", "--features", "default", *options, FRAUD_TRAIN_MIN_ROWS="100")
    assert found.returncode == 0, found.stderr
    summary = json.loads(found.stdout)
    assert len(summary["weeks"]) == 2
    figures = [*summary["weeks"].values(), summary["mean"]]
    assert all(0 <= value <= 1 for week in figures for value in week.values())
    (tmp_path / "own.toml").write_text(OWN_FILE)
    own = run(settings.home_path, "evaluate", "--features", str(tmp_path / "own.toml"), FRAUD_TRAIN_MIN_ROWS="100")
    assert own.returncode == 0, own.stderr
    assert "2 inputs of" in own.stdout
    assert simulated.versions() == versions
    assert len(versions) == len([table for table in TABLES if simulated.exists(table)])


def test_a_faulty_feature_file_is_refused_in_one_sentence(simulated: Lake, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(OWN_FILE.replace('"7d"', '"a week"'))
    faulty = run(settings.home_path, "evaluate", "--features", str(tmp_path / "own.toml"))
    assert faulty.returncode == 2
    assert_one_sentence(faulty, "own.toml", "pause.over is 'a week'", "write a number and a unit")
    missing = run(settings.home_path, "evaluate", "--features", "defualt")
    assert missing.returncode == 2
    assert_one_sentence(missing, "'defualt'", "No such file", "default or book")
