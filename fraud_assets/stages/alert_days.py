"""Compares the alerts of a day with the budget of the analysts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

import pyarrow.compute as pc
from deltalake import DeltaTable

from fraud_assets.lake.log import add_actions
from fraud_assets.lake.tables import read
from fraud_assets.settings import Settings

COUNTED_DAYS = 7
"""Number of newest days that are counted. The cost therefore does not depend on the length of the history."""


@dataclass(frozen=True)
class BusiestDay:
    """The day of `tx_datetime` (UTC) with the most alerts, and the limit above which a warning is given."""

    day: date
    alerts: int
    limit: float

    @property
    def is_over_limit(self) -> bool:
        """Whether the day has more alerts than the limit."""
        return self.alerts > self.limit


def find_busiest_day(
    predictions: DeltaTable, settings: Settings, days: Iterable[date] | None = None
) -> BusiestDay | None:
    """Finds the day with the most alerts among the newest days.

    It reads only two columns of the files of these days.

    Args:
        predictions: The version of `fraud_predictions`.
        settings: The alert budget.
        days: The days to consider; default: all days with predictions.

    Returns:
        The busiest of the newest COUNTED_DAYS days, or None if there are no days.

    Raises:
        LakeError: A file cannot be read.
    """
    if days is None:
        files = add_actions(predictions)
        days = pc.unique(files["partition.tx_date"]).to_pylist() if files.num_rows else []
    newest = sorted(days)[-COUNTED_DAYS:]
    if not newest:
        return None
    within = (pc.field("tx_date") >= newest[0]) & (pc.field("tx_date") <= newest[-1]) & pc.field("is_alert")
    counts = dict.fromkeys(newest, 0)
    for row in read(predictions, ["tx_date"], within)["tx_date"].value_counts().to_pylist():
        if row["values"] in counts:
            counts[row["values"]] = row["counts"]
    day = max(newest, key=lambda each: counts[each])
    return BusiestDay(day, counts[day], settings.alert_budget_per_day * settings.alert_budget_warn_factor)


def describe_busy_day(busiest: BusiestDay, settings: Settings) -> str:
    """Describes a day over the limit, for a warning."""
    return (
        f"{busiest.day} has {busiest.alerts:,} alerts, more than {settings.alert_budget_warn_factor:g} times "
        f"(FRAUD_ALERT_BUDGET_WARN_FACTOR) the {settings.alert_budget_per_day:g} that the analysts can review in a day "
        "(FRAUD_ALERT_BUDGET_PER_DAY)"
    )


REMEDY = "Materialize only alert_thresholds, which calibrates on the traffic of the last days, or raise the budget."
"""The fix for too many alerts."""
