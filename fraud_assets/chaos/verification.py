"""Verifies that each message that the broker acknowledged is in each expected table exactly once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fraud_assets.chaos.traffic import NUMBER, Sent
from fraud_assets.core.quarantine_reasons import LABEL_PREFIX
from fraud_assets.core.schema import (
    POSITION_COLUMNS,
    Table,
    fraud_labels,
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.operations.reconciliation import reconcile
from fraud_assets.settings import Settings


@dataclass(frozen=True)
class Check:
    """The result of a check.

    Attributes:
        name: the condition.
        holds: whether the condition holds.
        figures: the numbers that were compared.
    """

    name: str
    holds: bool
    figures: str


def verify(lake: Lake, settings: Settings, sent: Sent, deaths: list[str]) -> list[Check]:
    """Checks the tables after all messages were processed.

    Args:
        lake: the lake to check.
        settings: settings of the reconciliation.
        sent: the messages that the broker acknowledged.
        deaths: processes that failed by themselves.

    Returns:
        The result of each check.
    """
    landed = _numbers(lake, raw_transactions)
    positions = {table.name: _positions(lake, table) for table in (raw_transactions, fraud_labels, transaction_features,
                                                                   fraud_predictions)}  # fmt: skip
    transactions = positions[raw_transactions.name]
    features = positions[transaction_features.name]
    predictions = positions[fraud_predictions.name]
    quarantined = _positions(lake, quarantined_transactions, labels=False)
    bad_labels = _positions(lake, quarantined_transactions, labels=True)
    labels = positions[fraud_labels.name] + bad_labels
    totals = reconcile(lake, settings)
    processed = features + quarantined
    return [
        Check(
            "every transaction landed once",
            sorted(landed) == sorted(sent.transactions) and len(set(transactions)) == len(transactions),
            f"{len(sent.transactions):,} sent, {len(set(landed)):,} landed, {len(landed) - len(set(landed)):,} twice",
        ),
        Check(
            "every label landed once, in labels or quarantine",
            len(labels) == len(set(labels)) == len(sent.labels) and len(bad_labels) == sent.broken_labels,
            f"{len(sent.labels):,} sent, {len(labels):,} landed, {len(bad_labels):,} of them in quarantine",
        ),
        Check(
            "every landed transaction is once in features or quarantine",
            sorted(processed) == sorted(transactions),
            f"{len(features):,} features + {len(quarantined):,} quarantined = {len(processed):,} of {len(landed):,}",
        ),
        Check(
            "every feature row is scored once",
            sorted(predictions) == sorted(features),
            f"{len(features):,} features, {len(predictions):,} predictions",
        ),
        Check(
            "every broken transaction is quarantined and every repeated one is a duplicate",
            totals["quarantined"] == sent.broken and totals["duplicates"] == sent.repeated,
            f"{totals['quarantined']:,} of {sent.broken:,} broken, "
            f"{totals['duplicates']:,} of {sent.repeated:,} repeated",
        ),
        Check(
            "the broker acknowledged every message",
            not sent.failures,
            "; ".join(sent.failures[:3]) or "all acknowledged",
        ),
        Check("no process ended by itself", not deaths, "; ".join(deaths[:3]) or "only killed processes ended"),
    ]


def is_drained(lake: Lake, sent: Sent) -> bool:
    """Whether all messages were processed, by the numbers of rows."""
    landed = len(_positions(lake, raw_transactions))
    labels = len(_positions(lake, fraud_labels)) + len(_positions(lake, quarantined_transactions, labels=True))
    features = len(_positions(lake, transaction_features))
    processed = features + len(_positions(lake, quarantined_transactions, labels=False))
    return (
        landed >= len(sent.transactions)
        and labels >= len(sent.labels)
        and processed >= landed
        and len(_positions(lake, fraud_predictions)) >= features
    )


def _numbers(lake: Lake, table: Table) -> list[int]:
    headers: Iterable[list[dict[str, Any]]] = _read(lake, table, ["headers"])["headers"].to_pylist()
    return [int(header["value"]) for row in headers for header in row if header["key"] == NUMBER]


def _positions(lake: Lake, table: Table, labels: bool | None = None) -> list[tuple[object, ...]]:
    """Returns the source positions of a table's rows; with `labels`, only those of labels or only the others."""
    extra = [] if labels is None else ["reason"]
    rows = _read(lake, table, [*POSITION_COLUMNS, *extra]).to_pydict()
    positions = list(zip(*(rows[name] for name in POSITION_COLUMNS), strict=True))
    if labels is None:
        return positions
    return [
        position
        for position, reason in zip(positions, rows["reason"], strict=True)
        if reason.startswith(LABEL_PREFIX) == labels
    ]


def _read(lake: Lake, table: Table, columns: list[str]) -> pa.Table:
    return open_dataset(lake.open(table)).to_table(columns=columns)
