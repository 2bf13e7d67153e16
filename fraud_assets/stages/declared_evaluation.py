"""Evaluates the inputs of a feature file on the lake's transactions and labels, over several weeks and seeds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.declarations import FeatureFile
from fraud_assets.core.declared_values import DeclaredValues, LabelColumns
from fraud_assets.core.evaluation import Evaluation, LabeledRows, Protocol, evaluate_inputs, split_rows
from fraud_assets.core.schema import POSITION_COLUMNS, fraud_labels
from fraud_assets.errors import NotEnoughDataError
from fraud_assets.lake.tables import Lake, read
from fraud_assets.settings import Settings
from fraud_assets.stages.evaluation import read_verdicts
from fraud_assets.stages.training_window import read_features

logger = logging.getLogger(__name__)

_COLUMNS = (
    "transaction_id",
    "tx_datetime",
    "customer_id",
    "terminal_id",
    "tx_amount",
    "ingested_at",
    *POSITION_COLUMNS,
)
_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class WeekResult:
    """The evaluations of one protocol, one for each seed."""

    protocol: Protocol
    evaluations: Sequence[Evaluation]


def evaluate_declared(
    lake: Lake, settings: Settings, file: FeatureFile, protocols: Sequence[Protocol], seeds: int
) -> list[WeekResult]:
    """Computes the inputs of a feature file in memory, and trains and tests a forest for each protocol and seed.

    The transactions of the lake are the input; no stored feature is read, and nothing is written. A label counts in the
    inputs from the time at which it was known, and its newest verdict counts in the test.

    Args:
        lake: The lake.
        settings: FRAUD_TRAIN_MIN_ROWS, FRAUD_TRAIN_TREES, FRAUD_TRAIN_SEED and FRAUD_FEEDBACK_DELAY_DAYS.
        file: Declares the inputs.
        protocols: The days to train and test on.
        seeds: Number of seeds, from FRAUD_TRAIN_SEED on.

    Raises:
        NotEnoughDataError: A training window has too few rows, or the test days lack frauds.
        LakeError: A table cannot be read.
    """
    rows = _read_transactions(lake, file, protocols)
    for protocol in protocols:
        _require_training_rows(rows, protocol, settings)
    labeled = LabeledRows.of(rows.append_column("is_fraud", read_verdicts(rows, lake, settings)))
    values = DeclaredValues(
        file,
        {name: rows[name].to_numpy() for name in ("customer_id", "terminal_id", "tx_amount")},
        rows["tx_datetime"].cast(pa.int64()).to_numpy(),
        _read_labels(rows, lake),
        settings.feedback_delay_days * _DAY_US,
        np.arange(rows.num_rows),
    )
    results = []
    for protocol in protocols:
        split = split_rows(labeled, protocol)
        values.fit_quantiles(split.train)
        inputs = values.compute_model_inputs()
        evaluations = [
            evaluate_inputs(inputs, labeled, split, protocol, settings.train_trees, settings.train_seed + seed)
            for seed in range(seeds)
        ]
        logger.info(f"evaluated the training days from {protocol.train_start}")
        results.append(WeekResult(protocol, evaluations))
    return results


def _read_transactions(lake: Lake, file: FeatureFile, protocols: Sequence[Protocol]) -> pa.Table:
    """Reads the transactions of all protocols and of the history that their inputs reach, in landing order."""
    # A second-order count reads values of rows that have a history of their own.
    history = timedelta(microseconds=2 * file.reach)
    start = datetime.combine(min(protocol.train_start for protocol in protocols), time(), UTC) - history
    end = datetime.combine(max(protocol.test_end for protocol in protocols), time(), UTC)
    logger.info(f"reading transactions from {start:%Y-%m-%d} to {end:%Y-%m-%d} (exclusive)")
    rows = read_features(lake, start, end, _COLUMNS)
    return rows.sort_by([(name, "ascending") for name in ("ingested_at", *POSITION_COLUMNS)])


def _require_training_rows(rows: pa.Table, protocol: Protocol, settings: Settings) -> None:
    days = rows["tx_datetime"].to_numpy().astype("datetime64[D]")
    within = (days >= np.datetime64(protocol.train_start)) & (days < np.datetime64(protocol.train_end))
    if (count := int(within.sum())) < settings.train_min_rows:
        raise NotEnoughDataError(
            f"Evaluation needs {settings.train_min_rows:,} transactions (FRAUD_TRAIN_MIN_ROWS) from "
            f"{protocol.train_start} to {protocol.train_end} (exclusive) to train on; the lake holds {count:,}. Choose "
            "another --train-start or fewer --weeks, or land more."
        )


def _read_labels(rows: pa.Table, lake: Lake) -> LabelColumns:
    """Reads the labels of the transactions, in landing order."""
    columns = ["transaction_id", "is_fraud", "labelled_at", "ingested_at", *POSITION_COLUMNS]
    labels = read(lake.open(fraud_labels), columns)
    labels = labels.sort_by([(name, "ascending") for name in ("ingested_at", *POSITION_COLUMNS)])
    number = pc.index_in(labels["transaction_id"], value_set=rows["transaction_id"].combine_chunks())
    found = labels.append_column("row", number.cast(pa.int64())).filter(pc.is_valid(number))
    return LabelColumns(
        found["row"].to_numpy(), found["is_fraud"].to_numpy(), found["labelled_at"].cast(pa.int64()).to_numpy()
    )
