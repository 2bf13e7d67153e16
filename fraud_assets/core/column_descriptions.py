"""Describes the columns of all tables, for catalogs. A column means the same in every table that has it."""

from __future__ import annotations

from fraud_assets.core.schema import Table
from fraud_assets.settings import WINDOW_DAYS

_WINDOW_COLUMNS = {
    "customer_id_nb_tx_{}day_window": "Number of transactions of the customer in the last {}, this one included.",
    "customer_id_avg_amount_{}day_window": "Mean amount of the customer's transactions in the last {}, this one "
    "included.",
    "terminal_id_nb_tx_{}day_window": "Number of transactions at the terminal in the {} before the feedback delay "
    "(FRAUD_FEEDBACK_DELAY_DAYS).",
    "terminal_id_risk_{}day_window": "Share of these transactions at the terminal that were known to be frauds; 0 if "
    "there are none.",
}

_POSITION_DESCRIPTIONS = {
    "topic": "Kafka topic of the message, or the dropped file of the row.",
    "topic_id": "Id of the topic, which changes if the topic is recreated; a hash of the content of a dropped file.",
    "partition": "Partition of the topic; 0 for a dropped file.",
    "offset": "Offset of the message in its partition; row number in a dropped file.",
}

_DESCRIPTIONS = {
    **_POSITION_DESCRIPTIONS,
    **{f"origin_{name}": f"In quarantine: {text}" for name, text in _POSITION_DESCRIPTIONS.items()},
    **{
        name.format(days): text.format("day" if days == 1 else f"{days} days")
        for days in WINDOW_DAYS
        for name, text in _WINDOW_COLUMNS.items()
    },
    "timestamp": "Timestamp of the Kafka message; null for a dropped file.",
    "key": "Key of the message, unchanged or pseudonymized.",
    "value": "Body of the message: its bytes, unchanged or with pseudonyms.",
    "headers": "Headers of the message.",
    "ingested_at": "Time of landing.",
    "ingest_date": "Day of landing in UTC; partitions the table.",
    "transaction_id": "Id of the transaction.",
    "tx_datetime": "Time of the transaction.",
    "tx_date": "Day of the transaction in UTC; partitions the table.",
    "customer_id": "Id of the customer who paid.",
    "terminal_id": "Id of the terminal at which the customer paid.",
    "tx_amount": "Amount of the transaction.",
    "tx_during_weekend": "1 if the transaction was on a Saturday or Sunday in FRAUD_TIME_ZONE, else 0.",
    "tx_during_night": "1 if the transaction was between 00:00 and 06:59 in FRAUD_TIME_ZONE, else 0.",
    "feature_version": "Version of the features; a model scores only its own version.",
    "is_fraud": "Whether the transaction was a fraud.",
    "labelled_at": "Time at which the label became known. A label counts only from then on.",
    "reason": "Reason of quarantine.",
    "detail": "Field, value or position that the reason refers to.",
    "score": "Fraud score: the higher, the more suspicious.",
    "threshold": "Score from which the transaction alerts.",
    "is_alert": "Whether the score reaches the threshold.",
    "model_name": "Name of the registered model.",
    "model_version": "Version of the registered model.",
    "model_run_id": "MLflow run that trained the model. It is unique, also across registries.",
    "scored_at": "Time of scoring.",
    "budget_per_day": "Alerts per day that the threshold allows.",
    "window_start": "Start of the calibration window (inclusive).",
    "window_end": "End of the calibration window (exclusive).",
    "calibrated_at": "Time of the calibration.",
}


def describe_columns(table: Table) -> dict[str, str]:
    """Returns a description of every column of a table, by name.

    Raises:
        KeyError: A column has no description.
    """
    return {name: _DESCRIPTIONS[name] for name in table.schema.names}
