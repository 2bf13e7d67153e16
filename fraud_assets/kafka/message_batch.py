"""Kafka messages to Arrow batches of bounded size."""

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
_MILLISECONDS = pa.timestamp("ms", "UTC")
LATEST = 253_402_300_799_999
"""Latest time of a message that is kept, in milliseconds: the end of the year 9999."""
# The client returns and leaves an error behind; a plain call, once it is a hot one, lets that surface anywhere later.
_call_headers = methodcaller("headers")
_UNREADABLE_HEADERS = [("fraud_assets.unreadable_headers", None)]
"""Stands for headers that the client cannot give."""


@dataclass
class Batch:
    """Messages of one life of a topic that are gathered until they are enough for a commit.

    Args:
        topic: their topic.
        topic_id: their life of the topic.
        most_rows: a batch is never larger.
        most_bytes: of keys and bodies; a batch is hardly larger.
    """

    topic: str
    topic_id: str
    most_rows: int
    most_bytes: int
    rows: int = 0
    bytes: int = 0
    oldest: float | None = None
    """Earliest time that a message of the batch carries, in seconds since 1970."""
    _chunks: list[pa.Table] = field(default_factory=list)
    _mean_bytes: int = 1
    _last_call: int = 0
    _since: float = 0.0

    @property
    def is_full(self) -> bool:
        """Whether it holds as much as a batch may."""
        return self.rows >= self.most_rows or self.bytes >= self.most_bytes

    @property
    def age(self) -> float:
        """Seconds since the first message came or, in an empty batch, since the last was taken."""
        return monotonic() - self._since

    @property
    def call_rows(self) -> int:
        """How many messages to ask for next: never much more than still fit, judged by the size of the last ones."""
        if not self._last_call:
            return max(1, min(_FIRST_CALL_ROWS, self.most_bytes // _LIKELY_BYTES, self.most_rows))
        fit = (self.most_bytes - self.bytes) // self._mean_bytes
        return max(1, min(_CALL_ROWS, fit, self._last_call * 4, self.most_rows - self.rows))

    def add(self, messages: Sequence[Message]) -> None:
        """Adds messages, in the order in which they came."""
        if not messages:
            return
        if not self.rows:
            self._since = monotonic()
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
        """What was gathered, as `MESSAGES`; the batch is empty then."""
        table = pa.concat_tables(self._chunks) if self._chunks else MESSAGES.empty_table()
        self.clear()
        return table

    def clear(self) -> None:
        """Forgets what was gathered."""
        self._chunks, self.rows, self.bytes, self.oldest, self._since = [], 0, 0, None, monotonic()


def _as_table(topic: str, topic_id: str, messages: Sequence[Message]) -> pa.Table:
    count = len(messages)
    times = [message.timestamp() for message in messages]
    columns = [
        pa.repeat(pa.scalar(topic, pa.string()), count),
        pa.repeat(pa.scalar(topic_id, pa.string()), count),
        pa.array([message.partition() for message in messages], pa.int32()),
        pa.array([message.offset() for message in messages], pa.int64()),
        # Kind 0 means that the message carries no time; one beyond the year 9999 is none (a producer may put in
        # nanoseconds), and neither Python nor 64 bits of microseconds hold it.
        pa.array([time if kind and 0 <= time <= LATEST else None for kind, time in times], _MILLISECONDS).cast(
            MESSAGES.field("timestamp").type
        ),
        pa.array([message.key() for message in messages], pa.binary()),
        pa.array([message.value() for message in messages], pa.binary()),
        _headers(messages),
    ]
    return pa.Table.from_arrays(columns, schema=MESSAGES)


def _headers(messages: Collection[Message]) -> pa.Array:
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
    # What the client raises of a header's name that is not UTF-8. It must not be asked again: it would give a tuple
    # with a hole in it.
    except (SystemError, UnicodeDecodeError):
        return _UNREADABLE_HEADERS
