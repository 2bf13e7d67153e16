"""Assets `transaction_features` and `quarantined_transactions`: every landed message goes to exactly one of them."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from fraud_assets.asset_metadata import describe_features, describe_quarantine
from fraud_assets.assets.ranges import parse_range
from fraud_assets.assets.reporting import report_table, reporting, summarize_run, warn_empty_range
from fraud_assets.assets.specs import ENGINE_KIND, describe_asset
from fraud_assets.core.schema import DERIVED_FEATURES, FEATURE_VERSION, transaction_features
from fraud_assets.printable import format_count
from fraud_assets.resources import EngineResource, PlatformResource

_BODY = [("raw_transactions", "value")]
_LABELS = [("fraud_labels", "is_fraud"), ("fraud_labels", "labelled_at")]
_LINEAGE = {
    **dict.fromkeys(("transaction_id", "tx_datetime", "customer_id", "terminal_id", "tx_amount"), _BODY),
    **{name: _BODY + (_LABELS if "risk" in name else []) for name in DERIVED_FEATURES},
}


class FeatureConfig(dg.Config):
    """Recomputes features of `tx_datetime` in [recompute_start, recompute_end) instead of processing new messages."""

    recompute_start: str | None = Field(None, description="Start of the range to recompute, ISO 8601 in UTC.")
    recompute_end: str | None = Field(None, description="End of the range to recompute, exclusive, ISO 8601 in UTC.")


@dg.multi_asset(
    specs=[
        describe_asset(
            "transaction_features",
            deps=["raw_transactions", "fraud_labels"],
            description="One row per valid transaction with the fifteen inputs of the model, such as amounts, counts "
            "and known frauds of its customer and terminal. Each input uses only data that was known at the time of "
            "the transaction. If an id is repeated, only its first transaction is here.",
            group="features",
            kinds={ENGINE_KIND, "deltalake"},
            stage="features",
            lineage=_LINEAGE,
            fresh=True,
            code_version=FEATURE_VERSION,
        ),
        describe_asset(
            "quarantined_transactions",
            deps=["raw_transactions", "fraud_labels"],
            description="Messages that are invalid or repeat a transaction id, each with the reason and its original "
            "bytes. `fraud-assets quarantine` lists them and retries them after a fix.",
            group="features",
            kinds={ENGINE_KIND, "deltalake"},
            stage="features",
            lineage={"value": _BODY},
        ),
    ],
    can_subset=True,
    name="features",
)
def features(
    context: dg.AssetExecutionContext, config: FeatureConfig, platform: PlatformResource, engines: EngineResource
) -> Iterator[dg.MaterializeResult]:
    """Computes the features of the messages that landed since the last run, or recomputes a range."""
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
            yield from report_table(context, lake, "transaction_features", recomputed)
            summarize_run(context, f"{rows:,} features recomputed")
            return
        report = process_landed(lake, settings, engine)
        summarize_run(
            context,
            f"{format_count(report.landed, 'message')}, {format_count(report.features, 'feature')}, "
            f"{report.quarantined:,} quarantined"
            + (f", {format_count(report.duplicates, 'duplicate')}" if report.duplicates else ""),
        )
        # One call writes both tables. Each asset shows its own figures.
        yield from report_table(context, lake, "transaction_features", describe_features(report))
        yield from report_table(context, lake, "quarantined_transactions", describe_quarantine(report))
