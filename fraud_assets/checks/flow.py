"""Checks that no message is lost: `reconciliation`, `predictions_complete` and `quarantine_rate`."""

from collections.abc import Iterator

import dagster as dg

from fraud_assets.assets.reporting import reporting
from fraud_assets.resources import PlatformResource

RECONCILIATION = dg.AssetCheckSpec(
    "reconciliation",
    asset="transaction_features",
    description="Landed messages = features + quarantined + duplicates + waiting.",
)
PREDICTIONS_COMPLETE = dg.AssetCheckSpec(
    "predictions_complete",
    asset="fraud_predictions",
    description="Features = scored + unscored, and no feature row waits for its score.",
)
QUARANTINE_RATE = dg.AssetCheckSpec(
    "quarantine_rate",
    asset="quarantined_transactions",
    description="The share of quarantined messages since yesterday (UTC) is at most FRAUD_QUARANTINE_WARN_RATE. "
    "Duplicates do not count.",
)


@dg.multi_asset_check(specs=[RECONCILIATION, PREDICTIONS_COMPLETE, QUARANTINE_RATE], can_subset=True, name="check_flow")
def flow_checks(context: dg.AssetCheckExecutionContext, platform: PlatformResource) -> Iterator[dg.AssetCheckResult]:
    """Counts the tables once and compares the totals."""
    from datetime import UTC, datetime, timedelta

    from fraud_assets.operations.reconciliation import count_quarantined, count_totals, pin_versions

    with reporting(context):
        settings = platform.settings()
        handles = pin_versions(platform.lake())
        selected = {key.name for key in context.selected_asset_check_keys}
        totals = count_totals(handles, settings) if selected - {QUARANTINE_RATE.name} else {}
        if RECONCILIATION.name in selected:
            processed = sum(totals[name] for name in ("features", "quarantined", "duplicates", "waiting"))
            yield dg.AssetCheckResult(
                asset_key=RECONCILIATION.asset_key,
                check_name=RECONCILIATION.name,
                passed=totals["landed"] == processed,
                metadata={"difference": totals["landed"] - processed, "limit": 0, **totals},
            )
        if PREDICTIONS_COMPLETE.name in selected:
            difference = totals["features"] - totals["scored"] - totals["unscored"]
            yield dg.AssetCheckResult(
                asset_key=PREDICTIONS_COMPLETE.asset_key,
                check_name=PREDICTIONS_COMPLETE.name,
                passed=not difference and not totals["unscored"],
                # Rows that wait are normal for a moment, or before the first training. A difference is a loss.
                severity=dg.AssetCheckSeverity.ERROR if difference else dg.AssetCheckSeverity.WARN,
                metadata={"unscored": totals["unscored"], "difference": difference, "limit": 0},
            )
        if QUARANTINE_RATE.name in selected:
            yesterday = datetime.now(UTC).date() - timedelta(days=1)
            bad, processed = count_quarantined(handles, settings, yesterday)
            rate = bad / processed if processed else 0.0
            yield dg.AssetCheckResult(
                asset_key=QUARANTINE_RATE.asset_key,
                check_name=QUARANTINE_RATE.name,
                passed=rate <= settings.quarantine_warn_rate,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={
                    "rate": round(rate, 4),
                    "limit": settings.quarantine_warn_rate,
                    "quarantined": bad,
                    "messages": processed,
                },
            )
