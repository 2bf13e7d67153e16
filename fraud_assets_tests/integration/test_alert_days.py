"""The comparison of daily alerts with the alert budget, in metadata and in the doctor's report."""

from __future__ import annotations

from collections.abc import Callable

from fraud_assets.core.schema import fraud_predictions
from fraud_assets.doctor.alerts import check_alerts
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings
from fraud_assets.stages.alert_days import describe_busy_day, find_busiest_day
from fraud_assets_tests.support.alerts import commit_alerts, day

MakeSettings = Callable[..., Settings]


def test_the_busiest_of_the_newest_days_is_found(lake: Lake, make_settings: MakeSettings) -> None:
    settings = make_settings(alert_budget_per_day=10)
    assert find_busiest_day(lake.open(fraud_predictions), settings) is None
    commit_alerts(lake, {day(0): 90, day(4): 30, day(9): 20})
    handle = lake.open(fraud_predictions)
    busiest = find_busiest_day(handle, settings)  # Day 0 is not one of the newest seven days.
    assert busiest is not None
    assert (busiest.day.isoformat(), busiest.alerts, busiest.limit) == ("2026-01-05", 30, 30.0)
    assert not busiest.is_over_limit
    busiest_of_two = find_busiest_day(handle, settings, [day(9), day(8)])
    assert busiest_of_two is not None
    assert (busiest_of_two.day, busiest_of_two.alerts) == (day(9), 20)
    busiest_of_one = find_busiest_day(handle, settings, [day(7)])
    assert busiest_of_one is not None
    assert busiest_of_one.alerts == 0


def test_the_doctor_warns_of_a_day_over_the_limit(lake: Lake, make_settings: MakeSettings) -> None:
    settings = make_settings(alert_budget_per_day=10)
    assert [(f.state, f.text) for f in check_alerts(settings)] == [("OK", "nothing is scored yet")]
    commit_alerts(lake, {day(5): 31})
    (finding,) = check_alerts(settings)
    assert finding.state == "WARN"
    assert finding.text.startswith(
        "2026-01-06 has 31 alerts, more than 3 times (FRAUD_ALERT_BUDGET_WARN_FACTOR) the 10"
    )
    assert "alert_thresholds" in finding.fix
    (finding,) = check_alerts(make_settings(alert_budget_per_day=10, alert_budget_warn_factor=3.1))
    assert (finding.state, finding.text) == ("OK", "at most 31 on a day of the newest 7 (the budget is 10)")


def test_the_warning_names_the_factor_and_the_budget_setting(make_settings: MakeSettings, lake: Lake) -> None:
    settings = make_settings(alert_budget_per_day=0.5, alert_budget_warn_factor=1.5)
    commit_alerts(lake, {day(9): 1})
    busiest = find_busiest_day(lake.open(fraud_predictions), settings)
    assert busiest is not None
    assert busiest.is_over_limit
    assert "1 alerts, more than 1.5 times" in describe_busy_day(busiest, settings)
    assert "FRAUD_ALERT_BUDGET_PER_DAY" in describe_busy_day(busiest, settings)
