"""Runs the handbook's evaluation on the lake's features and labels. It registers no model."""

from __future__ import annotations

import logging
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal

import numpy as np
import pyarrow as pa

from fraud_assets.core.evaluation import BOOK_SEED, BOOK_TREES, Evaluation, Protocol, evaluate
from fraud_assets.core.schema import MODEL_INPUTS, fraud_labels
from fraud_assets.errors import NotEnoughDataError
from fraud_assets.lake.duckdb_session import connect
from fraud_assets.lake.position_sql import landing_order
from fraud_assets.lake.scan import register_view
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings
from fraud_assets.stages.training_window import find_newest_transaction, read_features

logger = logging.getLogger(__name__)
ModelName = Literal["platform", "book"]

_COLUMNS = ("transaction_id", "tx_datetime", "customer_id", *MODEL_INPUTS)


def find_latest_start(lake: Lake, settings: Settings, train_days: int, delay_days: int, test_days: int) -> date:
    """Returns the first training day of the newest protocol whose test days are older than the feedback delay.

    Raises:
        NotEnoughDataError: The lake has no features.
    """
    newest = find_newest_transaction(lake)
    if newest is None:
        raise NotEnoughDataError("The lake has no transactions with features. Land some first.")
    test_end = newest.astimezone(UTC).date() - timedelta(days=settings.feedback_delay_days)
    return test_end - timedelta(days=train_days + delay_days + test_days)


def evaluate_lake(lake: Lake, settings: Settings, protocol: Protocol, model: ModelName) -> Evaluation:
    """Trains and tests a model on the lake's features and labels.

    The latest label of a transaction counts (by `labelled_at`, then by landing order). A transaction without a label is
    genuine.

    Args:
        lake: The lake.
        settings: FRAUD_TRAIN_MIN_ROWS, and the trees and the seed of the platform's model.
        protocol: The days to train and test on, in UTC.
        model: "platform" (unscaled, FRAUD_TRAIN_TREES) or "book" (10 trees on standardized inputs).

    Raises:
        NotEnoughDataError: The window has too few rows or no frauds.
        LakeError: A table cannot be read.
    """
    start, end = _midnight(protocol.train_start), _midnight(protocol.test_end)
    logger.info(f"reading features from {protocol.train_start} to {protocol.test_end} (exclusive)")
    features = read_features(lake, start, end, _COLUMNS)
    rows = int((features["tx_datetime"].to_numpy() < np.datetime64(protocol.train_end)).sum())
    if rows < settings.train_min_rows:
        newest = find_newest_transaction(lake)
        held = "no features at all" if newest is None else f"features up to {newest:%Y-%m-%d %H:%M} UTC"
        raise NotEnoughDataError(
            f"Evaluation needs {settings.train_min_rows:,} transactions (FRAUD_TRAIN_MIN_ROWS) from "
            f"{protocol.train_start} to {protocol.train_end} (exclusive) to train on; the lake holds {rows:,} "
            f"({held}). Choose another --train-start, or land more."
        )
    labelled = features.append_column("is_fraud", read_verdicts(features, lake, settings))
    trees, seed = (BOOK_TREES, BOOK_SEED) if model == "book" else (settings.train_trees, settings.train_seed)
    logger.info(f"training {trees} trees on {rows:,} transactions, testing from {protocol.test_start}")
    return evaluate(labelled, protocol, trees, seed, scaled=model == "book")


def read_verdicts(features: pa.Table, lake: Lake, settings: Settings) -> pa.Array:
    """Returns whether each row is a fraud according to its latest label, in the order of the rows."""
    with connect(settings) as connection:
        numbers = pa.array(range(features.num_rows), pa.int64())
        connection.register("ids", features.select(["transaction_id"]).append_column("number", numbers))
        register_view(connection, "labels", lake.open(fraud_labels))
        verdicts = connection.sql(
            f"""
            with latest as (
                select transaction_id,
                    arg_max(is_fraud, (labelled_at, {landing_order()})) as is_fraud
                from labels semi join ids using (transaction_id) group by transaction_id
            )
            select coalesce(is_fraud, false) as is_fraud
            from ids left join latest using (transaction_id) order by number
            """
        ).to_arrow_table()
    return verdicts["is_fraud"]


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
