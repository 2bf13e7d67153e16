"""The training sample: which rows it holds depends on their source positions and a seed, and on nothing else.

Each row draws a number by hashing its position, and the rows with the smallest numbers are the sample: the same
ones whatever the engine, the files and their order.
"""

from __future__ import annotations

import math
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from fraud_assets.core.schema import POSITION_COLUMNS

DRAW = pa.field("draw", pa.int64(), nullable=False)
_END = 2**63


def draw_numbers(rows: pa.RecordBatch, seed: int) -> np.ndarray:
    """A number for each row (with POSITION_COLUMNS), uniform in [0, 2^63), by its source position and `seed`."""
    numbers = np.full(rows.num_rows, seed, np.uint64)
    for name in POSITION_COLUMNS:
        numbers = _mixed(numbers + _integers(rows[name]))
    # Spark has no unsigned integers.
    return (numbers >> np.uint64(1)).astype(np.int64)


def select_candidates(rows: pa.RecordBatch, size: int, of: int, seed: int) -> pa.RecordBatch:
    """The rows that can be among the `size` smallest draws of a window of `of` rows, with their DRAW."""
    # Six standard deviations more than wanted: too few are left once in a billion samples.
    wanted = size + 6 * math.sqrt(size)
    numbers = draw_numbers(rows, seed)
    chosen = rows.append_column(DRAW, pa.array(numbers))
    return chosen if wanted >= of else chosen.filter(pa.array(numbers < int(wanted / of * _END)))


def select_sample(chosen: pa.Table, size: int) -> pa.Table:
    """The sample: those of a window's `select_candidates` with the `size` smallest draws, without DRAW."""
    order = [(DRAW.name, "ascending"), *((name, "ascending") for name in POSITION_COLUMNS)]
    return chosen.sort_by(order).slice(0, size).drop_columns([DRAW.name])


def _integers(values: pa.Array) -> np.ndarray:
    """Integers as they are, texts by a hash of each that is the same in every process."""
    if not pa.types.is_string(values.type):
        return values.to_numpy(zero_copy_only=False).astype(np.uint64)
    coded = values.dictionary_encode()
    hashes = [int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") for text in
              coded.dictionary.to_pylist()]  # fmt: skip
    return np.array(hashes, np.uint64)[coded.indices.to_numpy()]


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64's output function, a bijection that spreads neighbours over all of uint64.

    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators" (2014), with Stafford's constants.
    """
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
