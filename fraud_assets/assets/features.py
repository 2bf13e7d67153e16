"""`transaction_features` and `quarantined_transactions`: every landed message is in exactly one of them."""

from collections.abc import Iterator

import dagster as dg

from fraud_assets.assets.ranges import parse_range
from fraud_assets.assets.reporting import materialized, reporting
from fraud_assets.core.schema import FEATURE_VERSION, transaction_features
from fraud_assets.resources import PlatformResource, SparkResource

_QUARANTINE_TOTALS = ("quarantined", "duplicates", "tombstones", "quarantined_labels")


class FeatureConfig(dg.Config):
    """Recomputing: features of `tx_datetime` in [recompute_start, recompute_end) are computed again instead."""

    recompute_start: str | None = None
    recompute_end: str | None = None


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "transaction_features",
            deps=["raw_transactions", "fraud_labels"],
            description="Valid, first-of-their-id transactions with the model's fifteen inputs, point in time.",
            skippable=True,
            group_name="features",
            kinds={"duckdb", "deltalake"},
            code_version=FEATURE_VERSION,
        ),
        dg.AssetSpec(
            "quarantined_transactions",
            deps=["raw_transactions", "fraud_labels"],
            description="What does not pass, with its reason and its bytes intact; repeated ids too.",
            skippable=True,
            group_name="features",
            kinds={"duckdb", "deltalake"},
        ),
    ],
    can_subset=True,
    name="cleaned_features",
)
def cleaned_features(
    context: dg.AssetExecutionContext, config: FeatureConfig, platform: PlatformResource, spark: SparkResource
) -> Iterator[dg.MaterializeResult]:
    """Take what landed since the last run, or recompute a range."""
    from fraud_assets.lake.held_days import describe_empty_range
    from fraud_assets.operations.reconciliation import reconcile
    from fraud_assets.stages.features import process_landed, recompute

    with reporting(context):
        settings, lake = platform.settings(), platform.lake()
        engine = spark.engine(settings)
        recomputed = parse_range(config.recompute_start, config.recompute_end)
        if recomputed:
            rows = recompute(lake, settings, *recomputed, engine)
            facts: dict[str, int | str] = {"recomputed": rows}
            if not rows:
                facts["note"] = describe_empty_range(lake, transaction_features, *recomputed, "to recompute")
                context.log.warning(facts["note"])
            yield from materialized(context, "transaction_features", facts)
            return
        report = process_landed(lake, settings, engine)
        totals = reconcile(lake, settings)
        # Both tables are written together: what landed and whether it is all in one of them is said of both.
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
        yield from materialized(context, "transaction_features", {**shared, **features})
        yield from materialized(context, "quarantined_transactions", {**shared, **quarantine})
