"""What always-on landing tells Dagster: aggregated materializations, so that the asset graph shows it alive."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from fraud_assets.engines.landing_report import LandingReport
from fraud_assets.settings import Settings

logger = logging.getLogger(__name__)


def dagster_home(settings: Settings) -> Path | None:
    """The Dagster home that is set up: `DAGSTER_HOME`, else the one under FRAUD_HOME; None where there is none."""
    home = settings.dagster_path
    return home if (home / "dagster.yaml").is_file() else None


def report_landed(settings: Settings, reports: Mapping[str, LandingReport]) -> None:
    """One materialization event per table that got rows or refused a file.

    What landed has landed, whether Dagster hears of it or not.
    """
    home = dagster_home(settings)
    landed = {table: report for table, report in reports.items() if report.has_changes}
    if home is None or not landed:
        return
    import dagster as dg

    try:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            for table, report in landed.items():
                instance.report_runless_asset_event(dg.AssetMaterialization(table, metadata=report.metadata()))
    except Exception as error:  # noqa: BLE001 - any fault of Dagster's storage; landing must go on
        logger.warning(f"Dagster at {home} was not told of the last rows ({type(error).__name__}: {error}).")
