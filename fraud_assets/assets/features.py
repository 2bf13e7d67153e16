"""`transaction_features` and `quarantined_transactions`: every landed message is in exactly one of them."""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from fraud_assets.assets.reporting import failures_in_words
from fraud_assets.core.schema import FEATURE_VERSION
from fraud_assets.resources import PlatformResource


class FeatureConfig(dg.Config):
    """Restatement: features of `tx_datetime` in [restate_start, restate_end) are computed again instead."""

    restate_start: str | None = None
    restate_end: str | None = None


def moment(text: str) -> datetime:
    """ISO 8601 text as a time; without zone it is UTC."""
    parsed = datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


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
    context: dg.AssetExecutionContext, config: FeatureConfig, platform: PlatformResource
) -> Iterator[dg.MaterializeResult]:
    """Take what landed since the last run, or restate a range."""
    from fraud_assets.lake.books import books
    from fraud_assets.pipeline.features import process_landed, restate

    with failures_in_words():
        settings, lake = platform.settings(), platform.lake()
        if config.restate_start and config.restate_end:
            rows = restate(lake, settings, moment(config.restate_start), moment(config.restate_end), context.log.info)
            yield dg.MaterializeResult(asset_key="transaction_features", metadata={"restated": rows})
            return
        report = process_landed(lake, settings, context.log.info)
        metadata = {
            "landed": report.landed,
            "features": report.features,
            "quarantined": report.quarantined,
            "duplicates": report.duplicates,
            "balanced": report.landed == report.features + report.quarantined + report.duplicates,
            "seconds": round(report.seconds, 3),
            **{f"reason/{reason}": count for reason, count in report.reasons.items()},
        }
        for name, value in books(lake, settings).items():
            metadata[f"table/{name}"] = value
        for key in ("transaction_features", "quarantined_transactions"):
            if dg.AssetKey(key) in context.selected_asset_keys:
                yield dg.MaterializeResult(asset_key=key, metadata=metadata)
            else:
                context.log_event(dg.AssetMaterialization(key, metadata=metadata))
