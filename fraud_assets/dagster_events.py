"""Reports always-on landing to Dagster as aggregated materializations, so that the asset graph shows its activity."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fraud_assets.engines.landing_report import LandingReport
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from dagster import AssetCheckEvaluation

    from fraud_assets.lake.tables import Lake

logger = logging.getLogger(__name__)


def find_dagster_home(settings: Settings) -> Path | None:
    """Returns the configured Dagster home: `DAGSTER_HOME`, else the one under FRAUD_HOME; None if it is not set up."""
    home = settings.dagster_path
    return home if (home / "dagster.yaml").is_file() else None


def report_landed(settings: Settings, reports: Mapping[str, LandingReport]) -> None:
    """Reports one materialization event for each table with new rows or with failed or stuck files.

    Dagster regards the result of a check as outdated after a materialization, so the check `schema` is reported too.

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
                instance.report_runless_asset_event(_evaluate_schema(lake, table))
    except Exception as error:  # noqa: BLE001 - Dagster's storage can raise anything, and landing must continue.
        logger.warning(
            f"The last landed rows could not be reported to Dagster at {home} ({type(error).__name__}: {error})."
        )


def _evaluate_schema(lake: Lake, name: str) -> AssetCheckEvaluation:
    """Evaluates the asset check `schema` of a landing table."""
    import dagster as dg

    from fraud_assets.core.schema import TABLES
    from fraud_assets.lake.schema_check import compare_columns

    table = next(table for table in TABLES if table.name == name)
    compared = compare_columns(lake.find(table, any_columns=True), table, lake.uri(table))
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(name),
        check_name="schema",
        passed=not compared.fault,
        metadata={
            "columns": dg.MetadataValue.int(compared.columns),
            "declared_columns": dg.MetadataValue.int(compared.declared_columns),
        },
        description=compared.fault or None,
    )
