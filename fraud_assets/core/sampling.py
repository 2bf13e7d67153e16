"""Draws the training sample, which depends only on the source positions of the rows and on a seed.

Each row gets a pseudorandom number from a hash of its position, and the rows with the smallest numbers are the sample.
So the sample does not depend on the engine, the files or their order.
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
    """Draws a pseudorandom number for each row from its source position and the seed.

    Args:
        rows: Rows with POSITION_COLUMNS.
        seed: Random seed.

    Returns:
        Numbers uniform in [0, 2^63), int64, shape (rows,).
    """
    numbers = np.full(rows.num_rows, seed, np.uint64)
    for name in POSITION_COLUMNS:
        numbers = _mix(numbers + _to_integers(rows[name]))
    # Spark has no unsigned integers.
    return (numbers >> np.uint64(1)).astype(np.int64)


def select_candidates(rows: pa.RecordBatch, size: int, of: int, seed: int) -> pa.RecordBatch:
    """Adds DRAW, and selects the rows that can be among the `size` smallest numbers of a window of `of` rows."""
    # The margin is six standard deviations: one sample in a billion gets too few rows.
    wanted = size + 6 * math.sqrt(size)
    numbers = draw_numbers(rows, seed)
    chosen = rows.append_column(DRAW, pa.array(numbers))
    return chosen if wanted >= of else chosen.filter(pa.array(numbers < int(wanted / of * _END)))


def select_sample(chosen: pa.Table, size: int) -> pa.Table:
    """Selects the rows with the `size` smallest numbers among all candidates of a window, and removes DRAW."""
    order = [(DRAW.name, "ascending"), *((name, "ascending") for name in POSITION_COLUMNS)]
    return chosen.sort_by(order).slice(0, size).drop_columns([DRAW.name])


def _to_integers(values: pa.Array) -> np.ndarray:
    """Returns integers unchanged, and a hash of each text that is the same in every process."""
    if not pa.types.is_string(values.type):
        return values.to_numpy(zero_copy_only=False).astype(np.uint64)
    coded = values.dictionary_encode()
    hashes = [int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") for text in
              coded.dictionary.to_pylist()]  # fmt: skip
    return np.array(hashes, np.uint64)[coded.indices.to_numpy()]


def _mix(numbers: np.ndarray) -> np.ndarray:
    """Applies SplitMix64's output function, a bijection that spreads adjacent numbers over all of uint64.

    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators" (2014), with Stafford's constants.
    """
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
