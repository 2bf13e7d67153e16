"""What a dropped file holds, as batches of messages.

A file gives one message body per row. JSON lines are bodies already; a row of a CSV or Parquet file becomes a JSON
object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from fraud_assets.core.schema import MESSAGES
from fraud_assets.lake.positions import SourcePartition
from fraud_assets.settings import Settings


class UnusableFile(Exception):
    """A file cannot be landed; the message says why, `plain` says it without quoting the file."""

    def __init__(self, reason: str, plain: str = "") -> None:
        super().__init__(reason)
        self.plain = plain or reason


@dataclass(frozen=True)
class Contents:
    """A file that was read to its end: how to read it again, and what it holds."""

    chunks: Callable[[], Iterator[tuple[pa.Array, pa.Array]]]
    rows: int
    last: int
    has_labels: bool
    has_transactions: bool


def batches(contents: Contents, stream: SourcePartition, known: int, settings: Settings) -> Iterator[pa.Table]:
    """The rows beyond `known` as messages of the stream, in landing batches."""
    waiting: list[pa.Table] = []
    rows = size = 0
    for offsets, values in contents.chunks():
        if len(offsets) == 0 or offsets[-1].as_py() <= known:
            continue
        count = len(offsets)
        chunk = pa.table(
            {
                "topic": pa.repeat(pa.scalar(stream.topic), count),
                "topic_id": pa.repeat(pa.scalar(stream.topic_id), count),
                "partition": pa.repeat(pa.scalar(stream.partition, pa.int32()), count),
                "offset": offsets,
                **{name: pa.nulls(count, MESSAGES.field(name).type) for name in ("timestamp", "key", "headers")},
                "value": values,
            }
        ).select(MESSAGES.names)
        waiting.append(chunk.cast(MESSAGES))
        rows, size = rows + count, size + values.nbytes
        if rows >= settings.land_batch_rows or size >= settings.land_batch_bytes:
            yield pa.concat_tables(waiting)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield pa.concat_tables(waiting)


def chunk_rows(settings: Settings) -> int:
    """Rows that are converted at a time: small against a landing batch where rows are large."""
    return max(1, min(settings.land_batch_rows, settings.land_batch_bytes // 1_000))
