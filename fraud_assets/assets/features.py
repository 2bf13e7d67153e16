"""Assets `transaction_features` and `quarantined_transactions`: every landed message goes to exactly one of them."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from fraud_assets.assets.ranges import parse_range
from fraud_assets.assets.reporting import report_table, reporting, warn_empty_range
from fraud_assets.core.schema import FEATURE_VERSION, transaction_features
from fraud_assets.resources import EngineResource, PlatformResource

_QUARANTINE_TOTALS = ("quarantined", "duplicates", "tombstones", "quarantined_labels")


class FeatureConfig(dg.Config):
    """Recomputes features of `tx_datetime` in [recompute_start, recompute_end) instead of processing new messages."""

    recompute_start: str | None = Field(None, description="Start of the range to recompute, ISO 8601 in UTC.")
    recompute_end: str | None = Field(None, description="End of the range to recompute, exclusive, ISO 8601 in UTC.")


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "transaction_features",
            deps=["raw_transactions", "fraud_labels"],
            description="One row per valid transaction with the fifteen inputs of the model, such as amounts, counts "
            "and known frauds of its customer and terminal. Each input uses only data that was known at the time of "
            "the transaction. If an id is repeated, only its first transaction is here.",
            skippable=True,
            group_name="features",
            kinds={"deltalake"},
            code_version=FEATURE_VERSION,
        ),
        dg.AssetSpec(
            "quarantined_transactions",
            deps=["raw_transactions", "fraud_labels"],
            description="Messages that are invalid or repeat a transaction id, each with the reason and its original "
            "bytes. `fraud-assets quarantine` lists them and retries them after a fix.",
            skippable=True,
            group_name="features",
            kinds={"deltalake"},
        ),
    ],
    can_subset=True,
    name="features",
)
def features(
    context: dg.AssetExecutionContext, config: FeatureConfig, platform: PlatformResource, engines: EngineResource
) -> Iterator[dg.MaterializeResult]:
    """Computes the features of the messages that landed since the last run, or recomputes a range."""
    from fraud_assets.operations.reconciliation import reconcile
    from fraud_assets.stages.features import process_landed, recompute

    with reporting(context):
        settings, lake = platform.settings(), platform.lake()
        engine = engines.choose(settings)
        period = parse_range(config.recompute_start, config.recompute_end)
        if period:
            rows = recompute(lake, settings, *period, engine)
            recomputed: dict[str, int | str] = {"recomputed": rows}
            if not rows:
                recomputed["note"] = warn_empty_range(context, lake, transaction_features, period, "to recompute")
            yield from report_table(context, "transaction_features", recomputed)
            return
        report = process_landed(lake, settings, engine)
        totals = reconcile(lake, settings)
        # One call writes both tables, so both materializations report the landed messages and the balance.
        shared = {
            "landed": report.landed,
            "balanced": report.landed == report.features + report.quarantined + report.duplicates,
            "seconds": round(report.seconds, 3),
            "table/landed": totals["landed"],
        }
        features = {"features": report.features, "table/features": totals["features"]}
        quarantine = {
            "quarantined": report.quarantined,
            "duplicates": report.duplicates,
            **{f"reason/{reason}": count for reason, count in report.reasons.items()},
            **{f"table/{name}": totals[name] for name in _QUARANTINE_TOTALS},
        }
        yield from report_table(context, "transaction_features", {**shared, **features})
        yield from report_table(context, "quarantined_transactions", {**shared, **quarantine})
