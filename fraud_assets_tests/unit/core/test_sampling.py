from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from fraud_assets.core.sampling import draw_numbers, select_candidates, select_sample

ROWS = 50_000


def rows(partitions: int = 4, topic: str = "transactions", count: int = ROWS) -> pa.RecordBatch:
    numbers = np.arange(count)
    return pa.RecordBatch.from_pydict(
        {
            "topic": pa.array([topic] * count),
            "topic_id": pa.array(["life"] * count),
            "partition": pa.array(numbers % partitions, pa.int32()),
            "offset": pa.array(numbers // partitions, pa.int64()),
        }
    )


def sample(parts: list[pa.RecordBatch], size: int, seed: int = 1) -> pa.Table:
    count = sum(part.num_rows for part in parts)
    return select_sample(pa.Table.from_batches([select_candidates(part, size, count, seed) for part in parts]), size)


def test_the_sample_depends_only_on_the_positions_and_the_seed() -> None:
    ordered = rows()
    shuffled = ordered.take(pa.array(np.random.default_rng(0).permutation(ROWS)))
    from_ordered = sample([ordered], 1_000)
    from_shuffled = sample([shuffled.slice(first, 7_000) for first in range(0, ROWS, 7_000)], 1_000)
    assert from_ordered.num_rows == 1_000
    assert from_ordered.equals(from_shuffled)
    assert not from_ordered.equals(sample([ordered], 1_000, seed=2))


def test_draws_do_not_change_between_releases() -> None:
    """A later release can train a model on the same rows again."""
    assert draw_numbers(rows(count=4), 42).tolist() == [
        5061543542275452749,
        3991745808196026645,
        5813234143625762776,
        7235609998958044089,
    ]


@pytest.mark.parametrize(("other", "shared"), [(rows(topic="other"), 0), (rows(partitions=1), ROWS // 4)])
def test_each_position_has_a_distinct_draw(other: pa.RecordBatch, shared: int) -> None:
    assert len(np.unique(draw_numbers(rows(), 1))) == ROWS
    assert len(np.intersect1d(draw_numbers(rows(), 1), draw_numbers(other, 1))) == shared


def test_every_partition_and_period_is_sampled_in_proportion() -> None:
    chosen = sample([rows()], 10_000)
    by_partition = np.bincount(chosen["partition"].to_numpy())
    by_time = np.histogram(chosen["offset"].to_numpy(), bins=10, range=(0, ROWS // 4))[0]
    # The limits are four standard deviations of a share of a quarter and of a tenth.
    assert (abs(by_partition - 2_500) < 175).all()
    assert (abs(by_time - 1_000) < 120).all()


def test_a_window_smaller_than_the_sample_is_used_completely() -> None:
    assert sample([rows(count=300)], 299).num_rows == 299
    assert sample([rows(count=300)], 1_000).num_rows == 300
