"""Windows equal those of a simple reference implementation and those of the handbook's tables."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fraud_assets.engines.local.windows import compute_windows
from fraud_assets.settings import load_settings
from fraud_assets_tests.support.naive_windows import DAY, DELAY, WINDOWED, compute_naively, instants

transactions_strategy = st.lists(
    st.tuples(st.sampled_from("AB"), st.sampled_from("XY"), instants, st.integers(0, 50_000), st.booleans()),
    min_size=1,
    max_size=25,
)
labels_strategy = st.lists(st.tuples(st.integers(0, 24), st.booleans(), instants), max_size=25)


@settings(max_examples=150)
@given(rows=transactions_strategy, label_rows=labels_strategy)
def test_windows_equal_the_naive_reference(rows: list, label_rows: list) -> None:
    """The examples have ties, sub-second times, times at window ends, and late, early, repeated and revised labels."""
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
        for number, (which, fraud, at) in enumerate(label_rows)
    ]
    kinds = {"transaction_id": pa.string(), "is_fraud": pa.bool_(), "labelled_us": pa.int64(), "arrival": pa.int64()}
    label_schema = pa.schema(kinds.items())
    windows = compute_windows(
        pa.Table.from_pylist(transactions), pa.Table.from_pylist(labels, label_schema), load_settings()
    ).to_pylist()
    for found, expected in zip(windows, compute_naively(transactions, labels), strict=True):
        assert {name: found[name] for name in WINDOWED} == pytest.approx(expected, abs=1e-9)


def test_a_late_label_is_not_counted_before_it_arrived() -> None:
    """The fraud of day 0 is labeled on day 20. It is unknown one microsecond earlier, and known from then on."""
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


def test_every_windowed_feature_equals_the_handbook() -> None:
    """The 267,967 x 12 published values equal those computed from the published transactions and labels, to 1e-6."""
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
    computed = windows.filter(pc.is_in(windows["ID"], book["TRANSACTION_ID"])).sort_by("ID")
    assert computed["ID"].equals(book["TRANSACTION_ID"].cast(computed["ID"].type))
    for name in WINDOWED:
        difference = pc.subtract(computed[name].cast(pa.float64()), book[name.upper()].cast(pa.float64()))
        assert pc.max(pc.abs(difference)).as_py() < 1e-6, name
