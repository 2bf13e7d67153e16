"""Evaluates a fraud detector with the protocol and the metrics of the Fraud Detection Handbook.

Source: Le Borgne, Siblini, Lebichot, Bontempi, "Reproducible Machine Learning for Credit Card Fraud
Detection - Practical Handbook" (2022), chapters 3 (protocol), 4 (card precision) and 7 (Isolation Forest).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from fraud_assets.core.training import fit, score_samples
from fraud_assets.errors import NotEnoughDataError

CARDS_PER_DAY = 100
BOOK_TREES, BOOK_SEED = 10, 42
DECLARED_SAMPLES = 1024
"""Rows that each tree draws when a forest is trained on declared inputs."""


@dataclass(frozen=True)
class Protocol:
    """The days of an evaluation, in UTC: `train_days` from `train_start`, `delay_days` for labels, then `test_days`."""

    train_start: date
    train_days: int = 7
    delay_days: int = 7
    test_days: int = 7

    @property
    def train_end(self) -> date:
        """The day after the last training day."""
        return self.train_start + timedelta(days=self.train_days)

    @property
    def test_start(self) -> date:
        """The first test day."""
        return self.train_end + timedelta(days=self.delay_days)

    @property
    def test_end(self) -> date:
        """The day after the last test day."""
        return self.test_start + timedelta(days=self.test_days)


@dataclass(frozen=True)
class Evaluation:
    """Metrics and their counts. The `test_*` counts exclude cards that are known to be compromised."""

    auc_roc: float
    average_precision: float
    card_precision_at_100: float
    train_rows: int
    train_frauds: int
    test_rows: int
    test_frauds: int
    test_rows_of_compromised_cards: int

    def metadata(self) -> dict[str, float | int]:
        """Returns the fields as a flat mapping, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class LabeledRows:
    """The day, the verdict and the card of each transaction. All arrays have shape (rows,).

    Attributes:
        days: Day in UTC; datetime64[D].
        fraud: Whether the newest label says fraud; bool.
        cards: Card of the transaction.
    """

    days: np.ndarray
    fraud: np.ndarray
    cards: np.ndarray

    @classmethod
    def of(cls, labelled: pa.Table) -> LabeledRows:
        """Takes the arrays from a table with customer_id, tx_datetime and is_fraud."""
        return cls(
            labelled["tx_datetime"].to_numpy().astype("datetime64[D]"),
            labelled["is_fraud"].to_numpy().astype(bool),
            labelled["customer_id"].to_numpy(),
        )


@dataclass(frozen=True)
class Split:
    """The rows of a protocol: two bool masks of shape (rows,).

    Attributes:
        train: Rows of the training days.
        test: Rows of the test days, without those of cards that are known to be compromised.
        known: Number of test rows that were left out.
    """

    train: np.ndarray
    test: np.ndarray
    known: int


def split_rows(rows: LabeledRows, protocol: Protocol) -> Split:
    """Splits rows by the days of a protocol.

    Raises:
        NotEnoughDataError: The training days have fewer than 2 rows, or the test days lack frauds or genuine
            transactions.
    """
    days, fraud = rows.days, rows.fraud
    in_train = (days >= np.datetime64(protocol.train_start)) & (days < np.datetime64(protocol.train_end))
    in_test = (days >= np.datetime64(protocol.test_start)) & (days < np.datetime64(protocol.test_end))
    known = in_test & find_known_compromised(days, fraud, rows.cards, protocol)
    in_test &= ~known
    train_rows, test_rows, test_frauds = int(in_train.sum()), int(in_test.sum()), int(fraud[in_test].sum())
    if train_rows < 2:
        raise NotEnoughDataError(
            f"The training days from {protocol.train_start} to {protocol.train_end} (exclusive) have {train_rows} "
            "transactions; at least 2 are needed. Choose another --train-start."
        )
    if test_frauds == 0 or test_frauds == test_rows:
        raise NotEnoughDataError(
            f"The test days from {protocol.test_start} to {protocol.test_end} (exclusive) have {test_rows:,} "
            f"transactions, {test_frauds:,} of them fraud, without {int(known.sum()):,} of known compromised cards. "
            "The test needs both frauds and genuine transactions. Choose another --train-start, or land the labels of "
            "those days."
        )
    return Split(in_train, in_test, int(known.sum()))


