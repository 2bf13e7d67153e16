"""Reads the state of the platform in one look: what landed, waits and is scored, today's alerts, and the champion."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime

import pyarrow.compute as pc
from deltalake import DeltaTable

from fraud_assets.core.schema import fraud_predictions, raw_transactions, transaction_features
from fraud_assets.errors import ModelRegistryError, NoChampionError
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.tables import Lake, read
from fraud_assets.operations.reconciliation import count_totals, pin_versions
from fraud_assets.registry.models import find_champion_version
from fraud_assets.settings import Settings


@dataclass(frozen=True)
class Status:
    """The state of the platform.

    Attributes:
        totals: Number of rows by name, from `count_totals`.
        champion: Version of the champion; None if there is none, or if the registry cannot be read.
        registry_fault: Why the registry cannot be read; empty if it can.
        newest_landing: Time of the newest landing; None if nothing landed.
        newest_transaction: Newest `tx_datetime` with features; None if there are none.
        newest_scoring: Time of the newest scoring; None if nothing is scored.
        day: Day (UTC) whose alerts are counted: today, or the newest day with predictions if that is earlier.
        alerts: Number of alerts of this day.
        budget: Alerts per day that the analysts can review.
    """

    totals: dict[str, int]
    champion: int | None
    registry_fault: str
    newest_landing: datetime | None
    newest_transaction: datetime | None
    newest_scoring: datetime | None
    day: date | None
    alerts: int
    budget: float


def read_status(lake: Lake, settings: Settings, today: date | None = None) -> Status:
    """Reads the state from file statistics, a few position columns and the predictions of one day.

    Args:
        lake: the lake.
        settings: name the registry and the alert budget.
        today: the current day; default: the current day in UTC.

    Raises:
        LakeError: a table cannot be read.
    """
    handles = pin_versions(lake)
    predictions = handles.get(fraud_predictions.name)
    day = _find_day(predictions, today or datetime.now(UTC).date())
    alerts, scored_at = _count_alerts(predictions, day)
    champion, registry_fault = _find_champion(settings)
    return Status(
        totals=count_totals(handles, settings),
        champion=champion,
        registry_fault=registry_fault,
        newest_landing=_find_newest(handles.get(raw_transactions.name), "ingested_at"),
        newest_transaction=_find_newest(handles.get(transaction_features.name), "tx_datetime"),
        newest_scoring=scored_at,
        day=day,
        alerts=alerts,
        budget=settings.alert_budget_per_day,
    )


def _find_champion(settings: Settings) -> tuple[int | None, str]:
    """Returns the version of the champion, and why the registry cannot be read."""
    try:
        return find_champion_version(settings), ""
    except NoChampionError:
        return None, ""
    except ModelRegistryError as error:
        return None, str(error)


def _find_newest(handle: DeltaTable | None, column: str) -> datetime | None:
    """Returns the largest value of a time column, from file statistics."""
    if handle is None or not (files := add_actions(handle)).num_rows:
        return None
    newest = pc.max(files[f"max.{column}"]).as_py()
    return newest if newest is None or newest.tzinfo else newest.replace(tzinfo=UTC)


def _find_day(predictions: DeltaTable | None, today: date) -> date | None:
    if predictions is None or not (files := add_actions(predictions)).num_rows:
        return None
    days = [day for day in files["partition.tx_date"].to_pylist() if day <= today]
    return max(days, default=None)


def _count_alerts(predictions: DeltaTable | None, day: date | None) -> tuple[int, datetime | None]:
    """Returns the number of alerts of a day, and the time of its newest scoring."""
    if predictions is None or day is None:
        return 0, None
    rows = read(predictions, ["is_alert", "scored_at"], pc.field("tx_date") == day)
    return pc.sum(rows["is_alert"]).as_py() or 0, pc.max(rows["scored_at"]).as_py()
