from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud_assets.lake.positions import SourcePartition, select_between

SOURCE_PARTITIONS = [
    SourcePartition("transactions", "topic-id", 0),
    SourcePartition("transactions", "topic-id", 1),
    SourcePartition("transactions", "other", 0),
]
positions = st.tuples(st.sampled_from(SOURCE_PARTITIONS), st.integers(0, 9))
bounds = st.dictionaries(st.sampled_from(SOURCE_PARTITIONS), st.tuples(st.integers(-1, 9), st.integers(-1, 9)))


@pytest.mark.parametrize("kind", [pa.Table, pa.RecordBatch])
@given(st.lists(positions), bounds)
def test_select_between_returns_the_rows_within_the_bounds_of_their_source_partition(kind, chosen, limits) -> None:
    columns = [*zip(*((*source_partition, offset) for source_partition, offset in chosen), strict=True)] or [
        [],
        [],
        [],
        [],
    ]
    types = (pa.string(), pa.string(), pa.int32(), pa.int64())
    arrays = [pa.array(values, type_) for values, type_ in zip(columns, types, strict=True)]
    rows = kind.from_arrays(arrays, names=["topic", "topic_id", "partition", "offset"])
    lows = {source_partition: low for source_partition, (low, _) in limits.items()}
    highs = {source_partition: high for source_partition, (_, high) in limits.items()}
    found = select_between(rows, lows, highs)
    assert isinstance(found, kind)
    expected = [
        (source_partition, offset)
        for source_partition, offset in chosen
        if source_partition in limits and limits[source_partition][0] < offset <= limits[source_partition][1]
    ]
    assert [
        (SourcePartition(row["topic"], row["topic_id"], row["partition"]), row["offset"]) for row in found.to_pylist()
    ] == expected
