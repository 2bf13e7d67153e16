"""`lake_maintenance`: small files, checkpoints and unused files of all tables."""

import dagster as dg

from fraud_assets.assets.reporting import reporting
from fraud_assets.resources import PlatformResource


@dg.asset(group_name="maintenance", kinds={"deltalake"})
def lake_maintenance(context: dg.AssetExecutionContext, platform: PlatformResource) -> dg.MaterializeResult:
    """Applies FRAUD_RETENTION_DAYS, compacts, checkpoints and vacuums every table, and lands what a retry had left.

    It also deletes the sensors' successful runs after FRAUD_RUN_DAYS.
    """
    from fraud_assets.operations.maintenance import maintain_lake
    from fraud_assets.operations.retries import land_retries
    from fraud_assets.run_history import delete_old_runs, shrink_databases

    with reporting(context):
        settings, lake = platform.settings(), platform.lake()
        # Before retention could take away what a retry that was cut off is yet to land.
        finished = land_retries(lake, settings)
        reports = maintain_lake(lake, settings)
        deleted = delete_old_runs(context.instance, settings.run_days)
        shrink_databases(context.instance)
    metadata: dict[str, int | float] = {
        f"{table}/{key}": value for table, report in reports.items() for key, value in report.metadata().items()
    }
    metadata["runs_deleted"] = deleted
    if finished:
        metadata["retried_messages_landed"] = finished
    return dg.MaterializeResult(metadata=metadata)
