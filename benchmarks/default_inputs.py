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
from fraud_assets.core.evaluation import LabeledRows, Protocol, evaluate_inputs, split_rows

DAY = 86_400_000_000
DELAY = 7 * DAY


def main() -> None:
    table = pa.concat_tables([pq.read_table(file) for file in lakes.handbook_files()])
    times = table["TX_DATETIME"].cast(pa.int64()).to_numpy()
    amounts, fraud = table["TX_AMOUNT"].to_numpy(), table["TX_FRAUD"].to_numpy().astype(bool)
    cards = table["CUSTOMER_ID"].to_numpy()
    labeled = np.flatnonzero(fraud)
    began = time.process_time()
    values = DeclaredValues(
        read_shipped_file("default"),
        {"customer_id": cards, "terminal_id": table["TERMINAL_ID"].to_numpy(), "tx_amount": amounts},
        times,
        LabelColumns(labeled, np.ones(len(labeled), bool), times[labeled] + DELAY),
        DELAY,
        np.arange(len(times)),
    )
    values.fit_quantiles(np.ones(len(times), bool))
    values.compute_model_inputs()
    seconds = time.process_time() - began
    quick = "--quick" in sys.argv
    rows = LabeledRows(times.astype("datetime64[us]").astype("datetime64[D]"), fraud, cards)
    results = []
    for week in range(1 if quick else 5):
        protocol = Protocol(date(2018, 7, 11) - timedelta(weeks=2 * week))
        split = split_rows(rows, protocol)
        values.fit_quantiles(split.train)
        inputs = values.compute_model_inputs()
        seeds = range(1 if quick else 3)
        tested = [evaluate_inputs(inputs, rows, split, protocol, 100, seed) for seed in seeds]
        results += [(found.auc_roc, found.average_precision, found.card_precision_at_100) for found in tested]
        precision = np.mean([found.average_precision for found in tested])
        lakes.log_progress(f"trained from {protocol.train_start}: average precision {precision:.3f}")
    means, deviations = np.mean(results, axis=0), np.std(results, axis=0)
    print(f"five inputs of {len(times):,} transactions: {seconds:.1f} s of CPU")
    names = ("AUC ROC", "average precision", "card precision@100")
    for name, mean, deviation, book in zip(names, means, deviations, (0.823, 0.271, 0.243), strict=True):
        print(f"{name:<20}{mean:.3f} ± {deviation:.3f}, the book's fifteen inputs {book}: ratio {mean / book:.2f}")


if __name__ == "__main__":
    main()
