"""Assets `raw_transactions` and `fraud_labels`: incoming data, landed exactly once by source position."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from fraud_assets.asset_metadata import describe_landing
from fraud_assets.assets.reporting import is_selected, report_table, reporting, summarize_run
from fraud_assets.assets.specs import describe_asset
from fraud_assets.resources import EngineResource, PlatformResource


class LandingConfig(dg.Config):
    """Sources to land."""

    topics: bool = Field(True, description="Land the Kafka topics too; if false, land only the drop folder.")


@dg.multi_asset(
    specs=[
        describe_asset(
            "fraud_labels",
            deps=["labels_topic", "drop_folder"],
            description="Fraud labels from the labels topic and from dropped files: whether a transaction was a fraud, "
            "and when that became known. Invalid labels go to quarantine.",
            group="landing",
            kinds={"kafka", "deltalake"},
            stage="landing",
        ),
        describe_asset(
            "raw_transactions",
            deps=["transactions_topic", "drop_folder"],
            description="Messages of the transactions topic and rows of dropped files, each landed exactly once by its "
            "source position. The bytes of the bodies are unchanged; fields named in FRAUD_PSEUDONYMISE are replaced "
            "by keyed hashes.",
            group="landing",
            kinds={"kafka", "deltalake"},
            stage="landing",
            fresh=True,
        ),
    ],
    can_subset=True,
    name="landing",
)
def landing(
    context: dg.AssetExecutionContext, config: LandingConfig, platform: PlatformResource, engines: EngineResource
) -> Iterator[dg.MaterializeResult]:
    """Lands the contents of the topics and the drop folder at the start of the run, labels first."""
    from fraud_assets.ingest.landing import land_once

    with reporting(context):
        settings, lake = platform.settings(), platform.lake()
        reports = land_once(
            lake,
            settings,
            engines.choose(settings),
            transactions=is_selected(context, "raw_transactions"),
            topics=config.topics,
        )
        summarize_run(context, ", ".join(f"{report.rows:,} rows into {table}" for table, report in reports.items()))
        # Labels are drained before transactions even if only `raw_transactions` is selected.
        for table, report in reports.items():
            yield from report_table(context, lake, table, describe_landing(report))
