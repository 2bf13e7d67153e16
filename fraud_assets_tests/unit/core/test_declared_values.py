"""Values of feature files: they equal references, do not depend on batches, and never use what was not known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fraud_assets.core.declarations import (
    FeatureFile,
    format_duration,
    parse_duration,
    read_feature_file,
    read_shipped_file,
)
from fraud_assets.core.declared_values import DeclaredValues, LabelColumns
from fraud_assets.errors import FeatureFileError
from fraud_assets_tests.support.naive_windows import DAY, DELAY, WINDOWED, compute_naively, instants

COMPUTED = (
    *("mean", "total", "largest", "smallest", "spread", "terminals", "frauds", "known", "share", "streak", "age"),
    *("fraud_mean", "genuine", "pause", "above", "ratio", "change", "size", "bounded", "clipped"),
)
"""The entries of EVERY_KIND that do not need a fitted limit."""

Rows = list[tuple[str, str, int, int]]
LabelRows = list[tuple[int, bool, int]]

transactions = st.lists(
    st.tuples(st.sampled_from("AB"), st.sampled_from("XY"), instants, st.integers(0, 50_000)), min_size=1, max_size=20
)
labels = st.lists(st.tuples(st.integers(0, 19), st.booleans(), instants), max_size=20)

EVERY_KIND = """
model = ["mean", "share", "ratio"]
entities = { customer = ["customer_id"], pair = ["customer_id", "terminal_id"] }

[aggregates]
mean = { function = "mean", of = "tx_amount", entity = "customer", over = "30d" }
total = { function = "sum", of = "tx_amount", entity = "pair", over = "12h", with_itself = false }
largest = { function = "max", of = "tx_amount", entity = "customer", over = "7d", delay = "1h" }
smallest = { function = "min", of = "tx_amount", entity = "customer", over = "7d" }
spread = { function = "deviation", of = "tx_amount", entity = "customer", over = "7d" }
terminals = { function = "distinct", of = "terminal_id", entity = "customer", over = "30d" }
frauds = { function = "fraud_count", entity = "pair", over = "30d" }
known = { function = "known_count", entity = "customer", over = "30d" }
share = { function = "fraud_share", entity = "customer", over = "30d", last = 2 }
streak = { function = "fraud_streak", entity = "customer", over = "30d" }
age = { function = "seconds_since_fraud", entity = "customer", over = "30d" }
fraud_mean = { function = "mean", of = "tx_amount", entity = "customer", over = "30d", known = "fraud" }
genuine = { function = "count", entity = "customer", over = "30d", known = "genuine" }
pause = { function = "seconds_since_previous", entity = "customer", over = "7d" }
above = { function = "count", entity = "customer", over = "14d", where = { value_of = "ratio", above = 1.2 } }

