"""Alerts per day beside the budget: counted from the predictions, in metadata, and said by the doctor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, timedelta

import pyarrow as pa

from fraud_assets.core.schema import FRAUD_PREDICTIONS, fraud_predictions
from fraud_assets.doctor.alerts import check_alerts
from fraud_assets.lake.append import commit_append
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings
from fraud_assets.stages.alert_days import describe_busy_day, find_busiest_day
from fraud_assets_tests.synthetic import FIRST, features

MakeSettings = Callable[..., Settings]


def commit_alerts(lake: Lake, alerts: Mapping[date, int], per_day: int = 100) -> None:
    """Predictions of ten days, `per_day` of each; so many of a day alert."""
    rows = features(10 * per_day)
    left = dict(alerts)
    flags = []
    for day in rows["tx_date"].to_pylist():
        left[day] = left.get(day, 0) - 1
        flags.append(left[day] >= 0)
    columns = {name: rows[name] for name in FRAUD_PREDICTIONS.names if name in rows.column_names}
    constants = {"score": 0.5, "threshold": 0.5, "model_version": 1, "model_run_id": "run"}
    columns |= {name: pa.repeat(pa.scalar(value), rows.num_rows) for name, value in constants.items()}
    columns |= {"is_alert": pa.array(flags), "scored_at": rows["ingested_at"]}
    scored = pa.table({name: columns[name] for name in FRAUD_PREDICTIONS.names})
    commit_append(lake.open(fraud_predictions), fraud_predictions, scored, {})


def day(number: int) -> date:
    return (FIRST + timedelta(days=number)).date()


def test_the_busiest_of_the_newest_days(lake: Lake, make_settings: MakeSettings) -> None:
    settings = make_settings(alert_budget_per_day=10)
    assert find_busiest_day(lake.open(fraud_predictions), settings) is None
    commit_alerts(lake, {day(0): 90, day(4): 30, day(9): 20})
    handle = lake.open(fraud_predictions)
    found = find_busiest_day(handle, settings)  # day 0 is not one of the newest seven
    assert found is not None
    assert found.metadata() == {"busiest_day": "2026-01-05", "alerts_on_busiest_day": 30, "alert_limit_per_day": 30.0}
    assert not found.is_over_limit
    touched = find_busiest_day(handle, settings, [day(9), day(8)])
    assert touched is not None
    assert (touched.day, touched.alerts) == (day(9), 20)
    quiet = find_busiest_day(handle, settings, [day(7)])
    assert quiet is not None
    assert quiet.alerts == 0


def test_a_day_over_the_limit_is_a_warning_of_the_doctor(lake: Lake, make_settings: MakeSettings) -> None:
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


def test_the_words_have_both_settings(make_settings: MakeSettings, lake: Lake) -> None:
    settings = make_settings(alert_budget_per_day=0.5, alert_budget_warn_factor=1.5)
    commit_alerts(lake, {day(9): 1})
    found = find_busiest_day(lake.open(fraud_predictions), settings)
    assert found is not None
    assert found.is_over_limit
    assert "1 alerts, more than 1.5 times" in describe_busy_day(found, settings)
    assert "FRAUD_ALERT_BUDGET_PER_DAY" in describe_busy_day(found, settings)
