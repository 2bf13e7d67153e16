from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud_assets.lake.positions import SourcePartition, select_between

STREAMS = [
    SourcePartition("transactions", "life", 0),
    SourcePartition("transactions", "life", 1),
    SourcePartition("transactions", "other", 0),
]
positions = st.tuples(st.sampled_from(STREAMS), st.integers(0, 9))
bounds = st.dictionaries(st.sampled_from(STREAMS), st.tuples(st.integers(-1, 9), st.integers(-1, 9)))


@pytest.mark.parametrize("kind", [pa.Table, pa.RecordBatch])
@given(st.lists(positions), bounds)
def test_within_gives_what_lies_in_the_bounds_of_its_stream(kind, places, spans) -> None:
    columns = [*zip(*((*stream, offset) for stream, offset in places), strict=True)] or [[], [], [], []]
    types = (pa.string(), pa.string(), pa.int32(), pa.int64())
    arrays = [pa.array(values, type_) for values, type_ in zip(columns, types, strict=True)]
    rows = kind.from_arrays(arrays, names=["topic", "topic_id", "partition", "offset"])
    found = select_between(rows, {s: low for s, (low, _) in spans.items()}, {s: high for s, (_, high) in spans.items()})
    assert isinstance(found, kind)
    expected = [(s, n) for s, n in places if s in spans and spans[s][0] < n <= spans[s][1]]
    assert [
        (SourcePartition(r["topic"], r["topic_id"], r["partition"]), r["offset"]) for r in found.to_pylist()
    ] == expected
