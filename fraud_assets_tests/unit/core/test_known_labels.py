"""Windows and known labels equal a reference that follows their definitions row by row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud_assets.core.known_labels import KnownLabels, Labels
from fraud_assets.core.timeline import Timeline
from fraud_assets.core.window_values import ExactSums, count_distinct, find_deviations, find_extremes

SECOND = 1_000_000


@dataclass(frozen=True)
class Row:
    """A transaction. Its landing is its number."""

    number: int
    entity: int
    time: int
    amount: float


@dataclass(frozen=True)
class Label:
    row: int
    fraud: bool
    time: int


def instant(rows: list[Row], row: Row) -> tuple[int, int]:
    """The time, and the number of earlier landed transactions of the same entity and time."""
    same = [other for other in rows if (other.entity, other.time) == (row.entity, row.time)]
    return row.time, sum(other.number < row.number for other in same)


def in_window(rows: list[Row], query: Row, length: int, delay: int) -> list[Row]:
    """The transactions of the query's entity in (t - delay - length, t - delay], oldest first."""
    time, rank = instant(rows, query)
    found = [
        row
        for row in rows
        if row.entity == query.entity and (time - delay - length, rank) < instant(rows, row) <= (time - delay, rank)
    ]
    return sorted(found, key=lambda row: instant(rows, row))


def verdict(rows: list[Row], labels: list[Label], row: Row, query: Row, delay: int) -> bool | None:
    """What was known about a transaction: fraud (True), genuine (False), or nothing."""
    time, rank = instant(rows, query)
    known = [label for label in labels if label.row == row.number and label.time <= time]
    if known:
        # max returns the first of equal ones; the one that landed later counts.
        return max(reversed(known), key=lambda label: label.time).fraud
    began, own = instant(rows, row)
    return False if (began + delay, own) <= (time, rank) else None


def known_before(
    rows: list[Row], labels: list[Label], query: Row, length: int, shift: int, delay: int
) -> list[tuple[Row, bool]]:
    """The known transactions of a window with their verdicts, oldest first, without the query itself."""
    found = [(row, verdict(rows, labels, row, query, delay)) for row in in_window(rows, query, length, shift)]
    return [(row, fraud) for row, fraud in found if fraud is not None and row is not query]


times = st.integers(0, 12)
amounts = st.sampled_from([0.0, 0.01, 12.5, 1 / 3, 1e-7, 999_999_999.99, 2.0e12])
transactions = st.lists(st.tuples(st.integers(0, 2), times, amounts), min_size=1, max_size=14)
verdicts = st.lists(st.tuples(st.integers(0, 13), st.booleans(), st.integers(0, 16)), max_size=14)


def build(drawn: list[tuple[int, int, float]]) -> tuple[list[Row], Timeline, np.ndarray]:
    rows = [Row(number, entity, time * SECOND, amount) for number, (entity, time, amount) in enumerate(drawn)]
    timeline = Timeline.build(
        np.array([row.entity for row in rows]), np.array([row.time for row in rows]), np.arange(len(rows))
    )
    return rows, timeline, timeline.places


def add_labels(
    rows: list[Row], timeline: Timeline, drawn: list[tuple[int, bool, int]], delay: int
) -> tuple[list[Label], KnownLabels]:
    labels = [Label(row, fraud, time * SECOND) for row, fraud, time in drawn if row < len(rows)]
    arrays = Labels.build(
        timeline,
        np.array([label.row for label in labels], np.int64),
        np.array([label.fraud for label in labels], bool),
        np.array([label.time for label in labels], np.int64),
        np.arange(len(labels)),
    )
    return labels, KnownLabels(timeline, arrays, delay * SECOND)


