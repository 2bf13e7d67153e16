"""Parses landed messages to typed rows. All code that reads transactions or labels uses this module.

No decision depends on the clock, so a retry gives the same result as the first attempt.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.columnar_parsing import parse_messages
from fraud_assets.core.formats import Decoder
from fraud_assets.core.local_time import to_local_times
from fraud_assets.core.message_contract import build_label_contract, build_transaction_contract
from fraud_assets.core.quarantine_reasons import LABEL_PREFIX
from fraud_assets.core.schema import (
    INGESTED_AT,
    LABELS_PARSED,
    POSITION,
    POSITION_COLUMNS,
    QUARANTINED_TRANSACTIONS,
    TRANSACTION,
)
from fraud_assets.settings import Contract

VALID_TRANSACTIONS = pa.schema(
    [
        *TRANSACTION,
        pa.field("tx_during_weekend", pa.int64(), nullable=False),
        pa.field("tx_during_night", pa.int64(), nullable=False),
        *POSITION,
        INGESTED_AT,
        pa.field("tx_date", pa.date32(), nullable=False),
    ]
)
"""Schema of the valid rows of `parse_transactions`. The rejected rows have the schema `QUARANTINED_TRANSACTIONS`."""

VALID_LABELS = pa.schema([*POSITION, *LABELS_PARSED, pa.field("value", pa.binary())])
"""Schema of the valid rows of `parse_labels`."""

REJECTED_LABELS = pa.schema(
    [field for field in QUARANTINED_TRANSACTIONS if field.name not in ("ingested_at", "ingest_date")]
)
"""Schema of the rejected rows of `parse_labels`."""


class ParsedMessages(NamedTuple):
    """The valid and the rejected rows. Every input row is in exactly one of the tables; both keep the input's order."""

    valid: pa.Table
    rejected: pa.Table


def parse_transactions(raw: pa.Table, contract: Contract, decoder: Decoder | None = None) -> ParsedMessages:
    """Parses landed transactions.

    Args:
        raw: Rows of `raw_transactions`.
        contract: The field mapping, limits and time zone.
        decoder: Decodes bodies that a schema registry's serializer framed; see `kafka.schemas`.

    Returns:
        The valid rows (`VALID_TRANSACTIONS`) and the rejected ones (`QUARANTINED_TRANSACTIONS`).
    """
    columns, good, reasons, details = parse_messages(raw, build_transaction_contract(contract), decoder)
    times = columns["tx_datetime"]
    weekend, night = compute_calendar_flags(times, contract.time_zone)
    kept = _filter(raw.select([*POSITION_COLUMNS, "ingested_at"]), good)
    valid = _table(
        {
            **columns,
            "tx_during_weekend": weekend,
            "tx_during_night": night,
            **{name: kept[name] for name in kept.column_names},
            # The cast to a naive time gives the date in UTC without a time zone database.
            "tx_date": times.cast(pa.timestamp("us")).cast(pa.date32()),
        },
        VALID_TRANSACTIONS,
    )
    return ParsedMessages(valid, _select_rejected(raw, good, reasons, details, QUARANTINED_TRANSACTIONS))


def parse_labels(raw: pa.Table, contract: Contract, decoder: Decoder | None = None) -> ParsedMessages:
    """Parses fraud labels.

    Args:
        raw: Messages with the schema `MESSAGES`.
        contract: The field mapping and limits.
        decoder: As for `parse_transactions`.

    Returns:
        The valid rows (`VALID_LABELS`) and the rejected ones (`REJECTED_LABELS`), whose reasons start with `label_`.
    """
    columns, good, reasons, details = parse_messages(raw, build_label_contract(contract), decoder)
    kept = _filter(raw.select([*POSITION_COLUMNS, "value"]), good)
    valid = _table({**{name: kept[name] for name in kept.column_names}, **columns}, VALID_LABELS)
    reasons = [LABEL_PREFIX + reason for reason in reasons]
    return ParsedMessages(valid, _select_rejected(raw, good, reasons, details, REJECTED_LABELS))


def compute_calendar_flags(times: Any, time_zone: str) -> tuple[Any, Any]:
    """Computes the weekend flag (Saturday, Sunday) and the night flag (hours 0 to 6) of UTC times in a time zone.

    Returns:
        Two Arrow arrays of int64, 0 or 1.
    """
    local = to_local_times(times, time_zone)
    weekend = pc.greater_equal(pc.day_of_week(local), 5)
    night = pc.less_equal(pc.hour(local), 6)
    return weekend.cast(pa.int64()), night.cast(pa.int64())


def _filter(table: pa.Table, good: np.ndarray) -> pa.Table:
    return table if good.all() else table.filter(pa.array(good))


def _table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    return pa.table({field.name: columns[field.name] for field in schema}).cast(schema)


def _select_rejected(
    raw: pa.Table, good: np.ndarray, reasons: list[str], details: list[str], schema: pa.Schema
) -> pa.Table:
    """Returns the unchanged rows that are not good, with reason and detail."""
    rows = raw.filter(pa.array(~good))
    columns = {name: rows[name] for name in rows.column_names}
    return _table(
        {**columns, "reason": pa.array(reasons, pa.string()), "detail": pa.array(details, pa.string())}, schema
    )
