"""`raw_transactions` and `fraud_labels`: what came in, exactly once by source position."""

from collections.abc import Iterator

import dagster as dg

from fraud_assets.assets.reporting import materialized, reporting
from fraud_assets.resources import PlatformResource, SparkResource


class LandingConfig(dg.Config):
    """What to land: with `topics` off only the drop folder."""

    topics: bool = True


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "fraud_labels",
            description="Late fraud labels from the labels topic and from dropped files. A bad one goes to quarantine.",
            skippable=True,
            group_name="landing",
            kinds={"kafka", "deltalake"},
        ),
        dg.AssetSpec(
            "raw_transactions",
            description="Messages as they came: every body byte for byte, exactly once per source position.",
            skippable=True,
            group_name="landing",
            kinds={"kafka", "deltalake"},
        ),
    ],
    can_subset=True,
    name="landing",
)
def landing(
    context: dg.AssetExecutionContext, config: LandingConfig, platform: PlatformResource, spark: SparkResource
) -> Iterator[dg.MaterializeResult]:
    """Drain topics and drop folder to the ends seen at the start, labels first."""
    from fraud_assets.ingest.landing import land_once

    with reporting(context):
        settings = platform.settings()
        reports = land_once(
            platform.lake(),
            settings,
            spark.engine(settings),
            transactions=dg.AssetKey("raw_transactions") in context.selected_asset_keys,
            topics=config.topics,
        )
        # Labels are drained before transactions even where only the latter were asked for.
        for table, report in reports.items():
            yield from materialized(context, table, report.metadata())
