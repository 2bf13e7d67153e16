"""A Spark standalone cluster loses a worker, and every row is in the tables exactly once."""

from __future__ import annotations

from pathlib import Path

import pytest

from fraud_assets.chaos.traffic import Traffic
from fraud_assets.core.schema import (
    raw_transactions,
)
from fraud_assets.errors import EngineError
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings
from fraud_assets.testing.object_store import ObjectStore
from fraud_assets.testing.spark_cluster import StandaloneCluster, standalone
from fraud_assets_tests.support.spark_cluster_runs import (
    Materialize,
    assert_exactly_once,
    finished,
    in_the_middle,
)

pytestmark = pytest.mark.xdist_group("spark")


@pytest.mark.usefixtures("spark_cluster")
def test_a_master_that_cannot_start_reports_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fraud_assets.testing.spark_cluster.QUICK_START", ("-Xmx1k",))
    with pytest.raises(EngineError, match=r"master of Spark ended during startup.*heap"):
        with standalone(tmp_path):
            pass


@pytest.mark.timeout(400)
def test_all_stages_on_an_object_store_survive_the_loss_of_a_worker(
    materialize: Materialize,
    spark_cluster: StandaloneCluster,
    apache_settings: Settings,
    s3: ObjectStore,
    s3_settings: Settings,
    tmp_path: Path,
) -> None:
    """The workers start without the credentials of the store. The tasks carry them."""
    settings = apache_settings.model_copy(update={name: getattr(s3_settings, name) for name in s3.settings("")})
    lake, traffic = Lake.of(settings), Traffic(settings, rate=0, seed=2)
    spark_cluster.start_worker()
    traffic.burst(4_000)
    run = materialize(
        settings,
        *("raw_transactions", "fraud_labels", "transaction_features", "quarantined_transactions"),
        *("isolation_forest", "alert_thresholds", "fraud_predictions"),
        batch_rows=1_000_000,
    )
    in_the_middle(run, lake, raw_transactions, tmp_path)
    spark_cluster.kill_worker(1)
    finished(run, tmp_path)
    assert_exactly_once(lake, settings, traffic)
