"""The MLflow run identifies a model: with two registries on one lake, with a lost registry, and with an older lake."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from fraud_assets.core.schema import (
    TABLES,
    Table,
    alert_thresholds,
    fraud_predictions,
    raw_transactions,
)
from fraud_assets.doctor.finding import Finding
from fraud_assets.doctor.lake import check_lake, check_registry
from fraud_assets.errors import LakeError, LostRegistryError
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.registry.models import read_champion
from fraud_assets.settings import Settings, load_settings
from fraud_assets.stages.backlog import find_backlog
from fraud_assets.stages.calibration import recalibrate
from fraud_assets.stages.scoring import score_pending, score_range
from fraud_assets.stages.training import train
from fraud_assets_tests.support.synthetic import FIRST, commit_features, features

ROWS = 1_200
Homes = tuple[Settings, Settings, Lake]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Homes:
    """Two homes with a registry each, and one lake. Both have a version 1, with different trees and alert budgets."""
    folder = tmp_path_factory.mktemp("homes")
    lake = Lake(str(folder / "lake"))
    commit_features(lake, features(ROWS))
    both = []
    for name, budget in (("one", 1.0), ("two", 4.0)):
        settings = load_settings(
            home=folder / name,
            lake_uri=lake.root,
            mlflow_tracking_uri="",
            train_trees=5,
            train_seed=int(budget),
            alert_budget_per_day=budget,
        )
        assert train(lake, settings).version == 1
        both.append(settings)
    return both[0], both[1], lake


@pytest.fixture
def lake(homes: Homes, tmp_path: Path) -> Lake:
    """A copy of their lake, without predictions."""
    shutil.copytree(homes[2].root, tmp_path / "lake")
    return Lake(str(tmp_path / "lake"))


def read_columns(lake: Lake, table: Table, *names: str) -> set[tuple[Any, ...]]:
    rows = open_dataset(lake.open(table)).to_table(columns=list(names))
    return set(zip(*(rows[name].to_pylist() for name in names), strict=True))


def test_each_registry_scores_with_its_own_threshold_and_records_its_run(homes: Homes, lake: Lake) -> None:
    one, two, _ = homes
    thresholds = dict(read_columns(lake, alert_thresholds, "model_run_id", "threshold"))
    runs = read_champion(one).run_id, read_champion(two).run_id
    assert thresholds.keys() == set(runs)
    assert len(set(thresholds.values())) == 2
    first = score_pending(lake, one)
    commit_features(lake, features(300, first_offset=ROWS))
    second = score_pending(lake, two)
    assert (first.model.run_id, second.model.run_id) == runs
    assert read_columns(lake, fraud_predictions, "model_version", "model_run_id", "threshold") == {
        (1, run, thresholds[run]) for run in runs
    }


def test_a_threshold_of_another_registry_is_not_used(homes: Homes, lake: Lake) -> None:
    """This happens after a registry is lost and recreated: its new version 1 needs its own threshold."""
    one, two, _ = homes
    recalibrate(lake, one)  # now the newest threshold of a version 1 belongs to the other registry
    lake.open(alert_thresholds).delete(f"model_run_id = '{read_champion(two).run_id}'")
    with pytest.raises(
        LakeError, match=rf"run {read_champion(two).run_id}\) has no threshold .*run {read_champion(one).run_id}\)"
    ):
        score_pending(lake, two)
    assert read_row_count(lake.open(fraud_predictions)) == 0
    own = recalibrate(lake, two)
    score_pending(lake, two)
    assert read_columns(lake, fraud_predictions, "threshold") == {(own.threshold,)}


@pytest.fixture
def lost_registry(homes: Homes, lake: Lake, tmp_path: Path) -> Settings:
    """The settings of a lake that the first home has scored: the registry is lost, and more features are pending."""
    one = homes[0]
    score_pending(lake, one)
    commit_features(lake, features(50, first_offset=ROWS))
    lake.open(raw_transactions)
    return load_settings(home=tmp_path / "empty", lake_uri=lake.root, mlflow_tracking_uri="")


def test_a_lost_registry_is_not_mistaken_for_one_without_a_model(
    homes: Homes, lake: Lake, lost_registry: Settings
) -> None:
    run_id = read_champion(homes[0]).run_id
    words = rf"no version of model isolation_forest .*version 1 \(MLflow run {run_id}\).*FRAUD_HOME.*train a new"
    day = FIRST, FIRST + timedelta(days=1)
    calls: list[Callable[[], object]] = [
        lambda: score_pending(lake, lost_registry),
        lambda: score_range(lake, lost_registry, *day),
        lambda: recalibrate(lake, lost_registry),
    ]
    for call in calls:
        with pytest.raises(LostRegistryError, match=words):
            call()
    backlog = find_backlog(lake, lost_registry)
    assert backlog.assets == ()  # a person must decide whether to train into this registry
    assert backlog.reason.startswith("50 transactions wait for a champion. The model registry ")
    assert run_id in backlog.reason
    (finding,) = check_registry(lost_registry)
    assert finding.state == "FAIL"
    assert run_id in finding.text
    assert "train a new champion" in finding.fix


def test_without_predictions_the_registry_is_not_reported_as_lost(lake: Lake, lost_registry: Settings) -> None:
    shutil.rmtree(lake.uri(fraud_predictions))
    assert find_backlog(lake, lost_registry).training
    assert [finding.state for finding in check_registry(lost_registry)] == ["WARN"]


# --- A lake that another version of the platform wrote ---------------------------------------------------------


def create_table(lake: Lake, table: Table, schema: pa.Schema) -> None:
    DeltaTable.create(lake.uri(table), schema=schema)


@pytest.mark.parametrize("table", [fraud_predictions, alert_thresholds], ids=lambda table: table.name)
def test_a_table_without_the_run_column_is_rejected_in_one_sentence(tmp_path: Path, table: Table) -> None:
    settings = load_settings(home=tmp_path, mlflow_tracking_uri="")
    lake = Lake.of(settings)
    create_table(lake, table, table.schema.remove(table.schema.get_field_index("model_run_id")))
    words = rf"{table.name} has no column model_run_id: another version .*Move that folder away"
    for call in (lake.open, lake.exists):
        with pytest.raises(LakeError, match=words):
            call(table)
    with pytest.raises(LakeError, match=words):
        lake.versions()
    finding: Finding = check_lake(settings)[0]
    assert (finding.state, "model_run_id" in finding.text) == ("FAIL", True)
    shutil.move(lake.uri(table), tmp_path / "old")
    assert lake.open(table).version() == 0


def test_the_schema_of_each_table_is_checked_and_additional_columns_are_allowed(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    for table in TABLES:
        create_table(lake, table, table.schema.append(pa.field("note", pa.string())))
        assert lake.open(table).version() == 0
    wrong = Lake(str(tmp_path / "wrong"))
    index = raw_transactions.schema.get_field_index("offset")
    create_table(wrong, raw_transactions, raw_transactions.schema.set(index, pa.field("offset", pa.string())))
    with pytest.raises(LakeError, match=r"has another type in column offset: .*new folder and land again"):
        wrong.open(raw_transactions)
