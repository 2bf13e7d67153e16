"""A simple reference of the handbook's windows: a scan of all rows for each row."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from fraud_assets.core.schema import DERIVED_FEATURES, WINDOW_DAYS

SECOND = 1_000_000
DAY = 86_400 * SECOND
DELAY = 7 * DAY
WINDOWED = DERIVED_FEATURES[2:]

# There are few distinct instants, and many are exactly one window or the delay apart: ties and window ends are common.
instants = st.builds(
    lambda days, part: days * DAY + part, st.integers(0, 45), st.sampled_from([0, 1, SECOND, SECOND + 1, DAY // 2])
)


def compute_naively(transactions: list[dict[str, Any]], labels: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Computes every window with a scan of all rows.

    An instant is a pair: the microsecond, and the rank in landing order among the rows of the same microsecond.
    """

    def instant(row: dict[str, Any], side: str) -> tuple[int, int]:
        ties = [other for other in transactions if other[side] == row[side] and other["event_us"] == row["event_us"]]
        return row["event_us"], sum(other["arrival"] < row["arrival"] for other in ties)

    def is_known_fraud(row: dict[str, Any], at: int) -> bool:
        known = [
            label for label in labels if label["transaction_id"] == row["transaction_id"] and label["labelled_us"] <= at
        ]
        return bool(known) and max(known, key=lambda label: (label["labelled_us"], label["arrival"]))["is_fraud"]

    rows = []
    for row in (transaction for transaction in transactions if transaction["is_new"]):
        windows_of_row: dict[str, float] = {}
        customer_us, customer_rank = instant(row, "customer_id")
        terminal_us, terminal_rank = instant(row, "terminal_id")
        for days in WINDOW_DAYS:
            of_customer = [
                other
                for other in transactions
                if other["customer_id"] == row["customer_id"]
                and (customer_us - days * DAY, customer_rank)
                < instant(other, "customer_id")
                <= (customer_us, customer_rank)
            ]
            windows_of_row[f"customer_id_nb_tx_{days}day_window"] = len(of_customer)
            windows_of_row[f"customer_id_avg_amount_{days}day_window"] = sum(
                other["tx_amount"] for other in of_customer
            ) / len(of_customer)
            at_terminal = [
                other
                for other in transactions
                if other["terminal_id"] == row["terminal_id"]
                and (terminal_us - DELAY - days * DAY, terminal_rank)
                < instant(other, "terminal_id")
                <= (terminal_us - DELAY, terminal_rank)
            ]
            frauds = sum(is_known_fraud(other, row["event_us"]) for other in at_terminal)
            windows_of_row[f"terminal_id_nb_tx_{days}day_window"] = len(at_terminal)
            windows_of_row[f"terminal_id_risk_{days}day_window"] = frauds / len(at_terminal) if at_terminal else 0.0
        rows.append(windows_of_row)
    return rows
