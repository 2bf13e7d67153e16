"""Aggregates the values of ranges of a timeline. The result of a range does not depend on the rows outside it.

A plain difference of prefix sums of floats does: its rounding errors come from all earlier rows. Therefore the prefix
sums are integers. A value is stored as a whole number of ten-thousandths, which is exact for amounts of money, and a
remainder in units of 2**-52.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_SCALE = 10_000
_REMAINDER = 2.0**52
_LARGEST = 1e9
"""Larger values are summed one by one: the integers of a window of them could overflow."""


@dataclass(frozen=True)
class ExactSums:
    """Sums over ranges of places.

    Attributes:
        values: float64, shape (places,); NaN where a place has no value.
        counts: Number of values among the first n places: int64, shape (places + 1,).
        units: Sums of ten-thousandths of the first n places: int64, shape (places + 1,).
        remainders: Sums of the remainders: int64, shape (places + 1,).
        large: Number of values that are not part of `units`: int64, shape (places + 1,).
    """

    values: np.ndarray
    counts: np.ndarray
    units: np.ndarray
    remainders: np.ndarray
    large: np.ndarray

    @classmethod
    def build(cls, values: np.ndarray) -> ExactSums:
        """Computes the prefix sums of float64 values, shape (places,); NaN is no value."""
        present = ~np.isnan(values)
        large = present & (np.abs(values) > _LARGEST)
        units, remainders = split_exactly(np.where(present & ~large, values, 0.0))
        return cls(values, _accumulate(present), _accumulate(units), _accumulate(remainders), _accumulate(large))

    def count(self, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Counts the values in [begin, end): int64, shape (queries,)."""
        return self.counts[end] - self.counts[begin]

    def sum(self, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Sums the values in [begin, end): float64, shape (queries,)."""
        sums = join_exactly(self.units[end] - self.units[begin], self.remainders[end] - self.remainders[begin])
        for query in np.flatnonzero(self.large[end] > self.large[begin]):
            inside = self.values[begin[query] : end[query]]
            sums[query] = math.fsum(inside[~np.isnan(inside)])
        return sums

    def mean(self, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Averages the values in [begin, end): float64, shape (queries,); NaN for a range without values."""
        return divide(self.sum(begin, end), self.count(begin, end))


def split_exactly(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits float64 values into whole ten-thousandths and remainders of 2**-52: two int64 arrays."""
    units = np.rint(values * _SCALE)
    remainders = np.rint((values - units / _SCALE) * _REMAINDER)
    return units.astype(np.int64), remainders.astype(np.int64)


def join_exactly(units: np.ndarray, remainders: np.ndarray) -> np.ndarray:
    """Converts sums of `split_exactly` to float64."""
    return units / _SCALE + remainders / _REMAINDER


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides element by element: float64; NaN where the denominator is 0."""
    result = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result


def find_extremes(values: np.ndarray, begin: np.ndarray, end: np.ndarray, *, largest: bool) -> np.ndarray:
    """Finds the largest or smallest value of each range [begin, end).

    Two overlapping blocks of 2**n places cover a range. Only the blocks of one length are in memory at a time.

    Args:
        values: float64, shape (places,); NaN is no value.
        begin: int64, shape (queries,).
        end: int64, shape (queries,).
        largest: Whether to find the largest value instead of the smallest.

    Returns:
        float64, shape (queries,); NaN for a range without values.
    """
    choose = np.fmax if largest else np.fmin
    result = np.full(len(begin), np.nan)
    length = end - begin
    level = np.frexp(np.maximum(length, 1))[1] - 1
    blocks = values
    for step in range(int(level.max(initial=0)) + 1):
        at = np.flatnonzero((level == step) & (length > 0))
        result[at] = choose(blocks[begin[at]], blocks[end[at] - (1 << step)])
        if len(blocks) > 1 << step:
            blocks = choose(blocks[: -(1 << step)], blocks[1 << step :])
    return result


def count_distinct(values: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Counts the different values of each range [begin, end).

    A value counts at its first place in the range, where its previous place is before the range. The places of [0, end)
    are split into sorted blocks of 2**n, one for each bit of `end`.

    Args:
        values: Numbers of the values, int64, shape (places,); below 0 is no value. Equal values of different entities
            need different numbers.
        begin: int64, shape (queries,).
        end: int64, shape (queries,).

    Returns:
        int64, shape (queries,).
    """
    size = len(values)
    place = np.arange(size)
    order = np.lexsort((place, values))
    previous = np.full(size, -1)
    same = values[order][1:] == values[order][:-1]
    previous[order[1:][same]] = order[:-1][same]
    # A place without a value never counts.
    previous = np.where(values < 0, size, previous)
    result = -_accumulate(values >= 0)[begin]
    for bit in range(int(end.max(initial=0)).bit_length()):
        width = 1 << bit
        keys = np.sort((place // width) * (size + 2) + previous + 1, kind="stable")
        at = np.flatnonzero(end & width)
        # The block that ends where the higher bits of `end` and this bit end.
        block = (end[at] >> bit) - 1
        lowest = block * (size + 2)
        result[at] += np.searchsorted(keys, lowest + begin[at], "right") - np.searchsorted(keys, lowest, "left")
    return result


def find_deviations(values: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Computes the standard deviation (of the population) of each range [begin, end).

    Args:
        values: float64, shape (places,); NaN is no value.
        begin: int64, shape (queries,).
        end: int64, shape (queries,).

    Returns:
        float64, shape (queries,); NaN for a range without values.
    """
    result = np.full(len(begin), np.nan)
    counts = _accumulate(~np.isnan(values))
    number = counts[end] - counts[begin]
    result[number == 1] = 0.0
    # Ranges of the same length are computed together: two passes over their values, so that nothing cancels.
    wanted = np.flatnonzero(number > 1)
    for length in np.unique(end[wanted] - begin[wanted]):
        for at in _split(wanted[(end - begin)[wanted] == length], length):
            inside = values[begin[at][:, None] + np.arange(length)]
            result[at] = np.nanstd(inside, axis=1)
    return result


def _split(at: np.ndarray, length: int, cells: int = 4_000_000) -> list[np.ndarray]:
    """Splits queries so that their ranges of a length have at most `cells` places, or one range."""
    return np.array_split(at, max(1, min(len(at), -(-len(at) * int(length) // cells))))


def _accumulate(values: np.ndarray) -> np.ndarray:
    """Returns the sums of the first 0, 1, … values: int64. Sums that overflow still have exact differences."""
    return np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
