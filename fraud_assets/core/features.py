"""Defines the windowed features once, in the PySpark API, for DuckDB (through SQLFrame) and Spark.

Windows are point-in-time: they cover (t - n days, t]. Source: Fraud Detection Handbook, chapter 3 ("Baseline feature
transformation"). Transactions with the same time are ordered by landing: windows are ranges of the key
*microseconds x 1000 + rank within the tie*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fraud_assets.settings import WINDOW_DAYS

DAY = 86_400_000_000 * 1000
"""One day in units of the range key."""

LARGEST_RANK = 999
"""Largest rank within a tie. Further transactions of the same time share it."""

TRANSACTION_COLUMNS = {
    "transaction_id": "string",
    "customer_id": "string",
    "terminal_id": "string",
    "event_us": "bigint",
    "arrival": "bigint",
    "tx_amount": "double",
    "is_new": "boolean",
}
LABEL_COLUMNS = {"transaction_id": "string", "is_fraud": "boolean", "labelled_us": "bigint", "arrival": "bigint"}


def window_features(
    transactions: Any,
    labels: Any,
    delay_days: int,
    functions: Any,
    window: Any,
    arrival_type: Any = "bigint",
    keep: Callable[[Any], Any] = lambda frame: frame,
) -> Any:
    """Computes the customer and terminal windows of every transaction with `is_new`.

    A label counts for t only if `labelled_at <= t`. From the time of a later label of the same transaction, the later
    label counts. So the number of a terminal's frauds is not a window over flags but a running sum of events. An event
    is +1 when a fraud is in the window and known, and -1 when it leaves the window or its label is revised.

    Args:
        transactions: DataFrame of `TRANSACTION_COLUMNS`: the new transactions and the history of their customers and
            terminals. `arrival` orders them by landing.
        labels: DataFrame of `LABEL_COLUMNS`, of any of these transactions.
        delay_days: Feedback delay in days. Terminal windows end this long before t.
        functions: `pyspark.sql.functions` or SQLFrame's equivalent.
        window: `pyspark.sql.Window` or SQLFrame's equivalent.
        arrival_type: Type of `arrival`. Any type with an order works, such as a struct.
        keep: Called with each DataFrame that is used several times. An engine can persist the DataFrame, so that it is
            not computed again for each use.

    Returns:
        DataFrame of `arrival` and the twelve windowed features (counts as bigint, means and shares as double).
    """
    F, W = functions, window  # noqa: N806 (the usual names in Spark programs)
    keyed = keep(_add_range_keys(transactions, F, W))
    events = _fraud_events(keep(_fraud_spans(keyed, labels, delay_days, F, W)), F, arrival_type)
    rows = keyed.select(
        "arrival",
        "is_new",
        "customer_id",
        "customer_key",
        "terminal_id",
        "terminal_key",
        "tx_amount",
        *(F.lit(0).cast("bigint").alias(f"frauds_{days}") for days in WINDOW_DAYS),
    ).unionAll(events)
    # All windows are in one select: adding them one by one takes twice the time.
    counted = rows.select("arrival", "is_new", *_window_columns(delay_days, F, W)).where(F.col("is_new"))
    return counted.select("arrival", *_feature_columns(F))


def _add_range_keys(transactions: Any, functions: Any, window: Any) -> Any:
    """Adds the range keys of customer and terminal to the transactions."""
    F, W = functions, window  # noqa: N806

    def key(*partition: str) -> Any:
        position = F.row_number().over(W.partitionBy(*partition, "event_us").orderBy("arrival")) - F.lit(1)
        return F.col("event_us") * F.lit(1000) + F.least(position, F.lit(LARGEST_RANK))

    return transactions.select(
        "transaction_id",
        "customer_id",
        "terminal_id",
        "tx_amount",
        "arrival",
        "is_new",
        key("customer_id").alias("customer_key"),
        key("terminal_id").alias("terminal_key"),
    )


def _window_columns(delay_days: int, functions: Any, window: Any) -> list[Any]:
    """Returns the columns of counts, means and running fraud numbers of all windows."""
    F, W = functions, window  # noqa: N806
    running = W.partitionBy("terminal_id").orderBy("terminal_key").rangeBetween(W.unboundedPreceding, 0)
    columns = []
    for days in WINDOW_DAYS:
        customer = W.partitionBy("customer_id").orderBy("customer_key").rangeBetween(1 - days * DAY, 0)
        terminal = (
            W.partitionBy("terminal_id")
            .orderBy("terminal_key")
            .rangeBetween(1 - (days + delay_days) * DAY, -delay_days * DAY)
        )
        columns += [
            F.count("tx_amount").over(customer).alias(f"customer_id_nb_tx_{days}day_window"),
            F.avg("tx_amount").over(customer).alias(f"customer_id_avg_amount_{days}day_window"),
            F.count("tx_amount").over(terminal).alias(f"terminal_id_nb_tx_{days}day_window"),
            F.sum(f"frauds_{days}").over(running).alias(f"running_frauds_{days}"),
        ]
    return columns


def _feature_columns(functions: Any) -> list[Any]:
    """Returns the columns of the features. The risk of a terminal is its share of frauds, 0 without transactions."""
    F = functions  # noqa: N806
    columns = []
    for days in WINDOW_DAYS:
        count = F.col(f"terminal_id_nb_tx_{days}day_window")
        share = F.col(f"running_frauds_{days}").cast("double") / count.cast("double")
        risk = F.when(count > F.lit(0), share).otherwise(F.lit(0.0))
        columns += [
            F.col(f"customer_id_nb_tx_{days}day_window"),
            F.col(f"customer_id_avg_amount_{days}day_window"),
            count,
            risk.alias(f"terminal_id_risk_{days}day_window"),
        ]
    return columns


def _fraud_spans(keyed: Any, labels: Any, delay_days: int, functions: Any, window: Any) -> Any:
    """Returns when each known fraud of a terminal enters and leaves each window, as range keys."""
    F, W = functions, window  # noqa: N806
    of_transaction = W.partitionBy("transaction_id").orderBy("labelled_us", "arrival")
    verdicts = labels.select(
        "transaction_id", "is_fraud", "labelled_us", F.lead("labelled_us").over(of_transaction).alias("revised_us")
    ).where(F.col("is_fraud"))
    frauds = keyed.select("transaction_id", "terminal_id", "terminal_key").join(verdicts, on="transaction_id")
    enters = F.greatest(F.col("terminal_key") + F.lit(delay_days * DAY), F.col("labelled_us") * F.lit(1000))
    leaves = {
        days: F.least(
            F.col("terminal_key") + F.lit((days + delay_days) * DAY),
            F.coalesce(F.col("revised_us") * F.lit(1000), F.lit(2**63 - 1)),
        )
        for days in WINDOW_DAYS
    }
    return frauds.select(
        "terminal_id", enters.alias("enters"), *(leaves[days].alias(f"leaves_{days}") for days in WINDOW_DAYS)
    )


def _fraud_events(spans: Any, functions: Any, arrival_type: Any) -> Any:
    """Returns the rows of the terminals' running sums: a fraud enters and leaves each window once."""
    F = functions  # noqa: N806

    def event(at: str, changes: dict[int, Any]) -> Any:
        return spans.select(
            F.lit(None).cast(arrival_type).alias("arrival"),
            F.lit(False).alias("is_new"),
            F.lit(None).cast("string").alias("customer_id"),
            F.lit(None).cast("bigint").alias("customer_key"),
            "terminal_id",
            F.col(at).alias("terminal_key"),
            F.lit(None).cast("double").alias("tx_amount"),
            *(changes.get(days, F.lit(0)).cast("bigint").alias(f"frauds_{days}") for days in WINDOW_DAYS),
        )

    def is_inside(days: int) -> Any:
        return F.when(F.col("enters") < F.col(f"leaves_{days}"), F.lit(1)).otherwise(F.lit(0))

    events = event("enters", {days: is_inside(days) for days in WINDOW_DAYS})
    for days in WINDOW_DAYS:
        events = events.unionAll(event(f"leaves_{days}", {days: is_inside(days) * F.lit(-1)}))
    return events
