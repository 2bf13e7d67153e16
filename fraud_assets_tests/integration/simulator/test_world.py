"""The simulated world of a home: history and live traffic have one rate, and later runs use the same customers."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from fraud_assets.commands import simulate as simulate_command
from fraud_assets.core.schema import fraud_labels, raw_transactions
from fraud_assets.errors import SettingError
from fraud_assets.ingest.landing import land_once
from fraud_assets.lake.log import read_row_count
from fraud_assets.simulator import live
from fraud_assets.simulator.generator import draw_population, simulate, simulate_payments
from fraud_assets.simulator.history import drop_history
from fraud_assets.simulator.live import LiveTraffic, simulate_past_traffic
from fraud_assets.simulator.world import World, load_world, locate_world_file, save_world, split_into_days
from fraud_assets.stages.features import process_landed
from fraud_assets.stages.scoring import score_pending
from fraud_assets.stages.training import train
from fraud_assets_tests.support.waiting import until

NOON = datetime(2026, 8, 7, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def test_live_traffic_has_the_hourly_rates_of_the_history(settings):
    people = draw_population(1_500, 1)
    traffic = LiveTraffic(people, settings, None, MINUTE, lambda: True)
    history = simulate_payments(people, NOON - timedelta(days=20.5), NOON - timedelta(days=0.5))
    hours = history["tx_datetime"].to_numpy().astype("datetime64[h]").astype(int) % 24
    rates = [traffic.rate_at(NOON.replace(hour=hour, minute=30)) * 3_600 for hour in range(24)]
    assert sum(rates) == pytest.approx(people.payments_per_day, rel=0.01)
    assert np.bincount(hours) / 20 == pytest.approx(np.array(rates), rel=0.15)


@pytest.mark.parametrize(("hour", "fewest", "most"), [(12, 105, 117), (0, 9, 14)])
def test_live_traffic_of_half_an_hour_has_the_expected_count(settings, monkeypatch, hour, fewest, most):
    started_at = NOON.replace(hour=hour)
    clock = _Clock(started_at)
    monkeypatch.setattr(live, "datetime", clock)
    monkeypatch.setattr(live, "time", clock)
    people = draw_population(1_500, 1)
    traffic = LiveTraffic(people, settings, None, MINUTE, lambda: clock.moment > started_at + 30 * MINUTE)
    list(traffic.messages())
    assert fewest < traffic.transactions < most


def test_an_interrupted_history_is_sent_again_with_the_same_ids():
    people = draw_population(60, 1)
    start = NOON - timedelta(days=3)

    def ids_by_day(first: datetime, last: datetime) -> list[list[str]]:
        days = split_into_days(first, last)
        return [simulate_payments(people, *day)["transaction_id"].to_pylist() for day in days]

    all_ids = ids_by_day(start, NOON)
    assert len(all_ids) == 4
    assert ids_by_day(list(split_into_days(start, NOON))[1][0], NOON + MINUTE)[:2] == all_ids[1:3]
    assert len({transaction_id for day in all_ids for transaction_id in day}) == sum(map(len, all_ids)) > 250


def test_a_saved_world_is_loaded_again(settings):
    assert load_world(settings) is None
    save_world(World(3, 70, NOON), settings)
    assert load_world(settings) == World(3, 70, NOON)


@pytest.mark.parametrize("text", ["", "[]", '{"seed": 1}', '{"seed": 1, "customers": 0, "lived_until": "2026-01-01Z"}'])
def test_an_unreadable_world_file_is_reported(settings, text):
    settings.home_path.mkdir(parents=True)
    locate_world_file(settings).write_text(text)
    with pytest.raises(SettingError, match=r"simulated_world\.json cannot be read .* Remove the file"):
        load_world(settings)


def test_later_runs_simulate_the_same_customers(settings, broker, tmp_path, monkeypatch):
    monkeypatch.setenv("FRAUD_HOME", str(settings.home_path))
    first = _simulate("--count", "12000", "--seed", "3", "--days", "60")
    assert first.stderr.count("expect more alerts") == 0
    world = load_world(settings)
    assert (world.seed, world.customers) == (3, 100)
    file = tmp_path / "later.parquet"
    later = _simulate("--count", "300", "--seed", "7", "--out", str(file))
    assert "expect more alerts" not in later.stderr
    rows = pq.read_table(file)
    people = draw_population(100, 3)
    payments = zip(rows["customer_id"].to_pylist(), rows["terminal_id"].to_pylist(), strict=True)
    assert all(
        int(terminal) in people.reach[people.starts[int(customer)] : people.starts[int(customer) + 1]]
        for customer, terminal in payments
    )


def test_a_warning_is_logged_if_traffic_will_alert_too_often(settings, lake, tmp_path, monkeypatch):
    monkeypatch.setenv("FRAUD_HOME", str(settings.home_path))
    out = ("--out", str(tmp_path / "made.parquet"))
    save_world(World(3, 100, NOON), settings)
    assert "100 customers, not 70" in _simulate("--count", "300", "--customers", "70", *out).stderr
    assert "adds 5,000 payments a day to the 200" in _simulate("--count", "50000", "--days", "10", *out).stderr
    assert load_world(settings) == World(3, 100, NOON)
    locate_world_file(settings).unlink()
    assert "expect more alerts" not in _simulate("--count", "300", *out).stderr
    drop_history([simulate_past_traffic(draw_population(50, 1), NOON - timedelta(days=1), NOON, MINUTE)], settings)
    land_once(lake, settings, topics=False)
    assert "simulated_world.json is missing" in _simulate("--count", "300", *out).stderr


def test_alerts_stay_within_the_budget_when_the_world_continues(make_settings, lake):
    settings = make_settings(alert_budget_per_day=4)
    people = draw_population(200, 42)
    now = NOON + timedelta(days=3)
    _land_and_process(lake, settings, [simulate_past_traffic(people, NOON - timedelta(days=45), NOON, MINUTE)])
    assert train(lake, settings).calibration.alerts_per_day == pytest.approx(4, abs=1)
    score_pending(lake, settings)
    _land_and_process(
        lake, settings, [simulate_past_traffic(people, *day, MINUTE) for day in split_into_days(NOON, now)]
    )
    assert 0 < score_pending(lake, settings).alerts <= 2 * 3 * 4
    more = simulate(400, seed=7, end=now, people=people)
    _land_and_process(lake, settings, [more.append_column("labelled_at", pa.nulls(400, pa.timestamp("us", "UTC")))])
    assert score_pending(lake, settings).alerts < 40


def test_live_traffic_continues_where_it_stopped(settings, lake, broker, start):
    lander = start("land")
    first = start("simulate", "--live", "--history-days", "3", "--drop-history", "--customers", "50", "--json")
    until(lambda: lake.exists(raw_transactions) and read_row_count(lake.open(raw_transactions)) > 250, 60)
    until(lambda: not list(settings.incoming.glob("*.parquet")), 60)
    summary = _stop_and_read_summary(first)
    assert 250 < summary["history"] < 360
    assert read_row_count(lake.open(fraud_labels)) < 30, "genuine payments have no labels"
    save_world(load_world(settings).advance_to(datetime.now(UTC) - timedelta(days=1)), settings)
    second = start("simulate", "--live", "--history-days", "3", "--drop-history", "--json")
    until(lambda: load_world(settings).simulated_until > datetime.now(UTC) - MINUTE, 60)
    assert 60 < _stop_and_read_summary(second)["history"] < 150, "only the payments of the missing day"
    lander.send_signal(signal.SIGTERM)
    lander.wait(30)


class _Clock:
    """Replaces `datetime` and `time`; `sleep` advances the time."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def now(self, _: object) -> datetime:
        return self.moment

    def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


def _simulate(*arguments: str) -> Any:
    result = CliRunner().invoke(simulate_command.command, list(arguments))
    assert result.exit_code == 0, result.output
    return result


def _land_and_process(lake: Any, settings: Any, tables: list[pa.Table]) -> None:
    drop_history(tables, settings)
    land_once(lake, settings, topics=False)
    process_landed(lake, settings)


def _stop_and_read_summary(process: Any) -> dict[str, Any]:
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    summary: dict[str, Any] = json.loads(output.splitlines()[-1])
    return summary