@given(transactions, st.integers(1, 9), st.integers(0, 4), st.booleans())
def test_windows_equal_the_reference(drawn: list, length: int, delay: int, with_itself: bool) -> None:
    rows, timeline, places = build(drawn)
    begin, end = timeline.find_window(places, length * SECOND, delay * SECOND, with_itself=with_itself)
    values = np.array([row.amount for row in rows])[timeline.order]
    sums = ExactSums.build(values)
    names = np.unique(values, return_inverse=True)[1] + 100 * timeline.entity
    for row in rows:
        inside = in_window(rows, row, length * SECOND, delay * SECOND)
        if not (with_itself or delay):
            inside.remove(row)
        found = [rows[timeline.order[place]] for place in range(begin[row.number], end[row.number])]
        assert found == inside
    seen = [values[first:last] for first, last in zip(begin, end, strict=True)]
    assert sums.count(begin, end).tolist() == [len(inside) for inside in seen]
    assert sums.sum(begin, end) == pytest.approx([math.fsum(inside) for inside in seen], rel=1e-15, abs=1e-15)
    assert count_distinct(names, begin, end).tolist() == [len(set(inside)) for inside in seen]
    for largest, choose in ((True, max), (False, min)):
        expected = [choose(inside, default=math.nan) for inside in seen]
        assert find_extremes(values, begin, end, largest=largest) == pytest.approx(expected, nan_ok=True, rel=0)
    deviations = [np.std(inside) if len(inside) else math.nan for inside in seen]
    assert find_deviations(values, begin, end) == pytest.approx(deviations, nan_ok=True)


@given(transactions, verdicts, st.integers(1, 9), st.integers(0, 4), st.integers(0, 5))
def test_counts_of_known_labels_equal_the_reference(
    drawn: list, labeled: list, length: int, shift: int, delay: int
) -> None:
    rows, timeline, places = build([(entity, time, min(amount, 1e9)) for entity, time, amount in drawn])
    labels, known = add_labels(rows, timeline, labeled, delay)
    values = np.array([row.amount for row in rows])[timeline.order]
    for wanted in (True, False, None):
        counted = known.count(places, length * SECOND, shift * SECOND, fraud=wanted)
        expected = [
            [
                row.amount
                for row, fraud in known_before(rows, labels, query, length * SECOND, shift * SECOND, delay * SECOND)
                if wanted in (None, fraud)
            ]
            for query in rows
        ]
        assert counted.tolist() == [len(inside) for inside in expected]
        if wanted is None or shift:
            continue
        means = known.mean(places, length * SECOND, values, fraud=wanted, prior=50.0, weight=2.0)
        reference = [(math.fsum(inside) + 100) / (len(inside) + 2) for inside in expected]
        assert means == pytest.approx(reference, rel=1e-15)


@given(transactions, verdicts, st.integers(1, 9), st.integers(0, 5), st.integers(1, 4))
def test_the_newest_known_labels_equal_the_reference(
    drawn: list, labeled: list, length: int, delay: int, number: int
) -> None:
    rows, timeline, places = build(drawn)
    labels, known = add_labels(rows, timeline, labeled, delay)
    before = [known_before(rows, labels, query, length * SECOND, 0, delay * SECOND)[::-1] for query in rows]
    shares = [[fraud for _, fraud in newest[:number]] for newest in before]
    expected = [sum(frauds) / len(frauds) if frauds else math.nan for frauds in shares]
    assert known.share_of_last(places, number, length * SECOND) == pytest.approx(expected, nan_ok=True, rel=0)
    streaks = [next((n for n, (_, fraud) in enumerate(newest) if not fraud), len(newest)) for newest in before]
    assert known.count_streak(places, length * SECOND).tolist() == streaks
    ages = [
        next(((query.time - row.time) / SECOND for row, fraud in newest if fraud), math.nan)
        for query, newest in zip(rows, before, strict=True)
    ]
    assert known.find_age_of_newest_fraud(places, length * SECOND) == pytest.approx(ages, nan_ok=True, rel=0)


@given(transactions, st.data())
def test_a_window_has_the_same_bits_whatever_lies_outside_it(drawn: list, data: st.DataObject) -> None:
    rows, timeline, places = build(drawn)
    values = np.array([row.amount for row in rows])[timeline.order]
    begin, end = timeline.find_window(places, 4 * SECOND)
    query = data.draw(st.integers(0, len(rows) - 1))
    alone = ExactSums.build(values[begin[query] : end[query]])
    whole = ExactSums.build(values)
    size = np.array([end[query] - begin[query]])
    assert alone.mean(np.array([0]), size)[0].hex() == whole.mean(begin[[query]], end[[query]])[0].hex()


def test_pairs_of_the_reference_are_ordered() -> None:
    rows = [Row(0, 0, 5, 1.0), Row(1, 0, 5, 2.0), Row(2, 0, 4, 3.0)]
    assert all(a != b for a, b in pairwise(sorted(instant(rows, row) for row in rows)))
