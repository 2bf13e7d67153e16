"""Compares the inputs of the planned default set with the handbook's: python benchmarks/default_inputs.py [--quick]

It computes the five inputs that `default.toml` declares from the handbook's transactions, trains a forest on five
weeks with three seeds each (one week and one seed with --quick), and tests it by the handbook's protocol. A label is
known seven days after its transaction.
"""

import sys
import time
from datetime import date, timedelta

import _lakes as lakes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fraud_assets.core.declarations import read_shipped_file
from fraud_assets.core.declared_values import DeclaredValues, LabelColumns
from fraud_assets.core.evaluation import (
    Protocol,
    compute_card_precision,
    compute_ranking_metrics,
    find_known_compromised,
)

DAY = 86_400_000_000
DELAY = 7 * DAY


def main() -> None:
    table = pa.concat_tables([pq.read_table(file) for file in lakes.handbook_files()])
    times = table["TX_DATETIME"].cast(pa.int64()).to_numpy()
    amounts, fraud = table["TX_AMOUNT"].to_numpy(), table["TX_FRAUD"].to_numpy().astype(bool)
    cards = table["CUSTOMER_ID"].to_numpy()
    began = time.process_time()
    inputs = compute_inputs(times, amounts, fraud, cards, table["TERMINAL_ID"].to_numpy())
    seconds = time.process_time() - began
    days = times.astype("datetime64[us]").astype("datetime64[D]")
    quick = "--quick" in sys.argv
    results = []
    for week in range(1 if quick else 5):
        protocol = Protocol(date(2018, 7, 11) - timedelta(weeks=2 * week))
        of_week = [test(inputs, protocol, seed, days, fraud, cards) for seed in range(1 if quick else 3)]
        results += of_week
        lakes.log_progress(f"trained from {protocol.train_start}: average precision {np.mean(of_week, axis=0)[1]:.3f}")
    means, deviations = np.mean(results, axis=0), np.std(results, axis=0)
    print(f"five inputs of {len(times):,} transactions: {seconds:.1f} s of CPU")
    names = ("AUC ROC", "average precision", "card precision@100")
    for name, mean, deviation, book in zip(names, means, deviations, (0.823, 0.271, 0.243), strict=True):
        print(f"{name:<20}{mean:.3f} ± {deviation:.3f}, the book's fifteen inputs {book}: ratio {mean / book:.2f}")


def compute_inputs(
    times: np.ndarray, amounts: np.ndarray, fraud: np.ndarray, cards: np.ndarray, terminals: np.ndarray
) -> np.ndarray:
    """Returns the inputs of `default.toml` for every transaction: float64, shape (transactions, 5)."""
    rows = np.flatnonzero(fraud)
    file = read_shipped_file("default")
    values = DeclaredValues(
        file,
        {"customer_id": cards, "terminal_id": terminals, "tx_amount": amounts},
        times,
        LabelColumns(rows, np.ones(len(rows), bool), times[rows] + DELAY),
        DELAY,
        np.arange(len(times)),
        # The limit of the amount belongs to the model: `test` fits it.
        quantiles={"high_amount": 0.0},
    )
    return values.compute_model_inputs()


def test(
    inputs: np.ndarray, protocol: Protocol, seed: int, days: np.ndarray, fraud: np.ndarray, cards: np.ndarray
) -> tuple[float, float, float]:
    """Trains a forest and returns its three metrics on the test days."""
    from sklearn.ensemble import IsolationForest

    in_train = (days >= np.datetime64(protocol.train_start)) & (days < np.datetime64(protocol.train_end))
    in_test = (days >= np.datetime64(protocol.test_start)) & (days < np.datetime64(protocol.test_end))
    in_test &= ~find_known_compromised(days, fraud, cards, protocol)
    clipped = inputs.astype(np.float32)
    clipped[:, 0] = np.maximum(clipped[:, 0], np.quantile(clipped[in_train, 0], 0.95))
    forest = IsolationForest(n_estimators=100, max_samples=1024, random_state=seed).fit(clipped[in_train])
    scores = -forest.score_samples(clipped[in_test])
    of_cards = compute_card_precision(scores, fraud[in_test], cards[in_test], days[in_test], protocol.test_days)
    return (*compute_ranking_metrics(scores, fraud[in_test]), of_cards)


if __name__ == "__main__":
    main()
