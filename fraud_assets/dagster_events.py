"""Reports always-on landing to Dagster as aggregated materializations, so that the asset graph shows its activity."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from fraud_assets.engines.landing_report import LandingReport
from fraud_assets.settings import Settings

logger = logging.getLogger(__name__)


def find_dagster_home(settings: Settings) -> Path | None:
    """Returns the configured Dagster home: `DAGSTER_HOME`, else the one under FRAUD_HOME; None if it is not set up."""
    home = settings.dagster_path
    return home if (home / "dagster.yaml").is_file() else None


def report_landed(settings: Settings, reports: Mapping[str, LandingReport]) -> None:
    """Reports one materialization event for each table with new rows or with failed or stuck files.

    A failure to report is only logged, because the rows have landed in any case.
    """
    home = find_dagster_home(settings)
    landed = {table: report for table, report in reports.items() if report.has_changes}
    if home is None or not landed:
        return
    import dagster as dg

    from fraud_assets.asset_metadata import count_table_rows, describe_landing
    from fraud_assets.lake.tables import Lake

    try:
        lake = Lake.of(settings)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            for table, report in landed.items():
                metadata = {**describe_landing(report), **count_table_rows(lake, table)}
                instance.report_runless_asset_event(dg.AssetMaterialization(table, metadata=metadata))
    except Exception as error:  # noqa: BLE001 - Dagster's storage can raise anything, and landing must continue.
        logger.warning(
            f"The last landed rows could not be reported to Dagster at {home} ({type(error).__name__}: {error})."
        )
