"""Orders the transactions of each entity in time, and finds ranges of them with one binary search.

An instant is a time and, for transactions of the same entity at the same time, their order of landing. The instant
(t, n) is at or before (u, m) if t < u, or if t = u and n <= m. All windows compare instants, so that transactions of
the same time have one defined order however they are split into batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

_LARGEST_KEY = 2**62


@dataclass(frozen=True)
class Timeline:
    """Transactions sorted by entity, time and landing. All arrays are int64 with shape (transactions,).

    A *place* is an index into these arrays.

    Attributes:
        order: Row number in the input of the transaction at each place.
        entity: Number of the entity.
        time: Time in microseconds.
        rank: Number of earlier transactions of the same entity and time.
    """

    order: np.ndarray
    entity: np.ndarray
    time: np.ndarray
    rank: np.ndarray

    @classmethod
    def build(cls, entity: np.ndarray, time: np.ndarray, landing: np.ndarray) -> Timeline:
        """Sorts transactions.

        Args:
            entity: Number of the entity of each row, from 0; int64, shape (rows,).
            time: Time of each row in microseconds; int64, shape (rows,).
            landing: A number per row that increases in landing order; int64, shape (rows,).
        """
        order = np.lexsort((landing, time, entity))
        entity, time = entity[order], time[order]
        place = np.arange(len(order))
        begins = np.ones(len(order), bool)
        begins[1:] = (entity[1:] != entity[:-1]) | (time[1:] != time[:-1])
        rank = place - np.maximum.accumulate(np.where(begins, place, 0)) if len(order) else place
        return cls(order, entity, time, rank)

    @cached_property
    def places(self) -> np.ndarray:
        """Place of each input row: int64, shape (rows,)."""
        places = np.empty(len(self.order), np.int64)
        places[self.order] = np.arange(len(self.order))
        return places

    @cached_property
    def first(self) -> np.ndarray:
        """Place of the first transaction of the entity, for each place."""
        return np.searchsorted(self.entity, self.entity, "left")

    @cached_property
    def _times(self) -> np.ndarray:
        return np.unique(self.time)

    @cached_property
    def _ranks(self) -> int:
        # One more for the instant before the first transaction, one for the instant after the last one.
        return int(self.rank.max(initial=0)) + 3

    @cached_property
    def keys(self) -> np.ndarray:
        """The instants of the transactions as sorted numbers that order by entity, time and landing."""
        return self.make_keys(self.entity, self.time, self.rank)

    def make_keys(self, entity: np.ndarray, time: np.ndarray, rank: np.ndarray) -> np.ndarray:
        """Converts instants to numbers that are comparable with `keys`.

        A time that no transaction has is placed before the transactions of the next time.

        Args:
            entity: Number of the entity; int64, shape (instants,).
            time: Time in microseconds; int64, shape (instants,).
            rank: Rank among the transactions of that time; -1 comes before all of them.

        Returns:
            int64, shape (instants,).

        Raises:
            OverflowError: There are too many entities and times. Evaluate fewer entities at once.
        """
        times = self._times
        if (int(self.entity.max(initial=0)) + 1) * (len(times) + 1) * self._ranks >= _LARGEST_KEY:
            raise OverflowError("too many entities and times for one timeline")
        found = np.searchsorted(times, time, "left")
        exact = np.zeros(len(time), bool)
        inside = found < len(times)
        exact[inside] = times[found[inside]] == time[inside]
        return (entity * (len(times) + 1) + found) * self._ranks + np.where(exact, rank + 1, 0)

    def find_ends(self, at: np.ndarray, shift: int) -> np.ndarray:
        """Finds the end of the transactions that are at least `shift` microseconds older than each query.

        Args:
            at: Places of the queries; int64, shape (queries,).
            shift: Age in microseconds. With 0, the transaction of the query is the last one.

        Returns:
            For each query, the place after the last transaction of its entity whose instant, moved by `shift`, is at or
            before the query; the first place of the entity if there is none. int64, shape (queries,).
        """
        if shift == 0:
            return at + 1
        keys = self.make_keys(self.entity[at], self.time[at] - shift, self.rank[at])
        return np.maximum(np.searchsorted(self.keys, keys, "right"), self.first[at])

    def find_window(
        self, at: np.ndarray, length: int, delay: int = 0, *, with_itself: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the transactions of each query's entity in (t - delay - length, t - delay].

        Args:
            at: Places of the queries; int64, shape (queries,).
            length: Length of the window in microseconds, above 0.
            delay: Age of the end of the window in microseconds.
            with_itself: Whether a window without delay contains the transaction of the query.

        Returns:
            Places of the first transaction and after the last one: two int64 arrays, shape (queries,).
        """
        end = self.find_ends(at, delay)
        if delay == 0 and not with_itself:
            end = end - 1
        return np.minimum(self.find_ends(at, delay + length), end), end


@dataclass(frozen=True)
class EventCounter:
    """Numbers that change at instants: their sums up to an instant are exact.

    Attributes:
        keys: Sorted keys of the events, from `Timeline.make_keys`.
        totals: Sums of the first n changes: int64, shape (events + 1,).
    """

    keys: np.ndarray
    totals: np.ndarray

    @classmethod
    def build(cls, keys: np.ndarray, changes: np.ndarray) -> EventCounter:
        """Sorts events.

        Args:
            keys: int64, shape (events,).
            changes: int64, shape (events,).
        """
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], np.concatenate([[0], np.cumsum(changes[order])]))

    def sum_until(self, keys: np.ndarray, entity_keys: np.ndarray) -> np.ndarray:
        """Sums the changes of an entity up to each query: int64, shape (queries,).

        Args:
            keys: Keys of the queries.
            entity_keys: The smallest keys of the queries' entities.
        """
        upto = np.searchsorted(self.keys, keys, "right")
        before = np.searchsorted(self.keys, entity_keys, "left")
        return self.totals[upto] - self.totals[before]
