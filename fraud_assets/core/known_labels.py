"""What was known about the transactions of an entity at the time of a query: fraud, genuine, or nothing yet.

A label counts from the time at which it was known until a later label of the same transaction. A transaction without a
label counts as genuine once it is older than the feedback delay. The transaction of the query itself never counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fraud_assets.core.timeline import EventCounter, Timeline
from fraud_assets.core.window_values import divide, join_exactly, split_exactly


@dataclass(frozen=True)
class Labels:
    """Labels of transactions, sorted by place, time and landing. All arrays have shape (labels,).

    Attributes:
        place: Place of the transaction; int64.
        fraud: Whether the label says fraud; bool.
        time: Time in microseconds from which on the label was known; int64.
    """

    place: np.ndarray
    fraud: np.ndarray
    time: np.ndarray

    @classmethod
    def build(
        cls, timeline: Timeline, row: np.ndarray, fraud: np.ndarray, time: np.ndarray, landing: np.ndarray
    ) -> Labels:
        """Sorts labels. Of two labels with the same time, the one that landed later counts.

        Args:
            timeline: The transactions.
            row: Input row of the labeled transaction; int64, shape (labels,).
            fraud: bool, shape (labels,).
            time: Time in microseconds from which on the label was known; int64, shape (labels,).
            landing: Increases in landing order; int64, shape (labels,).
        """
        place = timeline.places[row]
        order = np.lexsort((landing, time, place))
        place, fraud, time = place[order], fraud[order], time[order]
        last = np.ones(len(order), bool)
        last[:-1] = (place[1:] != place[:-1]) | (time[1:] != time[:-1])
        return cls(place[last], fraud[last], time[last])


@dataclass(frozen=True)
class KnownLabels:
    """Answers queries about known frauds and known genuine transactions.

    Attributes:
        timeline: The transactions.
        labels: Their labels.
        delay: Feedback delay in microseconds.
    """

    timeline: Timeline
    labels: Labels
    delay: int

    def count(self, at: np.ndarray, length: int, delay: int, *, fraud: bool | None) -> np.ndarray:
        """Counts the known transactions of each window: int64, shape (queries,).

        Args:
            at: Places of the queries.
            length: Length of the window in microseconds.
            delay: Age of the end of the window in microseconds.
            fraud: Whether to count frauds or genuine transactions; None counts both.
        """
        ones = np.ones(len(self.timeline.order), np.int64)
        return self._sum(at, length, delay, fraud, ones)

    def mean(
        self, at: np.ndarray, length: int, values: np.ndarray, *, fraud: bool, prior: float = 0.0, weight: float = 0.0
    ) -> np.ndarray:
        """Averages a value over the known transactions of each window, shrunk toward a prior.

        Args:
            at: Places of the queries.
            length: Length of the window in microseconds.
            values: Value of each place, at most 1e9; float64, shape (places,).
            fraud: Whether to average over frauds or over genuine transactions.
            prior: The value toward which the mean is shrunk.
            weight: Number of transactions with which the prior counts.

        Returns:
            float64, shape (queries,); NaN for a window without known transactions if `weight` is 0.
        """
        units, remainders = split_exactly(values)
        total = join_exactly(self._sum(at, length, 0, fraud, units), self._sum(at, length, 0, fraud, remainders))
        return divide(total + prior * weight, self.count(at, length, 0, fraud=fraud) + weight)

    def _sum(self, at: np.ndarray, length: int, delay: int, fraud: bool | None, values: np.ndarray) -> np.ndarray:
        """Sums integer values of places over the known transactions of each window: int64, shape (queries,)."""
        timeline = self.timeline
        total = np.zeros(len(at), np.int64)
        if fraud is not True:
            # First as if there were no labels. What the labels change follows.
            age = max(delay, self.delay)
            end = timeline.find_ends(at, age) if age else at
            begin = np.minimum(timeline.find_ends(at, delay + length), end)
            sums = np.concatenate([[0], np.cumsum(values)])
            total += sums[end] - sums[begin]
        keys, changes = self._find_changes(length, delay, fraud, values)
        lowest = timeline.make_keys(timeline.entity[at], np.full(len(at), -(2**62)), np.zeros(len(at), np.int64))
        return total + EventCounter.build(keys, changes).sum_until(timeline.keys[at], lowest)

    def _find_changes(
        self, length: int, delay: int, fraud: bool | None, values: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the keys and the changes that labels cause in the running sums of a window."""
        timeline, labels = self.timeline, self.labels
        entity, time, rank = (array[labels.place] for array in (timeline.entity, timeline.time, timeline.rank))
        # A window contains its transactions from `opens` on and before `closes`.
        opens = timeline.make_keys(entity, time + delay, rank) if delay else timeline.keys[labels.place] + 1
        closes = timeline.make_keys(entity, time + delay + length, rank)
        matures = timeline.make_keys(entity, time + self.delay, rank)
        known = timeline.make_keys(entity, labels.time, np.zeros(len(time), np.int64))
        is_first, is_last = self._edges
        revised = np.where(is_last, _NEVER, np.roll(known, -1))
        spans = []
        wanted = np.ones(len(time), bool) if fraud is None else labels.fraud == fraud
        spans.append((known[wanted], revised[wanted], labels.place[wanted], 1))
        if fraud is not True:
            # Before its first label, a transaction counts as genuine from the delay on: remove it after that label.
            spans.append((np.maximum(known, matures)[is_first], _NEVER, labels.place[is_first], -1))
        keys, changes = [], []
        for begin, end, place, sign in spans:
            index = np.searchsorted(labels.place, place, "left")
            start, stop = np.maximum(begin, opens[index]), np.minimum(end, closes[index])
            if sign < 0:
                start = np.maximum(start, matures[index])
            valid = start < stop
            keys += [start[valid], stop[valid]]
            changes += [sign * values[place[valid]], -sign * values[place[valid]]]
        return np.concatenate(keys), np.concatenate(changes)

    @cached_property
    def _edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Whether each label is the first, and the last, of its transaction."""
        place = self.labels.place
        first, last = np.ones(len(place), bool), np.ones(len(place), bool)
        first[1:] = last[:-1] = place[1:] != place[:-1]
        return first, last

    def share_of_last(self, at: np.ndarray, number: int, length: int) -> np.ndarray:
        """Computes the share of frauds among the newest known transactions.

        Args:
            at: Places of the queries.
            number: Number of transactions to look at; fewer if the window has fewer.
            length: Length of the window in microseconds.

        Returns:
            float64, shape (queries,); NaN for a window without known transactions.
        """
        frauds, known = np.zeros(len(at), np.int64), np.zeros(len(at), np.int64)
        for active, fraud, _ in self._walk(at, length, lambda: known < number):
            known[active] += 1
            frauds[active] += fraud
        return divide(frauds, known)

    def count_streak(self, at: np.ndarray, length: int) -> np.ndarray:
        """Counts the known frauds since the newest known genuine transaction: int64, shape (queries,)."""
        frauds, going = np.zeros(len(at), np.int64), np.ones(len(at), bool)
        for active, fraud, _ in self._walk(at, length, lambda: going):
            frauds[active] += fraud
            going[active] = fraud
        return frauds

    def find_age_of_newest_fraud(self, at: np.ndarray, length: int) -> np.ndarray:
        """Returns the age in seconds of the newest known fraud: float64, shape (queries,); NaN if there is none."""
        age, going = np.full(len(at), np.nan), np.ones(len(at), bool)
        for active, fraud, place in self._walk(at, length, lambda: going):
            found = active[fraud]
            age[found] = (self.timeline.time[at[found]] - self.timeline.time[place[fraud]]) / 1e6
            going[found] = False
        return age

    def _walk(
        self, at: np.ndarray, length: int, wants: Callable[[], np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Walks from each query to older known transactions of its window, all queries at the same time.

        Args:
            at: Places of the queries.
            length: Length of the window in microseconds.
            wants: Returns which queries continue; bool, shape (queries,). Called after each step.

        Yields:
            Numbers of the queries that found another known transaction, whether it is a fraud, and its place.
        """
        timeline = self.timeline
        begin = timeline.find_ends(at, length)
        mature = timeline.find_ends(at, self.delay)
        place = at - 1
        active = np.arange(len(at))
        while True:
            active = active[wants()[active]]
            young = place[active] >= mature[active]
            # Only a label makes a young transaction known: skip those without one.
            labeled = self._newest_labeled[np.maximum(place[active[young]], 0)]
            place[active[young]] = np.maximum(labeled, mature[active[young]] - 1)
            active = active[place[active] >= begin[active]]
            if not len(active):
                return
            known, fraud = self._look_up(place[active], timeline.time[at[active]], place[active] < mature[active])
            yield active[known], fraud[known], place[active[known]]
            place[active] -= 1

    @cached_property
    def _newest_labeled(self) -> np.ndarray:
        """For each place, the newest place up to it that has a label; -1 if there is none."""
        marked = np.full(len(self.timeline.order), -1)
        marked[self.labels.place] = self.labels.place
        return np.maximum.accumulate(marked)

    @cached_property
    def _label_keys(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct times of the labels, and a sorted key of each label by place and time."""
        times = np.unique(self.labels.time)
        return times, self.labels.place * (len(times) + 1) + np.searchsorted(times, self.labels.time)

    def _look_up(self, place: np.ndarray, time: np.ndarray, mature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns whether each transaction was known at a time, and whether as fraud: two bool arrays."""
        times, keys = self._label_keys
        begin = np.searchsorted(self.labels.place, place, "left")
        end = np.searchsorted(keys, place * (len(times) + 1) + np.searchsorted(times, time, "right"), "left")
        labeled = end > begin
        fraud = np.zeros(len(place), bool)
        fraud[labeled] = self.labels.fraud[end[labeled] - 1]
        return labeled | mature, fraud


_NEVER = np.int64(2**63 - 1)
