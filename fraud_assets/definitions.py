"""The whole platform on one screen: what exists, what starts it, what it is given.

Assets are thin and live in `fraud_assets.assets`; what they do is in `pipeline`, `core`, `lake` and `kafka`,
none of which knows Dagster.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from fraud_assets.assets.features import cleaned_features
from fraud_assets.assets.landing import landing
from fraud_assets.assets.maintenance import lake_maintenance
from fraud_assets.assets.model import model
from fraud_assets.assets.predictions import fraud_predictions
from fraud_assets.resources import PlatformResource, SparkResource
from fraud_assets.schedules import JOBS, SCHEDULES
from fraud_assets.sensors import SENSORS


def build_defs(resource_overrides: dict[str, Any] | None = None) -> dg.Definitions:
    """The platform's definitions; `resource_overrides` takes the place of resources by key."""
    return dg.Definitions(
        assets=[
            landing,  # raw_transactions, fraud_labels
            cleaned_features,  # transaction_features, quarantined_transactions
            model,  # isolation_forest, alert_thresholds
            fraud_predictions,
            lake_maintenance,
        ],
        jobs=JOBS,
        sensors=SENSORS,
        schedules=SCHEDULES,
        resources={"platform": PlatformResource(), "spark": SparkResource(), **(resource_overrides or {})},
        # A process per step costs about 3 s each; the steps of a run share one.
        executor=dg.in_process_executor,
    )


defs = build_defs()
