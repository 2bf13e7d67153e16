"""Parses landed messages into typed rows: the one place where transactions and labels are read and judged.

No decision depends on the clock, so that a retry gives the result of the first attempt.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.columnar_parsing import parse_messages
from fraud_assets.core.formats import Decoder
from fraud_assets.core.local_time import to_local_times
from fraud_assets.core.message_contract import label_contract, transaction_contract
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
"""The first table of `parse_transactions`; its second has the schema `QUARANTINED_TRANSACTIONS`."""

VALID_LABELS = pa.schema([*POSITION, *LABELS_PARSED, pa.field("value", pa.binary())])
"""The first table of `parse_labels`."""

REJECTED_LABELS = pa.schema(
    [field for field in QUARANTINED_TRANSACTIONS if field.name not in ("ingested_at", "ingest_date")]
)
"""The second table of `parse_labels`."""


class ParsedMessages(NamedTuple):
    """Two tables that together are the input: no row is lost, none is in both. Both keep the order of the input."""

    valid: pa.Table
    rejected: pa.Table


def parse_transactions(raw: pa.Table, contract: Contract, decoder: Decoder | None = None) -> ParsedMessages:
    """Read landed transactions.

    Args:
        raw: Rows of `raw_transactions`.
        contract: field mapping, limits and time zone.
        decoder: Reads the bodies that a schema registry's serializer framed; see `kafka.schemas`.

    Returns:
        The good rows (`VALID_TRANSACTIONS`) and the rejected ones (`QUARANTINED_TRANSACTIONS`), both in the
        order of the input. Together they are the input: no row is lost, none is in both.
    """
    columns, good, reasons, details = parse_messages(raw, transaction_contract(contract), decoder)
    times = columns["tx_datetime"]
    weekend, night = compute_calendar_flags(times, contract.time_zone)
    kept = _filter(raw.select([*POSITION_COLUMNS, "ingested_at"]), good)
    valid = _table(
        {
            **columns,
            "tx_during_weekend": weekend,
            "tx_during_night": night,
            **{name: kept[name] for name in kept.column_names},
            # Through a naive time: the date in UTC, without a look into a time zone database.
            "tx_date": times.cast(pa.timestamp("us")).cast(pa.date32()),
        },
        VALID_TRANSACTIONS,
    )
    return ParsedMessages(valid, _rejected(raw, good, reasons, details, QUARANTINED_TRANSACTIONS))


def parse_labels(raw: pa.Table, contract: Contract, decoder: Decoder | None = None) -> ParsedMessages:
    """Read fraud labels.

    Args:
        raw: Messages: the columns of `raw_transactions` without those of the ingest.
        contract: field mapping and limits.
        decoder: As for `parse_transactions`.

    Returns:
        The good rows (`VALID_LABELS`) and the rejected ones (`REJECTED_LABELS`), both in the order of the
        input; each reason starts with `label_`.
    """
    columns, good, reasons, details = parse_messages(raw, label_contract(contract), decoder)
    kept = _filter(raw.select([*POSITION_COLUMNS, "value"]), good)
    valid = _table({**{name: kept[name] for name in kept.column_names}, **columns}, VALID_LABELS)
    reasons = [LABEL_PREFIX + reason for reason in reasons]
    return ParsedMessages(valid, _rejected(raw, good, reasons, details, REJECTED_LABELS))


def compute_calendar_flags(times: Any, time_zone: str) -> tuple[Any, Any]:
    """Weekend (Saturday, Sunday) and night (hour 0 to 6) of UTC times in a time zone, as int64 0 or 1."""
    local = to_local_times(times, time_zone)
    weekend = pc.greater_equal(pc.day_of_week(local), 5)
    night = pc.less_equal(pc.hour(local), 6)
    return weekend.cast(pa.int64()), night.cast(pa.int64())


def _filter(table: pa.Table, good: np.ndarray) -> pa.Table:
    return table if good.all() else table.filter(pa.array(good))


def _table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    return pa.table({field.name: columns[field.name] for field in schema}).cast(schema)


def _rejected(raw: pa.Table, good: np.ndarray, reasons: list[str], details: list[str], schema: pa.Schema) -> pa.Table:
    """The rows that are not good, untouched, with reason and detail."""
    rows = raw.filter(pa.array(~good))
    columns = {name: rows[name] for name in rows.column_names}
    return _table(
        {**columns, "reason": pa.array(reasons, pa.string()), "detail": pa.array(details, pa.string())}, schema
    )
