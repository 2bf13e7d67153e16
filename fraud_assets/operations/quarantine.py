"""Counts, lists and looks up quarantined messages.

`retries` retries them after a fix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from fraud_assets.core.schema import (
    QUARANTINED_TRANSACTIONS,
    RETRIED_MESSAGES,
    TIME,
    quarantined_transactions,
    retried_messages,
)
from fraud_assets.errors import UnknownMessageError
from fraud_assets.lake.duckdb_session import connect
from fraud_assets.lake.position_sql import position_columns, same_position
from fraud_assets.lake.scan import find_files_within, register_view
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

POSITION_SQL = position_columns("q")
"""The source position of a row of `q`, the quarantine table, as SQL columns."""
IS_RETRIED_SQL = same_position("q", "r", "origin_")
"""SQL condition: the row of `r`, the retry log, is a retry of the row of `q`, the quarantine table."""


@dataclass(frozen=True)
class Selection:
    """Selects quarantined messages; by default all that were not retried.

    Attributes:
        reason: only messages with this reason.
        since: only messages that landed at this time or later.
        topic: only messages of this topic.
        positions: only messages at these positions, written `topic/partition/offset`, or
            `topic@topic_id/partition/offset` if the topic was recreated.
        retried: whether to include messages that were retried.
    """

    reason: str | None = None
    since: datetime | None = None
    topic: str | None = None
    positions: tuple[str, ...] = ()
    retried: bool = False


@dataclass(frozen=True)
class ReasonCount:
    """The number of messages with one reason, and the time at which the newest of them landed."""

    reason: str
    messages: int
    newest: datetime


@dataclass(frozen=True)
class QuarantinedMessage:
    """A quarantined message. Only `find_message` fills timestamp, key, value and headers."""

    topic: str
    topic_id: str
    partition: int
    offset: int
    reason: str
    detail: str
    ingested_at: datetime
    size: int
    retried_as: str | None = None
    timestamp: datetime | None = None
    key: bytes | None = None
    value: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    @property
    def position(self) -> str:
        """The position at which the message landed, as `topic/partition/offset`."""
        return f"{self.topic}/{self.partition}/{self.offset}"


def count_reasons(lake: Lake, settings: Settings, selection: Selection) -> list[ReasonCount]:
    """Counts the selected messages by reason, the most frequent reason first."""
    with connect(settings) as connection:
        where, values = register_selection(connection, lake, selection)
        rows = connection.execute(
            f"select reason, count(*), max(epoch_us(q.ingested_at)) from q {where} group by 1 order by 2 desc, 1",
            values,
        ).fetchall()
    return [ReasonCount(reason, count, _time_of(newest)) for reason, count, newest in rows]


def list_messages(
    lake: Lake, settings: Settings, selection: Selection, limit: int | None = None
) -> list[QuarantinedMessage]:
    """Returns the selected messages without their bodies, the newest first, at most `limit` of them."""
    return _read_messages(lake, settings, selection, limit, with_content=False)


def find_message(lake: Lake, settings: Settings, position: str) -> QuarantinedMessage:
    """Returns the message at a position, with its content.

    Raises:
        UnknownMessageError: no message in quarantine has the position, or messages of several topics of that name do.
    """
    found = _read_messages(lake, settings, Selection(positions=(position,), retried=True), None, with_content=True)
    if not found:
        raise _unknown_position(position)
    if len(found) > 1:
        raise _ambiguous_position(position, found)
    return found[0]


def register_selection(connection: DuckDBPyConnection, lake: Lake, selection: Selection) -> tuple[str, dict[str, Any]]:
    """Registers the quarantine table as `q` and the retry log as `r`.

    Returns:
        The SQL `where` clause that selects rows of `q`, and the values of its parameters.

    Raises:
        UnknownMessageError: a position of the selection is malformed.
    """
    if lake.exists(quarantined_transactions):
        quarantine, files = lake.open(quarantined_transactions), None
        if selection.since is not None:
            files = find_files_within(quarantine, {"ingest_date": (selection.since.astimezone(UTC).date(), None)})
        register_view(connection, "q", quarantine, files)
    else:
        connection.register("q", QUARANTINED_TRANSACTIONS.empty_table())
    if lake.exists(retried_messages):
        register_view(connection, "r", lake.open(retried_messages))
    else:
        connection.register("r", RETRIED_MESSAGES.empty_table())
    conditions, values = ["true"], dict[str, Any]()
    if selection.reason is not None:
        conditions.append("q.reason = $reason")
        values["reason"] = selection.reason
    if selection.since is not None:
        conditions.append("epoch_us(q.ingested_at) >= $since")
        values["since"] = pa.scalar(selection.since.astimezone(UTC), TIME).cast(pa.int64()).as_py()
    if selection.topic is not None:
        conditions.append("q.topic = $topic")
        values["topic"] = selection.topic
    if selection.positions:
        connection.register("wanted", _parse_positions(selection.positions))
        conditions.append(
            """exists (select 1 from wanted w where q."partition" = w."partition" and q."offset" = w."offset"
            and w.topic in (q.topic, q.topic || '@' || q.topic_id))"""
        )
    if not selection.retried:
        conditions.append(f"not exists (select 1 from r where {IS_RETRIED_SQL})")
    return "where " + " and ".join(conditions), values


def _parse_positions(positions: Sequence[str]) -> pa.Table:
    """Returns the positions as columns `topic` (with `@topic_id` if given), `partition` and `offset`."""
    parts = []
    for position in positions:
        topic, *numbers = position.rsplit("/", 2)
        if len(numbers) != 2 or not all(number.isdecimal() and len(number) < 19 for number in numbers):
            raise UnknownMessageError(
                f"{position!r} is not a position. Write it as topic/partition/offset, as `fraud-assets quarantine "
                "list` prints it."
            )
        parts.append((topic, int(numbers[0]), int(numbers[1])))
    topics, partitions, offsets = zip(*parts, strict=True)
    return pa.table({"topic": pa.array(topics), "partition": pa.array(partitions), "offset": pa.array(offsets)})


def _read_messages(
    lake: Lake, settings: Settings, selection: Selection, limit: int | None, *, with_content: bool
) -> list[QuarantinedMessage]:
    content = ", epoch_us(q.timestamp), q.key, q.value, q.headers" if with_content else ""
    with connect(settings) as connection:
        where, values = register_selection(connection, lake, selection)
        rows = connection.execute(
            f"""select {POSITION_SQL}, q.reason, q.detail, epoch_us(q.ingested_at), coalesce(octet_length(q.value), 0),
            (select r.topic || '/' || r."partition" || '/' || r."offset" from r where {IS_RETRIED_SQL} limit 1)
            {content} from q {where}
            order by q.ingested_at desc, {POSITION_SQL} {"" if limit is None else f"limit {int(limit)}"}""",
            values,
        ).fetchall()
    return [_message_of(row) for row in rows]


def _message_of(row: tuple[Any, ...]) -> QuarantinedMessage:
    topic, topic_id, partition, offset, reason, detail, ingested, size, retried_as, *content = row
    message = QuarantinedMessage(
        topic, topic_id, partition, offset, reason, detail or "", _time_of(ingested), size, retried_as
    )
    if not content:
        return message
    timestamp, key, value, headers = content
    return replace(
        message,
        timestamp=None if timestamp is None else _time_of(timestamp),
        key=key,
        value=value,
        headers=tuple((header["key"], header["value"]) for header in headers or ()),
    )


def _unknown_position(position: str) -> UnknownMessageError:
    return UnknownMessageError(
        f"No quarantined message has the position {position!r}. `fraud-assets quarantine list --reason …` lists the "
        "messages in quarantine."
    )


def _ambiguous_position(position: str, found: Sequence[QuarantinedMessage]) -> UnknownMessageError:
    names = ", ".join(sorted(f"{e.topic}@{e.topic_id}/{e.partition}/{e.offset}" for e in found))
    return UnknownMessageError(f"{position!r} is the position of {len(found)} messages. Name one of {names}.")


def _time_of(microseconds: int) -> datetime:
    return pa.scalar(microseconds, pa.int64()).cast(TIME).as_py()
