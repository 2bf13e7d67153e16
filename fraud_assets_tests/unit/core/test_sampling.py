from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from fraud_assets.core.sampling import draws, sample_candidates, smallest_draws

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
    return smallest_draws(pa.Table.from_batches([sample_candidates(part, size, count, seed) for part in parts]), size)


def test_the_sample_depends_on_the_positions_and_the_seed_alone() -> None:
    whole = rows()
    shuffled = whole.take(pa.array(np.random.default_rng(0).permutation(ROWS)))
    once, again = sample([whole], 1_000), sample([shuffled.slice(n, 7_000) for n in range(0, ROWS, 7_000)], 1_000)
    assert once.num_rows == 1_000
    assert once.equals(again)
    assert not once.equals(sample([whole], 1_000, seed=2))


def test_draws_are_a_part_of_the_contract() -> None:
    """A model can be trained again on the same rows by a later release."""
    assert draws(rows(count=4), 42).tolist() == [
        5061543542275452749,
        3991745808196026645,
        5813234143625762776,
        7235609998958044089,
    ]


@pytest.mark.parametrize(("other", "shared"), [(rows(topic="other"), 0), (rows(partitions=1), ROWS // 4)])
def test_a_draw_belongs_to_one_position(other: pa.RecordBatch, shared: int) -> None:
    assert len(np.unique(draws(rows(), 1))) == ROWS
    assert len(np.intersect1d(draws(rows(), 1), draws(other, 1))) == shared


def test_every_part_of_the_stream_has_its_share() -> None:
    chosen = sample([rows()], 10_000)
    by_partition = np.bincount(chosen["partition"].to_numpy())
    by_time = np.histogram(chosen["offset"].to_numpy(), bins=10, range=(0, ROWS // 4))[0]
    # Four standard deviations of a share of a fourth and of a tenth.
    assert (abs(by_partition - 2_500) < 175).all()
    assert (abs(by_time - 1_000) < 120).all()


def test_a_small_window_is_taken_whole() -> None:
    assert sample([rows(count=300)], 299).num_rows == 299
    assert sample([rows(count=300)], 1_000).num_rows == 300
