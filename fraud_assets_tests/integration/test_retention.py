"""Retention deletes old days. It keeps rows that are still needed, committed offsets and the reconciliation."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from unittest.mock import patch

import pytest

from fraud_assets.core.schema import (
    TABLES,
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.errors import SettingError
from fraud_assets.lake import append
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.positions import SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.maintenance import maintain_lake
from fraud_assets.operations.reconciliation import find_first_counted_day, pin_versions, reconcile
from fraud_assets.operations.retention import find_oldest_waiting_day
from fraud_assets.settings import RETAINED_TABLES, Settings
from fraud_assets.stages.features import process_landed
from fraud_assets_tests.support.landed import FIRST, bodies, land
from fraud_assets_tests.support.scored import score_all

DAYS = 5
PARTITION = SourcePartition("transactions", "topic-id", 0)


class Clock(datetime):
    """A clock that always shows the time `day`."""

    day = FIRST

    @classmethod
    def now(cls, tz: object = None) -> datetime:
        return cls.day


def land_on(lake: Lake, day: int, count: int = 10) -> None:
    """Lands valid transactions and two invalid ones, at noon `day` days after FIRST."""
    Clock.day = FIRST + timedelta(days=day, hours=12)
    with patch.object(append, "datetime", Clock):
        land(lake, [*bodies(count, first_id=day * 72), b"{", b"["], first_offset=day * 100)


@pytest.fixture
def filled(lake: Lake, make_settings: Callable[..., Settings]) -> Settings:
    """Lands messages on five days, processes and scores them, and returns the settings."""
    for day in range(DAYS):
        land_on(lake, day)
    settings = make_settings(retention_days="raw_transactions=2,quarantined_transactions=1,fraud_predictions=3")
    process_landed(lake, settings)
    score_all(lake)
    return settings


def day(number: int) -> date:
    return (FIRST + timedelta(days=number)).date()


def test_old_days_are_deleted_and_offsets_and_counts_stay_correct(filled: Settings, lake: Lake) -> None:
    reports = maintain_lake(lake, filled, today=day(4))
    assert {name: (report.rows_retired, report.days_retired) for name, report in reports.items()} == {
        "raw_transactions": (24, 2),
        "fraud_labels": (0, 0),
        "quarantined_transactions": (6, 3),
        "transaction_features": (0, 0),
        "fraud_predictions": (10, 1),
    }
    assert committed_offset(lake.open(raw_transactions), PARTITION) == 411
    assert committed_offset(lake.open(fraud_predictions), PARTITION) == 409
    assert find_first_counted_day(pin_versions(lake)) == day(3)
    totals = reconcile(lake, filled)
    assert (totals["landed"], totals["features"], totals["quarantined"]) == (24, 20, 4)
    assert process_landed(lake, filled).landed == 0


def test_a_second_maintenance_deletes_nothing(filled: Settings, lake: Lake) -> None:
    maintain_lake(lake, filled, today=day(4))
    histories = {table.name: lake.open(table).history() for table in TABLES if lake.exists(table)}
    assert all(report.rows_retired == 0 for report in maintain_lake(lake, filled, today=day(4)).values())
    for table in TABLES:
        if lake.exists(table):
            deleted = [entry["operation"] for entry in lake.open(table).history()].count("DELETE")
            assert deleted == [entry["operation"] for entry in histories[table.name]].count("DELETE")


def test_retention_writes_only_metadata(filled: Settings, lake: Lake) -> None:
    maintain_lake(lake, filled, today=day(4))
    deletion = next(entry for entry in lake.open(raw_transactions).history() if entry["operation"] == "DELETE")
    assert deletion["operationMetrics"]["num_copied_rows"] == 0
    assert deletion["operationMetrics"]["num_deleted_rows"] == 24


def test_pending_rows_are_kept_regardless_of_age(filled: Settings, lake: Lake) -> None:
    maintain_lake(lake, filled, today=day(4))
    land_on(lake, 5)
    assert find_oldest_waiting_day(lake, filled) == day(5)
    reports = maintain_lake(lake, filled, today=day(400))
    # The age is counted from the oldest day with pending rows, which is day 5.
    assert reports["raw_transactions"].rows_retired == 12
    assert process_landed(lake, filled).features == 10
    # Features without a score are still pending.
    assert maintain_lake(lake, filled, today=day(400))["raw_transactions"].rows_retired == 0
    assert reconcile(lake, filled)["landed"] == 24


def test_old_transactions_that_landed_today_are_kept(lake: Lake, make_settings: Callable[..., Settings]) -> None:
    """The transactions are a year old, but they are deleted only when their landing is old too."""
    settings = make_settings(retention_days="transaction_features=91,fraud_predictions=91")
    land_on(lake, 0)
    Clock.day = FIRST + timedelta(days=365)
    with patch.object(append, "datetime", Clock):
        land(lake, bodies(10, first_id=100), first_offset=100)
    process_landed(lake, settings)
    score_all(lake)
    assert maintain_lake(lake, settings, today=day(366))["transaction_features"].rows_retired == 10
    assert read_row_count(lake.open(transaction_features)) == 10
    assert maintain_lake(lake, settings, today=day(365 + 92))["transaction_features"].rows_retired == 10
    totals = reconcile(lake, settings)
    assert totals["landed"] == totals["features"] + totals["quarantined"]


def test_without_the_setting_nothing_is_deleted(filled: Settings, lake: Lake) -> None:
    without_retention = filled.model_copy(update={"retention_days": {}})
    assert all(report.rows_retired == 0 for report in maintain_lake(lake, without_retention, today=day(4000)).values())
    assert find_first_counted_day(pin_versions(lake)) is None
    assert read_row_count(lake.open(quarantined_transactions)) == 10


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("transaction_features=90", "91 days"),
        ("fraud_labels=37", "38 days"),
        ("raw_transactions=0", "1 days"),
        ("alert_thresholds=5", "raw_transactions"),
        ("raw_transactions:5", "table=days"),
    ],
)
def test_an_invalid_or_too_short_retention_is_rejected(
    make_settings: Callable[..., Settings], value: str, message: str
) -> None:
    with pytest.raises(SettingError, match=f"FRAUD_RETENTION_DAYS.*{message}"):
        make_settings(retention_days=value)


def test_the_shortest_retention_depends_on_other_settings(make_settings: Callable[..., Settings]) -> None:
    assert make_settings(retention_days="transaction_features=45", duplicate_horizon_days=30).retention_days
    with pytest.raises(SettingError, match="201 days"):
        make_settings(retention_days="transaction_features=100", train_days=200)


def test_every_table_with_partitions_can_have_a_retention() -> None:
    assert set(RETAINED_TABLES) == {table.name for table in TABLES if table.partition_by}


def test_maintenance_uses_the_current_day_by_default(filled: Settings, lake: Lake) -> None:
    assert all(report.rows_retired == 0 for report in maintain_lake(lake, filled, today=day(0)).values())
    maintain_lake(lake, filled)
    # All rows landed long before today.
    assert read_row_count(lake.open(raw_transactions)) == 0
