"""Declares every table once: Arrow schemas, keys and feature names.

All times are `timestamp[us, UTC]`. Every write is cast to these schemas, so that no table contains a naive timestamp
or a column of nulls without a type.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from fraud_assets.settings import WINDOW_DAYS

TIME = pa.timestamp("us", tz="UTC")

POSITION = (
    pa.field("topic", pa.string(), nullable=False),
    pa.field("topic_id", pa.string(), nullable=False),
    pa.field("partition", pa.int32(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),
)
SOURCE_PARTITION_COLUMNS = ("topic", "topic_id", "partition")
POSITION_COLUMNS = (*SOURCE_PARTITION_COLUMNS, "offset")
HEADERS = pa.list_(pa.struct([pa.field("key", pa.string()), pa.field("value", pa.binary())]))

INGESTED_AT = pa.field("ingested_at", TIME, nullable=False)
INGEST_DATE = pa.field("ingest_date", pa.date32(), nullable=False)

RAW_TRANSACTIONS = pa.schema(
    [
        *POSITION,
        pa.field("timestamp", TIME),
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary()),
        pa.field("headers", HEADERS),
        INGESTED_AT,
        INGEST_DATE,
    ]
)

MESSAGES = pa.schema([field for field in RAW_TRANSACTIONS if field.name not in ("ingested_at", "ingest_date")])
"""Schema of a batch of messages: the landing schema without the landing time."""

LABELS_PARSED = pa.schema(
    [
        pa.field("transaction_id", pa.string(), nullable=False),
        pa.field("is_fraud", pa.bool_(), nullable=False),
        pa.field("labelled_at", TIME, nullable=False),
    ]
)
FRAUD_LABELS = pa.schema([*POSITION, *LABELS_PARSED, pa.field("value", pa.binary()), INGESTED_AT, INGEST_DATE])

QUARANTINED_TRANSACTIONS = pa.schema(
    [
        *POSITION,
        pa.field("timestamp", TIME),
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary()),
        pa.field("headers", HEADERS),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
        INGESTED_AT,
        INGEST_DATE,
    ]
)
"""`reason` is a key of `core.quarantine_reasons.REASONS`; `duplicate` is a repeated transaction id."""

TRANSACTION = pa.schema(
    [
        pa.field("transaction_id", pa.string(), nullable=False),
        pa.field("tx_datetime", TIME, nullable=False),
        pa.field("customer_id", pa.string(), nullable=False),
        pa.field("terminal_id", pa.string(), nullable=False),
        pa.field("tx_amount", pa.float64(), nullable=False),
    ]
)

DERIVED_FEATURES = (
    "tx_during_weekend",
    "tx_during_night",
    *(f"customer_id_{kind}_{days}day_window" for days in WINDOW_DAYS for kind in ("nb_tx", "avg_amount")),
    *(f"terminal_id_{kind}_{days}day_window" for days in WINDOW_DAYS for kind in ("nb_tx", "risk")),
)
"""The fourteen derived features of the handbook (chapter 3), in its order and with its names in lower case."""

MODEL_INPUTS = ("tx_amount", *DERIVED_FEATURES)
"""The fifteen inputs of the model, in their order."""

FEATURE_VERSION = "1"
"""Version of the features. It increases if the meaning of an input changes. A model scores only its own version."""

_INTEGER_FEATURES = tuple(name for name in DERIVED_FEATURES if "_nb_tx_" in name or "_during_" in name)

TRANSACTION_FEATURES = pa.schema(
    [
        *TRANSACTION,
        *(
            pa.field(name, pa.int64() if name in _INTEGER_FEATURES else pa.float64(), nullable=False)
            for name in DERIVED_FEATURES
        ),
        pa.field("feature_version", pa.string(), nullable=False),
        *POSITION,
        INGESTED_AT,
        pa.field("tx_date", pa.date32(), nullable=False),
    ]
)

FRAUD_PREDICTIONS = pa.schema(
    [
        pa.field("transaction_id", pa.string(), nullable=False),
        pa.field("tx_datetime", TIME, nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("threshold", pa.float64(), nullable=False),
        pa.field("is_alert", pa.bool_(), nullable=False),
        pa.field("model_version", pa.int64(), nullable=False),
        pa.field("model_run_id", pa.string(), nullable=False),
        pa.field("feature_version", pa.string(), nullable=False),
        *POSITION,
        INGESTED_AT,
        pa.field("scored_at", TIME, nullable=False),
        pa.field("tx_date", pa.date32(), nullable=False),
    ]
)
"""`model_run_id` is the MLflow run that trained the model: two registries may both have a version 1."""

RETRIED_MESSAGES = pa.schema(
    [
        *POSITION,
        *(field.with_name(f"origin_{field.name}") for field in POSITION),
        pa.field("reason", pa.string(), nullable=False),
        INGESTED_AT,
    ]
)
"""Quarantined messages that were retried: their new position and, as `origin_…`, their position in quarantine."""

ALERT_THRESHOLDS = pa.schema(
    [
        pa.field("model_name", pa.string(), nullable=False),
        pa.field("model_version", pa.int64(), nullable=False),
        pa.field("model_run_id", pa.string(), nullable=False),
        pa.field("threshold", pa.float64(), nullable=False),
        pa.field("budget_per_day", pa.float64(), nullable=False),
        pa.field("window_start", TIME, nullable=False),
        pa.field("window_end", TIME, nullable=False),
        pa.field("calibrated_at", TIME, nullable=False),
    ]
)


@dataclass(frozen=True)
class Table:
    """A Delta table: its name (also its asset key), schema, partition column and columns with statistics."""

    name: str
    schema: pa.Schema
    partition_by: str | None = None
    statistics: tuple[str, ...] = (*POSITION_COLUMNS, "ingested_at")


raw_transactions = Table("raw_transactions", RAW_TRANSACTIONS, "ingest_date")
fraud_labels = Table(
    "fraud_labels", FRAUD_LABELS, "ingest_date", (*POSITION_COLUMNS, "ingested_at", "labelled_at", "is_fraud")
)
quarantined_transactions = Table("quarantined_transactions", QUARANTINED_TRANSACTIONS, "ingest_date")
transaction_features = Table(
    "transaction_features", TRANSACTION_FEATURES, "tx_date", (*POSITION_COLUMNS, "ingested_at", "tx_datetime")
)
fraud_predictions = Table(
    "fraud_predictions", FRAUD_PREDICTIONS, "tx_date", (*POSITION_COLUMNS, "ingested_at", "tx_datetime", "score")
)
alert_thresholds = Table("alert_thresholds", ALERT_THRESHOLDS, statistics=("model_version", "calibrated_at"))
retried_messages = Table("retried_messages", RETRIED_MESSAGES)

TABLES = (
    raw_transactions,
    fraud_labels,
    quarantined_transactions,
    transaction_features,
    fraud_predictions,
    alert_thresholds,
    retried_messages,
)