def evaluate(labelled: pa.Table, protocol: Protocol, trees: int, seed: int, *, scaled: bool = False) -> Evaluation:
    """Trains and tests a model with the protocol.

    Args:
        labelled: Rows of [train_start, test_end) with MODEL_INPUTS, transaction_id, customer_id, tx_datetime
            and is_fraud (bool), in any order. The days of the delay are included for their frauds.
        protocol: The days to train and test on.
        trees: Number of trees.
        seed: Random seed.
        scaled: Whether to standardize with the mean and standard deviation of the training days, like the handbook.

    Raises:
        NotEnoughDataError: See `split_rows`.
    """
    # A fixed order makes trees draw the same samples and breaks ties in the same way, whichever source the rows have.
    labelled = labelled.sort_by([("tx_datetime", "ascending"), ("transaction_id", "ascending")])
    rows = LabeledRows.of(labelled)
    split = split_rows(rows, protocol)
    model = fit(labelled.filter(pa.array(split.train)), trees, seed, scaled=scaled)
    return measure(score_samples(model, labelled.filter(pa.array(split.test))), rows, split, protocol)


def evaluate_inputs(
    inputs: np.ndarray, rows: LabeledRows, split: Split, protocol: Protocol, trees: int, seed: int
) -> Evaluation:
    """Trains and tests an Isolation Forest on the inputs of a feature file.

    Args:
        inputs: float64, shape (rows, inputs), in the order of `rows`.
        rows: The rows of [train_start, test_end); others are ignored.
        split: The result of `split_rows`.
        protocol: The days to train and test on.
        trees: Number of trees.
        seed: Random seed.
    """
    from sklearn.ensemble import IsolationForest

    matrix = inputs.astype(np.float32)
    samples = min(DECLARED_SAMPLES, int(split.train.sum()))
    forest = IsolationForest(n_estimators=trees, max_samples=samples, random_state=seed).fit(matrix[split.train])
    return measure(-forest.score_samples(matrix[split.test]), rows, split, protocol)


def measure(scores: np.ndarray, rows: LabeledRows, split: Split, protocol: Protocol) -> Evaluation:
    """Computes the metrics of the scores of the test rows: float64, shape (test rows,)."""
    fraud = rows.fraud[split.test]
    auc_roc, precision = compute_ranking_metrics(scores, fraud)
    return Evaluation(
        auc_roc=auc_roc,
        average_precision=precision,
        card_precision_at_100=compute_card_precision(
            scores, fraud, rows.cards[split.test], rows.days[split.test], protocol.test_days
        ),
        train_rows=int(split.train.sum()),
        train_frauds=int(rows.fraud[split.train].sum()),
        test_rows=len(fraud),
        test_frauds=int(fraud.sum()),
        test_rows_of_compromised_cards=split.known,
    )


def compute_ranking_metrics(scores: np.ndarray, fraud: np.ndarray) -> tuple[float, float]:
    """Computes the area under the ROC curve and the average precision.

    Args:
        scores: float64, shape (rows,).
        fraud: bool, shape (rows,).
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    return float(roc_auc_score(fraud, scores)), float(average_precision_score(fraud, scores))


def compute_card_precision(
    scores: np.ndarray,
    fraud: np.ndarray,
    cards: np.ndarray,
    days: np.ndarray,
    test_days: int,
    cards_per_day: int = CARDS_PER_DAY,
) -> float:
    """Computes the card precision: the mean share of compromised cards among the most suspicious cards of each day.

    The score of a card on a day is its highest score. A card is compromised on a day if it has a fraud that day. Cards
    that were found are excluded on later days. A day without transactions counts as zero. Source: handbook, chapter 4.

    Args:
        scores: float64, shape (rows,).
        fraud: bool, shape (rows,).
        cards: Card of each row, shape (rows,).
        days: datetime64[D], shape (rows,).
        test_days: Number of test days.
        cards_per_day: Number of most suspicious cards per day.
    """
    import pandas as pd

    frame = pd.DataFrame({"day": days, "card": cards, "score": scores, "fraud": fraud})
    found: set[Any] = set()
    precisions: list[float] = []
    for _, rows in frame.groupby("day", sort=True):
        of_card = rows[~rows["card"].isin(found)].groupby("card")[["score", "fraud"]].max()
        top = of_card.sort_values("score", ascending=False, kind="stable").head(cards_per_day)
        hit = top.index[top["fraud"].to_numpy()]
        found.update(hit)
        precisions.append(len(hit) / cards_per_day)
    return float(sum(precisions) / test_days)


def find_known_compromised(days: np.ndarray, fraud: np.ndarray, cards: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Returns a mask of the rows whose card is known to be compromised on the row's day.

    On test day d, a card is known if it had a fraud from the first training day to before d - delay_days. On the first
    test day these are the training days; every further test day adds one day.
    """
    import pandas as pd

    counted = fraud & (days >= np.datetime64(protocol.train_start))
    first_fraud = pd.Series(days[counted]).groupby(cards[counted]).min()
    known_from = pd.Series(cards).map(first_fraud).to_numpy("datetime64[D]") + np.timedelta64(
        protocol.delay_days + 1, "D"
    )
    return days >= known_from  # For a card without fraud this is NaT, and the comparison is false.