[inputs]
ratio = { ratio = ["tx_amount", "mean"] }
change = { difference = ["tx_amount", "mean"] }
size = { logarithm = "tx_amount" }
bounded = { saturation = "streak" }
high = { clip = { of = "tx_amount", quantile = 0.95 } }
clipped = { clip = { of = "ratio", below = 0.5, above = 2 } }
"""


def evaluate(
    file: FeatureFile,
    rows: Rows,
    label_rows: LabelRows,
    new: np.ndarray | None = None,
    stored: dict[str, np.ndarray] | None = None,
) -> DeclaredValues:
    customers, terminals, times, cents = (np.array(column) for column in zip(*rows, strict=True))
    kept = [label for label in label_rows if label[0] < len(rows)]
    return DeclaredValues(
        file,
        {"customer_id": customers, "terminal_id": terminals, "tx_amount": cents / 100},
        times,
        LabelColumns(
            np.array([row for row, _, _ in kept], np.int64),
            np.array([fraud for _, fraud, _ in kept], bool),
            np.array([time for _, _, time in kept], np.int64),
        ),
        DELAY,
        np.arange(len(rows)) if new is None else new,
        stored or {},
    )


def bits(values: np.ndarray) -> list[str]:
    return [float(value).hex() for value in values]


@settings(max_examples=60)
@given(transactions, labels)
def test_the_windows_of_the_book_equal_the_naive_reference(rows: Rows, label_rows: LabelRows) -> None:
    values = evaluate(read_shipped_file("book"), rows, label_rows)
    named = [
        {
            "transaction_id": number, "customer_id": customer, "terminal_id": terminal, "event_us": at,
            "tx_amount": cents / 100, "is_new": True, "arrival": number,
        }
        for number, (customer, terminal, at, cents) in enumerate(rows)
    ]  # fmt: skip
    known = [
        {"transaction_id": row, "is_fraud": fraud, "labelled_us": at, "arrival": number}
        for number, (row, fraud, at) in enumerate(label_rows)
    ]
    for number, expected in enumerate(compute_naively(named, known)):
        found = {name: values.compute(name)[number] for name in WINDOWED}
        assert found == pytest.approx(expected, abs=1e-9)


@settings(max_examples=60)
@given(transactions, labels, st.integers(0, 20))
def test_values_have_the_same_bits_in_one_batch_and_in_two(rows: Rows, label_rows: LabelRows, split: int) -> None:
    """All rows of the first batch are older than those of the second, so no window of it contains one of the second."""
    rows = sorted(rows, key=lambda row: row[2])
    split = min(split, len(rows))
    while 0 < split < len(rows) and rows[split][2] == rows[split - 1][2]:
        split += 1
    file = read_feature_file(EVERY_KIND, "test.toml")
    whole = evaluate(file, rows, label_rows)
    # A label that landed later has a later time too, so the first batch can be given all labels.
    stored = {}
    if split:
        first = evaluate(file, rows[:split], label_rows)
        for name in file.aggregates:
            stored[name] = np.concatenate([first.compute(name), np.full(len(rows) - split, np.nan)])
    second = evaluate(file, rows, label_rows, np.arange(split, len(rows)), stored)
    for name in COMPUTED:
        assert bits(second.compute(name)) == bits(whole.compute(name)), name


@settings(max_examples=60)
@given(transactions, labels, st.data())
def test_no_value_changes_with_what_was_not_known(rows: Rows, label_rows: LabelRows, data: st.DataObject) -> None:
    """A label that was not known at t, and a transaction after t, change no value of t."""
    file = read_feature_file(EVERY_KIND, "test.toml")
    query = data.draw(st.integers(0, len(rows) - 1))
    at = rows[query][2]
    later = data.draw(st.integers(1, 40)) * DAY + at
    changed_labels = [label for label in label_rows if label[2] <= at]
    changed_labels += [(row, not fraud, time) for row, fraud, time in label_rows if time > at]
    added = [*rows, ("A", "X", later, 99_999), ("B", "Y", later, 1)]
    before, after = evaluate(file, rows, label_rows), evaluate(file, added, changed_labels)
    for name in COMPUTED:
        assert bits(before.compute(name)[[query]]) == bits(after.compute(name)[[query]]), name


def test_history_that_was_not_computed_makes_a_second_order_count_unknown() -> None:
    file = read_feature_file(EVERY_KIND, "test.toml")
    rows: Rows = [("A", "X", 0, 100), ("A", "X", DAY, 100), ("A", "X", 20 * DAY, 100)]
    values = evaluate(file, rows, [], np.array([1, 2]))
    assert np.isnan(values.compute("above")[1])
    assert values.compute("above")[2] == 0


def test_the_default_inputs_point_to_fraud() -> None:
    """Ten payments of 50 at a good terminal, then one of 500 at a terminal whose last payments were frauds."""
    rows: Rows = [("A", "X", day * DAY, 5_000) for day in range(10)]
    rows += [("B", "Y", day * DAY, 5_000) for day in range(10)]
    rows.append(("A", "Y", 20 * DAY, 50_000))
    values = evaluate(read_shipped_file("default"), rows, [(18, True, 19 * DAY), (19, True, 19 * DAY)])
    values.fit_quantiles(np.ones(len(rows), bool))
    found = dict(zip(values.file.model, values.compute_model_inputs()[-1], strict=True))
    assert found == pytest.approx(
        {
            "high_amount": 500,
            "high_amount_ratio": 500 / 50,
            "customer_high_payments_14d": 0,
            # The newest three known at Y are genuine, fraud, fraud; ten are known within 30 days.
            "terminal_fraud_rise": 2 / 3 - 2.05 / 15,
            "terminal_fraud_streak": 2 / 3,
        }
    )


def test_a_definition_has_a_hash_that_does_not_depend_on_names() -> None:
    file = read_feature_file(EVERY_KIND, "test.toml")
    renamed = read_feature_file(EVERY_KIND.replace('"mean"]', '"typical"]').replace("\nmean =", "\ntypical =")
                                .replace('model = ["mean"', 'model = ["typical"'), "test.toml")  # fmt: skip
    assert renamed.hash_definition("typical") == file.hash_definition("mean")
    assert renamed.hash_definition("ratio") == file.hash_definition("ratio")
    changed = read_feature_file(EVERY_KIND.replace('entity = "customer", over = "30d" }', 'entity = "customer", '
                                'over = "29d" }', 1), "test.toml")  # fmt: skip
    assert changed.hash_definition("mean") != file.hash_definition("mean")
    assert changed.hash_definition("above") != file.hash_definition("above")
    assert changed.hash_definition("share") == file.hash_definition("share")
    hashes = [file.hash_definition(name) for name in (*file.aggregates, *file.inputs)]
    assert len(set(hashes)) == len(hashes)
    assert file.reach == 30 * DAY


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('over = "12h"', 'over = "12 hours"', 'total.over is \'12 hours\': write a number and a unit'),
        ('function = "sum"', 'function = "median"', "total"),
        ('of = "terminal_id", ', "", "terminals: count takes no `of`; every other function needs it"),
        ('entity = "pair", over = "30d"', 'entity = "shop", over = "30d"', "names the entity 'shop'"),
        ('"tx_amount", "mean"] }\nchange', '"tx_amount", "men"] }\nchange', "ratio names 'men'"),
        ('logarithm = "tx_amount"', 'logarithm = "size"', "is a cycle"),
        ("[inputs]", "[inputs]\nTotal = { logarithm = \"tx_amount\" }", "'Total' is not a name"),
        ("[inputs]", "[inputs]\nshare = { logarithm = \"tx_amount\" }", "the name 'share' is used twice"),
        ("with_itself = false", "with_itself = false, hourly = true", "hourly"),
        ('value_of = "ratio"', 'value_of = "high"', "is fitted with each model"),
        ("[inputs]", "[inputs", "is not valid TOML"),
    ],
)  # fmt: skip
def test_an_invalid_file_is_refused_with_the_entry_and_the_fix(old: str, new: str, message: str) -> None:
    assert EVERY_KIND.count(old) >= 1
    with pytest.raises(FeatureFileError) as caught:
        read_feature_file(EVERY_KIND.replace(old, new, 1), "bank.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("bank.toml")


def test_durations_are_read_and_shown() -> None:
    texts = ["15m", "1h", "24h", "30d", "90s"]
    shown = ["15 minutes", "1 hour", "1 day", "30 days", "90 seconds"]
    assert [format_duration(parse_duration(text)) for text in texts] == shown
