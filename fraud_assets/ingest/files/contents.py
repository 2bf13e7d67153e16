"""The contents of a dropped file, as batches of messages.

Each row of a file becomes one message body. A line of a JSON lines file already is a body. A row of a CSV or Parquet
file is converted to a JSON object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from fraud_assets.core.schema import MESSAGES
from fraud_assets.lake.positions import SourcePartition
from fraud_assets.settings import Settings


class UnusableFileError(Exception):
    """A file cannot be landed. The message gives the reason.

    Attributes:
        safe_reason: the reason without any text from the file.
    """

    def __init__(self, reason: str, safe_reason: str = "") -> None:
        super().__init__(reason)
        self.safe_reason = safe_reason or reason


@dataclass(frozen=True)
class Contents:
    """The contents of a file that was read completely once.

    Attributes:
        chunks: reads the file again and yields row numbers (int64) and message bodies (binary).
        rows: number of rows.
        last: number of the last row; counting starts at 0 and includes blank lines.
        has_labels: whether a row can have a label.
        has_transactions: whether the rows are transactions; false for a file of labels only.
    """

    chunks: Callable[[], Iterator[tuple[pa.Array, pa.Array]]]
    rows: int
    last: int
    has_labels: bool
    has_transactions: bool


def read_batches(contents: Contents, partition: SourcePartition, known: int, settings: Settings) -> Iterator[pa.Table]:
    """Yields the rows after row number `known` as messages of the source partition, in landing batches."""
    waiting: list[pa.Table] = []
    rows = size = 0
    for offsets, values in contents.chunks():
        if len(offsets) == 0 or offsets[-1].as_py() <= known:
            continue
        count = len(offsets)
        chunk = pa.table(
            {
                "topic": pa.repeat(pa.scalar(partition.topic), count),
                "topic_id": pa.repeat(pa.scalar(partition.topic_id), count),
                "partition": pa.repeat(pa.scalar(partition.partition, pa.int32()), count),
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


def count_chunk_rows(settings: Settings) -> int:
    """Returns the number of rows to convert at a time, which is small compared with a landing batch of large rows."""
    return max(1, min(settings.land_batch_rows, settings.land_batch_bytes // 1_000))
