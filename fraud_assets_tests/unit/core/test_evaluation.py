from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fraud_assets.core.evaluation import Protocol, compute_card_precision, compute_ranking_metrics, evaluate
from fraud_assets.errors import NotEnoughDataError
from fraud_assets.settings import load_settings
from fraud_assets_tests.support.synthetic import FIRST, features


@pytest.fixture(scope="module")
def handbook():
    """The handbook's transactions of 2018-07-11 to 2018-08-07 with the features that its authors published."""
    folder = load_settings().handbook_data
    if not (folder / "transactions_2018-07.parquet").exists():
        pytest.skip(f"the handbook's data is not in {folder.absolute()} (FRAUD_HANDBOOK_DATA)")
    raw = pa.concat_tables(pq.read_table(folder / f"transactions_2018-{part}.parquet") for part in ("07", "08-01_07"))
    book = pq.read_table(folder / "book_features_2018-07-11_2018-08-07.parquet")
    rows = book.join(raw, "TRANSACTION_ID", join_type="inner")
    rows = rows.rename_columns([name.lower() for name in rows.column_names])
    return rows.append_column("is_fraud", pc.equal(rows["tx_fraud"], 1)).drop_columns(["tx_fraud", "tx_fraud_scenario"])


def test_evaluation_reproduces_the_published_figures(handbook):
    """The handbook, chapter 7, isolation forest: AUC ROC 0.808, average precision 0.164, card precision@100 0.190."""
    result = evaluate(handbook, Protocol(date(2018, 7, 11)), trees=10, seed=42, scaled=True)
    assert (result.train_rows, result.train_frauds) == (66_928, 633)
    assert (result.test_rows, result.test_frauds) == (58_505, 374)
    figures = (result.auc_roc, result.average_precision, result.card_precision_at_100)
    assert [round(figure, 3) for figure in figures] == [0.808, 0.164, 0.190]


def test_the_platform_model_is_at_least_as_good(handbook):
    result = evaluate(handbook, Protocol(date(2018, 7, 11)), trees=100, seed=42)
    assert result.auc_roc >= 0.808
    assert result.average_precision >= 0.164
    assert result.card_precision_at_100 >= 0.190


def labeled_rows(fraud_rows, rows=2_000):
    fraud = np.isin(np.arange(rows), list(fraud_rows))
    return features(rows, days=4).append_column("is_fraud", pa.array(fraud))


def row_of(day, card, rows=2_000):
    """A row number of a card (0 to 49) on a day (0 to 3) of `labeled_rows`."""
    return int(day * rows / 4) + card


PROTOCOL = Protocol(FIRST.date(), train_days=1, delay_days=1, test_days=2)


def test_the_order_of_the_rows_does_not_change_the_result():
    table = labeled_rows({5, row_of(2, 7), row_of(3, 9)})
    mixed = table.take(np.random.default_rng(0).permutation(table.num_rows))
    assert evaluate(mixed, PROTOCOL, 10, 1) == evaluate(table, PROTOCOL, 10, 1)


def test_a_card_leaves_the_test_when_its_fraud_becomes_known():
    """A card leaves the test one day after its fraud, because labels are delayed by one day.

    A fraud in training excludes its card on all test days, a fraud on the next day from the second test day on. A later
    fraud excludes no row.
    """
    fraud = {row_of(0, 1), row_of(1, 2), row_of(2, 3), row_of(3, 4)}
    result = evaluate(labeled_rows(fraud), PROTOCOL, 10, 1)
    per_day = 10  # transactions of each of the fifty cards
    assert result.test_rows_of_compromised_cards == 2 * per_day + per_day
    assert result.test_rows == 1_000 - 3 * per_day
    assert (result.train_frauds, result.test_frauds) == (1, 2)


def test_a_window_without_frauds_or_without_rows_is_refused():
    with pytest.raises(NotEnoughDataError, match="0 of them fraud"):
        evaluate(labeled_rows({3}), PROTOCOL, 10, 1)
    with pytest.raises(NotEnoughDataError, match="--train-start"):
        evaluate(labeled_rows({3}), Protocol(FIRST.date() - timedelta(days=300)), 10, 1)


def test_card_precision_equals_a_result_computed_by_hand():
    days = np.array(["2026-01-01"] * 5 + ["2026-01-02"] * 4, "datetime64[D]")
    cards = np.array(["a", "a", "b", "c", "d", "a", "b", "c", "d"])
    scores = np.array([0.1, 0.9, 0.8, 0.2, 0.1, 0.99, 0.3, 0.7, 0.6])
    fraud = np.array([1, 0, 0, 0, 1, 1, 0, 1, 1], bool)
    # Day 1 selects the cards a and b. Card a is found: it has a fraud on that day, though not in its highest row.
    # Day 2 excludes card a and selects the cards c and d, which are both found.
    assert compute_card_precision(scores, fraud, cards, days, test_days=2, cards_per_day=2) == pytest.approx(1.5 / 2)
    # A test day without transactions counts as zero.
    assert compute_card_precision(scores, fraud, cards, days, test_days=3, cards_per_day=2) == pytest.approx(1.5 / 3)


def test_ranking_metrics_of_a_perfect_and_a_reversed_order():
    truth = np.array([0, 0, 1], bool)
    assert compute_ranking_metrics(np.array([0.1, 0.2, 0.3]), truth) == (1.0, 1.0)
    assert compute_ranking_metrics(np.array([0.3, 0.2, 0.1]), truth) == (0.0, pytest.approx(1 / 3))


def test_the_protocol_computes_its_test_days():
    protocol = Protocol(date(2018, 7, 11))
    assert (protocol.test_start, protocol.test_end) == (date(2018, 7, 25), date(2018, 8, 1))
