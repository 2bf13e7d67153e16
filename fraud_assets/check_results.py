"""Reads the last result of each asset check from Dagster's event log."""

from __future__ import annotations

from dataclasses import dataclass

from fraud_assets.dagster_events import find_dagster_home
from fraud_assets.errors import FraudAssetsError
from fraud_assets.settings import Settings


@dataclass(frozen=True)
class FailedCheck:
    """An asset check whose last evaluation failed.

    Attributes:
        name: `asset:check`.
        severity: `WARN` or `ERROR`.
        description: What the check found; empty if it gave no description.
    """

    name: str
    severity: str
    description: str


def find_failed_checks(settings: Settings) -> list[FailedCheck] | None:
    """Returns the checks whose last completed evaluation failed, sorted by name; None if Dagster is not set up.

    A check that a run in progress will evaluate keeps its earlier result until then.

    Raises:
        FraudAssetsError: Dagster's history cannot be read.
    """
    home = find_dagster_home(settings)
    if home is None:
        return None
    import dagster as dg

    from fraud_assets.checks import CHECKS

    keys = [key for check in CHECKS for key in check.check_keys]
    try:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            summaries = instance.event_log_storage.get_asset_check_summary_records(keys)
    # Dagster raises the exceptions of its database driver and of its YAML reader unchanged.
    except Exception as error:
        cause = " ".join(str(error).split())[:200]
        raise FraudAssetsError(
            f"Dagster's history at {home} cannot be read ({type(error).__name__}: {cause}). Correct "
            f"{home / 'dagster.yaml'} or DAGSTER_POSTGRES_URL."
        ) from error
    results = [
        record.event.dagster_event.asset_check_evaluation_data
        for summary in summaries.values()
        if (record := summary.last_completed_check_execution_record) is not None
        and record.event is not None
        and record.event.dagster_event is not None
    ]
    failed = [result for result in results if not result.passed]
    return sorted(
        (
            FailedCheck(
                f"{result.asset_key.to_user_string()}:{result.check_name}",
                result.severity.value,
                result.description or "",
            )
            for result in failed
        ),
        key=lambda check: check.name,
    )
