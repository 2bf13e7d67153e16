"""Checks that the alerts of the newest days stay within the alert budget."""

from __future__ import annotations

from fraud_assets.core.schema import fraud_predictions
from fraud_assets.doctor.finding import Finding, ok, skip, warn
from fraud_assets.errors import FraudAssetsError
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings


def check_alerts(settings: Settings) -> list[Finding]:
    """Compares the busiest of the newest days that have predictions with the alert budget per day."""
    from fraud_assets.stages.alert_days import COUNTED_DAYS, REMEDY, describe_busy_day, find_busiest_day

    try:
        lake = Lake.of(settings)
        busiest = find_busiest_day(lake.open(fraud_predictions), settings) if lake.exists(fraud_predictions) else None
    except FraudAssetsError as error:
        return [skip("alerts", f"the lake cannot be read: {error}")]
    if busiest is None:
        return [ok("alerts", "nothing is scored yet")]
    if busiest.over:
        return [warn("alerts", describe_busy_day(busiest, settings), REMEDY)]
    budget = f"the budget is {settings.alert_budget_per_day:g}"
    return [ok("alerts", f"at most {busiest.alerts:,} on a day of the newest {COUNTED_DAYS} ({budget})")]
