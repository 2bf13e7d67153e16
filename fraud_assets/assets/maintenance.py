"""Asset `lake_maintenance`: maintains all tables and the run history."""

import dagster as dg

from fraud_assets.asset_metadata import describe_maintenance
from fraud_assets.assets.reporting import reporting, summarize_run
from fraud_assets.assets.specs import describe_asset
from fraud_assets.resources import PlatformResource

_DESCRIPTION = """Maintains every table: deletes rows older than FRAUD_RETENTION_DAYS, compacts small files, writes a
checkpoint and removes unused files older than FRAUD_VACUUM_HOURS. It also lands the messages of an interrupted
quarantine retry, and deletes successful runs of the sensors that are older than FRAUD_RUN_DAYS."""


@dg.multi_asset(
    specs=[
        describe_asset(
            "lake_maintenance",
            deps=[],
            description=_DESCRIPTION,
            group="maintenance",
            kinds={"deltalake"},
            stage="maintenance",
        )
    ],
    name="lake_maintenance",
)
def lake_maintenance(context: dg.AssetExecutionContext, platform: PlatformResource) -> dg.MaterializeResult:
    """Maintains the tables and the run history, and returns the numbers of each table."""
    from fraud_assets.operations.maintenance import maintain_lake
    from fraud_assets.operations.retries import land_retries
    from fraud_assets.run_history import delete_old_runs, shrink_databases

    with reporting(context):
        settings, lake = platform.settings(), platform.lake()
        # This comes first, because retention could delete messages that an interrupted retry has not landed yet.
        retried = land_retries(lake, settings)
        reports = maintain_lake(lake, settings)
        deleted = delete_old_runs(context.instance, settings.run_days)
        shrink_databases(context.instance)
        metadata = describe_maintenance(reports, deleted, retried)
        summarize_run(
            context, f"{len(reports)} tables, {metadata['files_removed']:,} files and {deleted:,} runs removed"
        )
    return dg.MaterializeResult(metadata=metadata)
