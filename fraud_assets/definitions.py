"""The Dagster definitions of the platform: its assets, jobs, sensors, schedules and resources.

The assets in `fraud_assets.assets` are thin. The work is in `ingest`, `stages`, `engines`, `core`, `lake` and `kafka`,
which do not import Dagster.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from fraud_assets.assets.external import EXTERNAL_ASSETS
from fraud_assets.assets.features import features
from fraud_assets.assets.landing import landing
from fraud_assets.assets.maintenance import lake_maintenance
from fraud_assets.assets.model import model
from fraud_assets.assets.predictions import fraud_predictions
from fraud_assets.checks import CHECKS
from fraud_assets.resources import EngineResource, PlatformResource
from fraud_assets.schedules import JOBS, SCHEDULES
from fraud_assets.sensors import SENSORS


def build_defs(resource_overrides: dict[str, Any] | None = None) -> dg.Definitions:
    """Returns the definitions of the platform. Resources in `resource_overrides` replace the default ones by key."""
    return dg.Definitions(
        assets=[
            landing,  # raw_transactions, fraud_labels
            features,  # transaction_features, quarantined_transactions
            model,  # isolation_forest, alert_thresholds
            fraud_predictions,
            lake_maintenance,
            *EXTERNAL_ASSETS,
        ],
        asset_checks=CHECKS,
        jobs=JOBS,
        sensors=SENSORS,
        schedules=SCHEDULES,
        resources={"platform": PlatformResource(), "engines": EngineResource(), **(resource_overrides or {})},
        # A process per step would cost about 3 s each, so the steps of a run share one process.
        executor=dg.in_process_executor,
    )


defs = build_defs()
