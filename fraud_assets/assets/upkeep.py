"""`lake_upkeep`: small files, checkpoints and unused files of all tables."""

import dagster as dg

from fraud_assets.assets.reporting import failures_in_words
from fraud_assets.resources import PlatformResource


@dg.asset(group_name="upkeep", kinds={"deltalake"})
def lake_upkeep(platform: PlatformResource) -> dg.MaterializeResult:
    """Compacts, checkpoints and vacuums every table. Starts nothing downstream."""
    from fraud_assets.lake.upkeep import tend_all

    with failures_in_words():
        reports = tend_all(platform.lake(), platform.settings())
    return dg.MaterializeResult(
        metadata={
            f"{table}/{key}": value for table, report in reports.items() for key, value in report.metadata().items()
        }
    )
