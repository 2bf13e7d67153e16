"""Check `alert_rate`: the analysts can review the alerts of each of the last days."""

import dagster as dg

from fraud_assets.assets.reporting import reporting
from fraud_assets.resources import PlatformResource


@dg.asset_check(
    asset="fraud_predictions",
    name="alert_rate",
    description="Each of the last seven days has at most FRAUD_ALERT_BUDGET_WARN_FACTOR times the alerts of "
    "FRAUD_ALERT_BUDGET_PER_DAY.",
)
def alert_checks(context: dg.AssetCheckExecutionContext, platform: PlatformResource) -> dg.AssetCheckResult:
    """Compares the busiest of the last days with the budget of the analysts."""
    from fraud_assets.core.schema import fraud_predictions
    from fraud_assets.stages.alert_days import REMEDY, describe_busy_day, find_busiest_day

    with reporting(context):
        settings = platform.settings()
        handle = platform.lake().find(fraud_predictions)
        busiest = None if handle is None else find_busiest_day(handle, settings)
    if busiest is None:
        return dg.AssetCheckResult(passed=True, description="There are no predictions yet.")
    over = busiest.is_over_limit
    return dg.AssetCheckResult(
        passed=not over,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{describe_busy_day(busiest, settings)}. {REMEDY}" if over else None,
        metadata={"alerts": busiest.alerts, "limit": busiest.limit, "day": busiest.day.isoformat()},
    )
