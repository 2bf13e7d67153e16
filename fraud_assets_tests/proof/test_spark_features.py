"""Both engines compute the same features from any messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from fraud_assets.engines.spark.engine import SparkEngine
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed
from fraud_assets_tests.support.engine_comparison import assert_equal, copy_of, land

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspark.sql import SparkSession

pytestmark = pytest.mark.xdist_group("spark")


@examples(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 120),
    days=st.integers(1, 90),
    delay=st.integers(0, 10),
    zone=st.sampled_from(["UTC", "Europe/Brussels", "Asia/Kolkata"]),
)
def test_both_engines_compute_the_same_features_from_any_messages(
    spark: SparkSession,
    make_settings: Callable[..., Settings],
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    count: int,
    days: int,
    delay: int,
    zone: str,
) -> None:
    home = tmp_path_factory.mktemp("any")
    settings = make_settings(home=home, feedback_delay_days=delay, time_zone=zone)
    lake = Lake.of(settings)
    for part in range(2):
        land(lake, settings, seed, part, count, days)
        if part == 0:
            process_landed(lake, settings)
    duckdb_lake = copy_of(lake, home / "other")
    process_landed(lake, settings, SparkEngine(settings, lambda: spark))
    process_landed(duckdb_lake, settings)
    assert_equal(lake, duckdb_lake)
