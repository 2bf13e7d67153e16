"""Windows compared with a simple reference that follows the contract literally, and with the handbook's tables."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fraud_assets.core.schema import DERIVED_FEATURES, WINDOW_DAYS
from fraud_assets.engines.local.windows import compute_windows
from fraud_assets.settings import load_settings

SECOND = 1_000_000
DAY = 86_400 * SECOND
DELAY = 7 * DAY
WINDOWED = DERIVED_FEATURES[2:]


def naive(transactions: list[dict[str, Any]], labels: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Every window by looking at every row: an instant is (microsecond, rank of landing within its tie)."""

    def instant(row: dict[str, Any], side: str) -> tuple[int, int]:
        ties = [o for o in transactions if o[side] == row[side] and o["event_us"] == row["event_us"]]
        return row["event_us"], sum(o["arrival"] < row["arrival"] for o in ties)

    def is_known_fraud(row: dict[str, Any], at: int) -> bool:
        known = [v for v in labels if v["transaction_id"] == row["transaction_id"] and v["labelled_us"] <= at]
        return bool(known) and max(known, key=lambda v: (v["labelled_us"], v["arrival"]))["is_fraud"]

    rows = []
    for row in (r for r in transactions if r["is_new"]):
        out: dict[str, float] = {}
        t, rank = instant(row, "customer_id")
        u, place = instant(row, "terminal_id")
        for days in WINDOW_DAYS:
            mine = [
                o
                for o in transactions
                if o["customer_id"] == row["customer_id"]
                and (t - days * DAY, rank) < instant(o, "customer_id") <= (t, rank)
            ]
            out[f"customer_id_nb_tx_{days}day_window"] = len(mine)
            out[f"customer_id_avg_amount_{days}day_window"] = sum(o["tx_amount"] for o in mine) / len(mine)
            there = [
                o
                for o in transactions
                if o["terminal_id"] == row["terminal_id"]
                and (u - DELAY - days * DAY, place) < instant(o, "terminal_id") <= (u - DELAY, place)
            ]
            frauds = sum(is_known_fraud(o, row["event_us"]) for o in there)
            out[f"terminal_id_nb_tx_{days}day_window"] = len(there)
            out[f"terminal_id_risk_{days}day_window"] = frauds / len(there) if there else 0.0
        rows.append(out)
    return rows


# Few distinct instants, many of them exactly a window's length or the delay apart, so that ties and ends are common.
instants = st.builds(
    lambda days, part: days * DAY + part, st.integers(0, 45), st.sampled_from([0, 1, SECOND, SECOND + 1, DAY // 2])
)
transactions_strategy = st.lists(
    st.tuples(st.sampled_from("AB"), st.sampled_from("XY"), instants, st.integers(0, 50_000), st.booleans()),
    min_size=1,
    max_size=25,
)
labels_strategy = st.lists(st.tuples(st.integers(0, 24), st.booleans(), instants), max_size=25)


@settings(max_examples=150)
@given(rows=transactions_strategy, verdicts=labels_strategy)
def test_windows_equal_the_naive_reference(rows: list, verdicts: list) -> None:
    """Ties, sub-second times, window ends, late, early, repeated and revised labels."""
    transactions = [
        {
            "transaction_id": str(number),
            "customer_id": customer,
            "terminal_id": terminal,
            "event_us": at,
            "tx_amount": cents / 100,
            "is_new": is_new or number == 0,
            "arrival": number,
        }
        for number, (customer, terminal, at, cents, is_new) in enumerate(rows)
    ]
    labels = [
        {"transaction_id": str(which), "is_fraud": fraud, "labelled_us": at, "arrival": number}
        for number, (which, fraud, at) in enumerate(verdicts)
    ]
    kinds = {"transaction_id": pa.string(), "is_fraud": pa.bool_(), "labelled_us": pa.int64(), "arrival": pa.int64()}
    label_schema = pa.schema(kinds.items())
    windows = compute_windows(
        pa.Table.from_pylist(transactions), pa.Table.from_pylist(labels, label_schema), load_settings()
    ).to_pylist()
    for got, wanted in zip(windows, naive(transactions, labels), strict=True):
        assert {name: got[name] for name in WINDOWED} == pytest.approx(wanted, abs=1e-9)


def test_a_late_label_is_not_counted_before_it_arrived() -> None:
    """The fraud of day 0 is labelled on day 20: unknown on day 10, known to the microsecond from day 20 on."""
    at = [0, 10 * DAY, 20 * DAY - 1, 20 * DAY, 36 * DAY, 37 * DAY]
    transactions = pa.table(
        {
            "transaction_id": [str(i) for i in range(len(at))],
            "customer_id": [str(i) for i in range(len(at))],
            "terminal_id": ["X"] * len(at),
            "event_us": at,
            "tx_amount": [1.0] * len(at),
            "is_new": [True] * len(at),
            "arrival": list(range(len(at))),
        }
    )
    labels = pa.table({"transaction_id": ["0"], "is_fraud": [True], "labelled_us": [20 * DAY], "arrival": [0]})
    risk = compute_windows(transactions, labels, load_settings())["terminal_id_risk_30day_window"].to_pylist()
    assert risk == [0.0, 0.0, 0.0, 0.5, 0.25, 0.0]


def test_the_handbook_is_met_in_every_cell() -> None:
    """267,967 x 12 windowed features of the book to 1e-6, computed from its transactions and labels."""
    folder = load_settings().handbook_data
    files = sorted(folder.glob("transactions_*.parquet"))
    if not files:
        pytest.skip(f"the handbook's data is not at {folder} (FRAUD_HANDBOOK_DATA)")
    raw = pa.concat_tables([pq.read_table(file) for file in files])
    at = raw["TX_DATETIME"].cast(pa.int64())
    arrival = pa.array(range(raw.num_rows), pa.int64())
    ids = raw["TRANSACTION_ID"].cast(pa.string())
    transactions = pa.table(
        {
            "transaction_id": ids,
            "customer_id": raw["CUSTOMER_ID"].cast(pa.string()),
            "terminal_id": raw["TERMINAL_ID"].cast(pa.string()),
            "event_us": at,
            "tx_amount": raw["TX_AMOUNT"],
            "is_new": pa.repeat(True, raw.num_rows),
            "arrival": arrival,
        }
    )
    frauds = pc.equal(raw["TX_FRAUD"], 1)
    labels = pa.table(
        {"transaction_id": ids, "is_fraud": frauds, "labelled_us": pc.add(at, DELAY), "arrival": arrival}
    ).filter(frauds)
    windows = compute_windows(transactions, labels, load_settings()).append_column("ID", raw["TRANSACTION_ID"])
    book = pq.read_table(folder / "book_features_2018-07-11_2018-08-07.parquet").sort_by("TRANSACTION_ID")
    mine = windows.filter(pc.is_in(windows["ID"], book["TRANSACTION_ID"])).sort_by("ID")
    assert mine["ID"].equals(book["TRANSACTION_ID"].cast(mine["ID"].type))
    for name in WINDOWED:
        difference = pc.subtract(mine[name].cast(pa.float64()), book[name.upper()].cast(pa.float64()))
        assert pc.max(pc.abs(difference)).as_py() < 1e-6, name
