"""The features: one definition, in the PySpark API, run on DuckDB (through SQLFrame) or on Spark.

Windows are point in time, (t - n days, t], after the Fraud Detection Handbook, chapter 3 ("Baseline feature
transformation"). Two transactions of one instant are ordered by landing: each instant is refined to the key
*microseconds x 1000 + rank within the tie*, and windows are ranges of that key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fraud_assets.settings import WINDOW_DAYS

DAY = 86_400_000_000 * 1000
"""One day in units of the range key."""

LARGEST_RANK = 999

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
    """Customer and terminal windows of every transaction with `is_new`.

    Args:
        transactions: DataFrame of `TRANSACTION_COLUMNS`: the new ones and the history of their customers and
            terminals. `arrival` orders them by landing.
        labels: DataFrame of `LABEL_COLUMNS`, of any of these transactions.
        delay_days: feedback delay; terminal windows end so many days before t.
        functions: `pyspark.sql.functions` or SQLFrame's.
        window: `pyspark.sql.Window` or SQLFrame's.
        arrival_type: type of `arrival`, where it is another one that has an order, such as a struct.
        keep: what an engine does to a DataFrame that is used several times and would be computed as often.

    Returns:
        DataFrame of `arrival` and the twelve windowed features (counts as bigint, means and shares as double).

    A label counts for t only where `labelled_at <= t`, and a later label of the same transaction replaces it
    from its own time on. So the frauds of a terminal are no plain window over flags but a running sum of
    events: +1 when a fraud enters the window and is known, -1 when it leaves or its label is revised.
    """
    F, W = functions, window  # noqa: N806 (the names that Spark's users know)

    def rank(*partition: str) -> Any:
        position = F.row_number().over(W.partitionBy(*partition, "event_us").orderBy("arrival")) - F.lit(1)
        return F.least(position, F.lit(LARGEST_RANK))

    def key(*partition: str) -> Any:
        return F.col("event_us") * F.lit(1000) + rank(*partition)

    keyed = keep(
        transactions.select(
            "transaction_id",
            "customer_id",
            "terminal_id",
            "tx_amount",
            "arrival",
            "is_new",
            key("customer_id").alias("customer_key"),
            key("terminal_id").alias("terminal_key"),
        )
    )
    events = _fraud_events(keep(_spans(keyed, labels, delay_days, F, W)), F, arrival_type)
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

    windowed = []
    running = W.partitionBy("terminal_id").orderBy("terminal_key").rangeBetween(W.unboundedPreceding, 0)
    for days in WINDOW_DAYS:
        customer = W.partitionBy("customer_id").orderBy("customer_key").rangeBetween(1 - days * DAY, 0)
        terminal = (
            W.partitionBy("terminal_id")
            .orderBy("terminal_key")
            .rangeBetween(1 - (days + delay_days) * DAY, -delay_days * DAY)
        )
        windowed += [
            F.count("tx_amount").over(customer).alias(f"customer_id_nb_tx_{days}day_window"),
            F.avg("tx_amount").over(customer).alias(f"customer_id_avg_amount_{days}day_window"),
            F.count("tx_amount").over(terminal).alias(f"terminal_id_nb_tx_{days}day_window"),
            F.sum(f"frauds_{days}").over(running).alias(f"running_frauds_{days}"),
        ]
    # One select for all windows: added one by one they take twice the time.
    counted = rows.select("arrival", "is_new", *windowed).where(F.col("is_new"))
    shares = []
    for days in WINDOW_DAYS:
        count = F.col(f"terminal_id_nb_tx_{days}day_window")
        share = F.col(f"running_frauds_{days}").cast("double") / count.cast("double")
        risk = F.when(count > F.lit(0), share).otherwise(F.lit(0.0))
        shares += [
            F.col(f"customer_id_nb_tx_{days}day_window"),
            F.col(f"customer_id_avg_amount_{days}day_window"),
            count,
            risk.alias(f"terminal_id_risk_{days}day_window"),
        ]
    return counted.select("arrival", *shares)


def _spans(keyed: Any, labels: Any, delay_days: int, functions: Any, window: Any) -> Any:
    """When each known fraud of a terminal enters and leaves each window, as range keys."""
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
    """Rows of the terminals' running sums: a fraud enters and leaves each window once."""
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

    def inside(days: int) -> Any:
        return F.when(F.col("enters") < F.col(f"leaves_{days}"), F.lit(1)).otherwise(F.lit(0))

    events = event("enters", {days: inside(days) for days in WINDOW_DAYS})
    for days in WINDOW_DAYS:
        events = events.unionAll(event(f"leaves_{days}", {days: inside(days) * F.lit(-1)}))
    return events
