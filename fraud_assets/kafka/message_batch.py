"""Converts Kafka messages to Arrow batches of bounded size."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import methodcaller
from time import monotonic
from typing import TYPE_CHECKING

import pyarrow as pa

from fraud_assets.core.schema import MESSAGES

if TYPE_CHECKING:
    from confluent_kafka import Message

_CALL_ROWS = 10_000
_FIRST_CALL_ROWS = 100
_LIKELY_BYTES = 10_000
"""Assumed size of a message until the first messages are known."""
_MILLISECONDS = pa.timestamp("ms", "UTC")
LATEST = 253_402_300_799_999
"""Latest time of a message that is kept, in milliseconds since 1970: the end of the year 9999."""
# The client can return a value and leave an exception set. After a plain call, once the interpreter has specialized it,
# that exception surfaces at an unrelated place.
_call_headers = methodcaller("headers")
_UNREADABLE_HEADERS = [("fraud_assets.unreadable_headers", None)]
"""Replaces headers that the client cannot decode."""


@dataclass
class Batch:
    """Collects messages of one topic until there are enough for a commit.

    Args:
        topic: Name of the topic.
        topic_id: Id of the topic.
        max_rows: A batch never has more rows.
        max_bytes: Limit of keys and bodies; a batch exceeds it only slightly.
    """

    topic: str
    topic_id: str
    max_rows: int
    max_bytes: int
    rows: int = 0
    bytes: int = 0
    oldest: float | None = None
    """Earliest time of a message in the batch, in seconds since 1970."""
    _chunks: list[pa.Table] = field(default_factory=list)
    _mean_bytes: int = 1
    _last_call: int = 0
    _age_start: float = 0.0

    @property
    def is_full(self) -> bool:
        """Whether the batch has reached one of its limits."""
        return self.rows >= self.max_rows or self.bytes >= self.max_bytes

    @property
    def age(self) -> float:
        """Seconds since the first message; for an empty batch, since the last `take` or `clear`."""
        return monotonic() - self._age_start

    @property
    def call_rows(self) -> int:
        """Number of messages to request next: as many as fit, according to the mean size of the last messages."""
        if not self._last_call:
            return max(1, min(_FIRST_CALL_ROWS, self.max_bytes // _LIKELY_BYTES, self.max_rows))
        fit = (self.max_bytes - self.bytes) // self._mean_bytes
        return max(1, min(_CALL_ROWS, fit, self._last_call * 4, self.max_rows - self.rows))

    def add(self, messages: Sequence[Message]) -> None:
        """Adds messages in the order of their delivery."""
        if not messages:
            return
        if not self.rows:
            self._age_start = monotonic()
        chunk = _as_table(self.topic, self.topic_id, messages)
        size = chunk["key"].nbytes + chunk["value"].nbytes
        self._chunks.append(chunk)
        self.rows += chunk.num_rows
        self.bytes += size
        self._mean_bytes = max(size // chunk.num_rows, 1)
        self._last_call = min(_CALL_ROWS, max(len(messages), self._last_call))
        kind, time = messages[0].timestamp()
        if kind:
            self.oldest = min(time / 1000, self.oldest or time / 1000)

    def take(self) -> pa.Table:
        """Returns the collected messages with the schema `MESSAGES` and empties the batch."""
        table = pa.concat_tables(self._chunks) if self._chunks else MESSAGES.empty_table()
        self.clear()
        return table

    def clear(self) -> None:
        """Drops the collected messages."""
        self._chunks, self.rows, self.bytes, self.oldest, self._age_start = [], 0, 0, None, monotonic()


def _as_table(topic: str, topic_id: str, messages: Sequence[Message]) -> pa.Table:
    count = len(messages)
    times = [message.timestamp() for message in messages]
    columns = [
        pa.repeat(pa.scalar(topic, pa.string()), count),
        pa.repeat(pa.scalar(topic_id, pa.string()), count),
        pa.array([message.partition() for message in messages], pa.int32()),
        pa.array([message.offset() for message in messages], pa.int64()),
        # Kind 0 means that the message carries no time. A time after the year 9999 counts as missing too: a producer
        # may have sent nanoseconds, and neither Python nor 64 bits of microseconds can hold it.
        pa.array([time if kind and 0 <= time <= LATEST else None for kind, time in times], _MILLISECONDS).cast(
            MESSAGES.field("timestamp").type
        ),
        pa.array([message.key() for message in messages], pa.binary()),
        pa.array([message.value() for message in messages], pa.binary()),
        _headers_column(messages),
    ]
    return pa.Table.from_arrays(columns, schema=MESSAGES)


def _headers_column(messages: Collection[Message]) -> pa.Array:
    kind = MESSAGES.field("headers").type
    found = [_headers_of(message) for message in messages]
    if not any(found):
        return pa.nulls(len(found), kind)
    rows: list[list[Mapping[str, object]] | None] = [
        None if not pairs else [{"key": k, "value": v} for k, v in pairs] for pairs in found
    ]
    return pa.array(rows, kind)


def _headers_of(message: Message) -> Sequence[tuple[str, bytes | None]]:
    try:
        return _call_headers(message) or ()
    # The client raises these errors for a header name that is not UTF-8. A second call would return a tuple with a NULL
    # in it, so the client must not be called again.
    except (SystemError, UnicodeDecodeError):
        return _UNREADABLE_HEADERS
