"""The simulator is reproducible, and simulates about 1 % frauds of three kinds, late labels and bad messages."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.compute as pc
import pytest

from fraud_assets.simulator.bad_messages import KINDS, mix_in_bad_messages
from fraud_assets.simulator.event_order import EventOrder
from fraud_assets.simulator.generator import SIMULATED, draw_population, select_fraud_labels, simulate
from fraud_assets.simulator.live import LiveTraffic

END = datetime(2026, 8, 7, 14, 3, tzinfo=UTC)


def test_the_same_arguments_give_the_same_table():
    assert simulate(2_000, seed=3, end=END).equals(simulate(2_000, seed=3, end=END))


@pytest.mark.parametrize(
    "changes",
    [{"seed": 4}, {"end": END + timedelta(seconds=1)}, {"days": 45}, {"count": 1_999}, {"customers": 60}],
)
def test_other_arguments_give_other_ids(changes):
    first = simulate(2_000, seed=3, end=END)["transaction_id"].to_pylist()
    second = simulate(**{"count": 2_000, "seed": 3, "end": END, **changes})["transaction_id"].to_pylist()
    assert len(set(first)) == 2_000
    assert not set(first) & set(second)


def test_simulated_transactions_are_ordered_and_realistic():
    rows = simulate(5_000, seed=1, end=END)
    assert rows.schema == SIMULATED
    assert rows.num_rows == 5_000
    times = rows["tx_datetime"].to_numpy()
    assert (np.diff(times) >= np.timedelta64(0)).all()
    assert times[-1] <= np.datetime64("2026-08-07T14:03:00")
    assert len(np.unique(times.astype("datetime64[D]"))) == 51
    amounts = rows["tx_amount"].to_numpy()
    assert amounts.min() >= 0
    assert np.array_equal(amounts, np.round(amounts, 2))
    hours = times.astype("datetime64[h]").astype(int) % 24
    assert np.isin(hours, range(6, 18)).mean() > 0.6, "most payments are by day"


@pytest.mark.parametrize("count", [5_000, 20_000, 100_000])
def test_the_share_of_frauds_does_not_depend_on_the_size(count):
    shares = []
    for seed in range(4):
        scenario = simulate(count, seed=seed, end=END)["scenario"].to_numpy()
        assert set(np.unique(scenario)) == {0, 1, 2, 3}
        shares.append((scenario > 0).mean())
    assert min(shares) > 0.003
    assert max(shares) < 0.02
    assert 0.006 < np.mean(shares) < 0.013


def test_each_fraud_scenario_follows_its_definition():
    rows = simulate(50_000, seed=5, end=END)
    by_scenario = {kind: rows.filter(pc.equal(rows["scenario"], kind)) for kind in range(4)}
    assert pc.min(by_scenario[1]["tx_amount"]).as_py() > 220
    assert pc.max(by_scenario[0]["tx_amount"]).as_py() <= 220
    assert rows["is_fraud"].to_pylist() == [kind > 0 for kind in rows["scenario"].to_pylist()]
    # Every payment at a compromised terminal is a fraud, for 28 consecutive days.
    terminal = str(pc.mode(by_scenario[2]["terminal_id"].cast("int64"))[0].as_py()["mode"])
    days = rows["tx_datetime"].to_numpy().astype("datetime64[D]")
    at_terminal = rows["terminal_id"].to_numpy() == terminal
    fraud_days = days[at_terminal & (rows["scenario"].to_numpy() == 2)]
    assert fraud_days[-1] - fraud_days[0] < np.timedelta64(28, "D")
    assert rows["is_fraud"].to_numpy()[at_terminal & (days >= fraud_days[0]) & (days <= fraud_days[-1])].all()
    assert pc.mean(by_scenario[3]["tx_amount"]).as_py() > 3 * pc.mean(by_scenario[0]["tx_amount"]).as_py()


def test_labels_are_delayed_and_only_labels_that_are_due_are_selected():
    rows = simulate(5_000, seed=1, end=END)
    labels = select_fraud_labels(rows, timedelta(days=7), END)
    assert 0 < labels.num_rows < pc.sum(rows["is_fraud"]).as_py()
    assert pc.max(labels["labelled_at"]).as_py() <= END
    assert select_fraud_labels(rows, timedelta(days=7)).num_rows == pc.sum(rows["is_fraud"]).as_py()


def test_compromised_terminals_are_replaced_within_28_days():
    population = draw_population(1_000, 9)
    day = END.date().toordinal() - datetime(1970, 1, 1).toordinal()
    compromised = population.compromised.active(population.seed, day)
    assert len(compromised) == pytest.approx(28 * 2 * 2_000 / 10_000, abs=1)
    assert set(population.compromised.active(population.seed, day + 1)) & set(compromised)
    assert not set(population.compromised.active(population.seed, day + 28)) >= set(compromised)


def test_each_kind_of_bad_message_has_its_fault(settings):
    order = EventOrder(settings, now=END)
    bodies = [message.value for message in order.messages([simulate(100, seed=1, end=END)])]
    body = {kind: broken(bodies[7], settings) for kind, broken in KINDS.items()}
    assert body["empty"] == b""
    assert body["repeated_id"] in bodies
    with pytest.raises(json.JSONDecodeError):
        json.loads(body["truncated"])
    with pytest.raises(UnicodeDecodeError):
        body["not_utf8"].decode()
    assert json.loads(body["amount_boolean"])["tx_amount"] is True
    assert "tx_amount" not in json.loads(body["amount_missing"])
    assert body["keys_twice"].count(b'"tx_amount"') == 3


def test_bad_messages_are_mixed_in_among_valid_messages(settings):
    rows = simulate(260, seed=1, end=END)
    messages = list(mix_in_bad_messages(EventOrder(settings, now=END).messages([rows]), 26, 10, settings))
    sent = [message for message in messages if message.topic == settings.transactions_topic]
    assert len(sent) == 286
    assert [message.key for message in sent].count(None) == 26
    assert sent[10].key is None


def test_live_traffic_has_the_current_time_and_stops(settings):
    started = datetime.now(UTC)
    traffic = LiveTraffic(
        draw_population(200, 1),
        settings,
        2_000,
        timedelta(0),
        lambda: datetime.now(UTC) - started > timedelta(seconds=1),
    )
    messages = list(traffic.messages())
    bodies = [json.loads(message.value) for message in messages if message.topic == settings.transactions_topic]
    assert 500 < len(bodies) == traffic.transactions <= 2_100
    assert len({body["transaction_id"] for body in bodies}) == len(bodies)
    assert all(started <= datetime.fromisoformat(body["tx_datetime"]) <= datetime.now(UTC) for body in bodies)
    assert traffic.labels + traffic.labels_not_due == traffic.frauds
    assert traffic.labels == len(messages) - len(bodies)
