"""Quarantine as a tool: what is in it, and driving messages again after a fix.

A message that is retried lands once more, at the next position of a stream of its own, and everything that
comes after landing treats it like any other. `retried_messages` is that stream's log: which quarantined message got
which position, in one commit, guarded as landing is. Then it lands from there, exactly once; a run that was killed
in between is finished by the next.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.parsing import parse_labels, parse_transactions
from fraud_assets.core.schema import (
    MESSAGES,
    POSITION_COLUMNS,
    QUARANTINED_TRANSACTIONS,
    RAW_TRANSACTIONS,
    RETRIED_MESSAGES,
    TIME,
    Table,
    fraud_labels,
    quarantined_transactions,
    raw_transactions,
    retried_messages,
)
from fraud_assets.engines.landing_tables import append_labels
from fraud_assets.errors import UnknownMessageError
from fraud_assets.kafka.schemas import label_decoder, transaction_decoder
from fraud_assets.lake.append import append_landed, commit_append, retry_conflicts
from fraud_assets.lake.batches import find_pending, read_batch
from fraud_assets.lake.duckdb_session import connect
from fraud_assets.lake.position_sql import landing_order, position_columns, same_position
from fraud_assets.lake.positions import (
    FILE_LABELS_TOPIC,
    RETRIED_LABELS,
    RETRIED_TRANSACTIONS,
    SourcePartition,
    committed_offset,
)
from fraud_assets.lake.scan import files_within, register_view
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

logger = logging.getLogger(__name__)
ORIGIN_HEADER = "fraud-retry-of"
"""Header of a message that was retried: the position at which it landed first."""

DUPLICATE = "duplicate"
LABEL = "label_"
_ORIGIN_COLUMNS = tuple(f"origin_{name}" for name in POSITION_COLUMNS)
_POSITION = position_columns("q")
_LANDING_ORDER = landing_order("q")
_SAME = same_position("q", "r", "origin_")
_NOWHERE = 2**62


@dataclass(frozen=True)
class Selection:
    """Which quarantined messages are meant; nothing given means all.

    `positions` are written `topic/partition/offset`, or `topic@topic_id/partition/offset` where a topic was recreated.
    With `retried` also messages that were retried.
    """

    reason: str | None = None
    since: datetime | None = None
    topic: str | None = None
    positions: tuple[str, ...] = ()
    retried: bool = False


@dataclass(frozen=True)
class ReasonCount:
    """Messages of one reason: how many, of how many streams, and when the newest of them landed."""

    reason: str
    messages: int
    newest: datetime


@dataclass(frozen=True)
class QuarantinedMessage:
    """A quarantined message; body, key and headers only where it was asked for by its position."""

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
        """Where it landed, as `topic/partition/offset`."""
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True)
class RetryReport:
    """What a retry did, or with `dry_run` would do.

    `selected` messages were looked at; those in `failing`, counted by their reason of now, would not pass and stay
    where they are. `transactions` and `labels` landed again; `resumed` of them are what a killed retry had left.
    """

    selected: int = 0
    passing: int = 0
    failing: dict[str, int] = field(default_factory=dict)
    transactions: int = 0
    labels: int = 0
    resumed: int = 0
    dry_run: bool = False


# ---------------------------------------------------------------------------------------------------------
# Looking.


def count_reasons(lake: Lake, settings: Settings, selection: Selection) -> list[ReasonCount]:
    """Selected messages by reason, the most frequent first."""
    with connect(settings) as connection:
        where, values = _selected(connection, lake, selection)
        rows = connection.execute(
            f"select reason, count(*), max(epoch_us(q.ingested_at)) from q {where} group by 1 order by 2 desc, 1",
            values,
        ).fetchall()
    return [ReasonCount(reason, count, _moment(newest)) for reason, count, newest in rows]


def list_messages(
    lake: Lake, settings: Settings, selection: Selection, limit: int | None = None
) -> list[QuarantinedMessage]:
    """Selected messages without their bodies, the newest first, at most `limit`."""
    return _read(lake, settings, selection, limit, whole=False)


def find_message(lake: Lake, settings: Settings, position: str) -> QuarantinedMessage:
    """The message at a position, whole.

    Raises:
        UnknownMessageError: there is none in quarantine, or there are several of one topic's lives.
    """
    found = _read(lake, settings, Selection(positions=(position,), retried=True), None, whole=True)
    if not found:
        raise _unknown(position)
    if len(found) > 1:
        raise _ambiguous(position, found)
    return found[0]


def count_waiting_retries(lake: Lake, settings: Settings) -> int:
    """Messages that a killed retry was about to land."""
    if not lake.exists(retried_messages):
        return 0
    return sum(
        _claimed(lake, stream, table, settings).rows
        for stream, table in ((RETRIED_LABELS, fraud_labels), (RETRIED_TRANSACTIONS, raw_transactions))
    )


# ---------------------------------------------------------------------------------------------------------
# Driving again.


def retry_messages(
    lake: Lake,
    settings: Settings,
    selection: Selection,
    *,
    dry_run: bool = False,
) -> RetryReport:
    """Lands the selected messages again that pass with the settings of now; the others stay where they are.

    Repeated ids (reason `duplicate`) are selected by that reason or by position only. Safe to repeat, to kill and to
    race: a message lands again once, labels before transactions.

    Raises:
        UnknownMessageError: a position is not in quarantine, or not unambiguous. Nothing was done.
        LakeError: a table cannot be read or written; what was committed stays.
    """
    for position in selection.positions:
        find_message(lake, settings, position)
    resumed = 0 if dry_run else land_retries(lake, settings)
    report = RetryReport(dry_run=dry_run)
    landed = {fraud_labels.name: 0, raw_transactions.name: 0}
    for stream, table in ((RETRIED_LABELS, fraud_labels), (RETRIED_TRANSACTIONS, raw_transactions)):
        for places in _batches(lake, settings, selection, labels=table is fraud_labels):
            rows = _bodies(lake, settings, places)
            passing, failing = _judged(rows, table, settings)
            reasons = {reason: report.failing.get(reason, 0) + count for reason, count in failing.items()}
            report = replace(
                report,
                selected=report.selected + rows.num_rows,
                passing=report.passing + passing.num_rows,
                failing={**report.failing, **reasons},
            )
            if dry_run or not passing.num_rows:
                continue
            _claim(lake, settings, passing, stream, table)
            landed[table.name] += _land(lake, settings, stream, table)
            logger.info(f"{table.name}: {landed[table.name]:,} messages landed again")
    return replace(
        report, transactions=landed[raw_transactions.name], labels=landed[fraud_labels.name], resumed=resumed
    )


def land_retries(lake: Lake, settings: Settings) -> int:
    """Lands what a killed retry had begun to drive again; gives how many messages."""
    if not lake.exists(retried_messages):
        return 0
    return _land(lake, settings, RETRIED_LABELS, fraud_labels) + _land(
        lake, settings, RETRIED_TRANSACTIONS, raw_transactions
    )


def _judged(rows: pa.Table, table: Table, settings: Settings) -> tuple[pa.Table, dict[str, int]]:
    """The quarantined rows that would pass now, and the reasons of the others."""
    again = _as_messages(rows, range(rows.num_rows), RETRIED_LABELS if table is fraud_labels else RETRIED_TRANSACTIONS)
    if table is fraud_labels:
        good, rejected = _labels(again, settings)
    else:
        now = datetime.now(UTC)
        for name, value in (("ingested_at", now), ("ingest_date", now.date())):
            kind = RAW_TRANSACTIONS.field(name).type
            again = again.append_column(name, pa.repeat(pa.scalar(value, kind), again.num_rows))
        good, rejected = parse_transactions(again, settings.contract, transaction_decoder(settings))
    reasons = {entry["values"]: entry["counts"] for entry in pc.value_counts(rejected["reason"]).to_pylist()}
    # The offsets of `again` are row numbers.
    return rows.take(good["offset"].sort()), reasons


def _claim(lake: Lake, settings: Settings, rows: pa.Table, stream: SourcePartition, table: Table) -> None:
    """Gives the rows that nobody has retried the next positions of the stream."""

    @retry_conflicts
    def claim() -> None:
        handle = lake.open(retried_messages)
        with connect(settings) as connection:
            register_view(connection, "r", handle)
            connection.register("q", rows.select([*POSITION_COLUMNS, "reason", "ingested_at"]))
            fresh = connection.sql(
                f"""select {_POSITION}, reason from q where not exists (select 1 from r where {_SAME})
                order by {_LANDING_ORDER}"""
            ).to_arrow_table()
        if not fresh.num_rows:
            return
        # The log may have been recreated; what the landing table has taken is never given out again.
        first = 1 + max(committed_offset(handle, stream), committed_offset(lake.open(table), stream))
        last = first + fresh.num_rows - 1
        columns: dict[str, Any] = {
            **_places(stream, range(first, last + 1)),
            **{f"origin_{name}": fresh[name] for name in POSITION_COLUMNS},
            "reason": fresh["reason"],
            "ingested_at": pa.repeat(pa.scalar(datetime.now(UTC), TIME), fresh.num_rows),
        }
        claims = pa.table({name: columns[name] for name in RETRIED_MESSAGES.names}).cast(RETRIED_MESSAGES)
        commit_append(handle, retried_messages, claims, {stream: last}, {"rows": fresh.num_rows})

    claim()


def _land(lake: Lake, settings: Settings, stream: SourcePartition, table: Table) -> int:
    """Lands what the log gives positions to and the landing table does not hold yet."""
    landed = 0
    while True:
        work = _claimed(lake, stream, table, settings)
        if not work.target:
            return landed
        claims = read_batch(work, settings)
        claims = claims.sort_by("offset")
        origins = claims.select(list(_ORIGIN_COLUMNS)).rename_columns(list(POSITION_COLUMNS))
        taken = 0
        for places in _slices(_sized(lake, settings, origins), settings):
            part = claims.slice(taken, places.num_rows)
            taken += places.num_rows
            rows = _bodies(lake, settings, places)
            # What was erased from quarantine meanwhile has no bytes: its position stays empty.
            offsets = _offsets(part, rows)
            again = _as_messages(rows, offsets, stream).sort_by("offset")
            reached = {stream: part["offset"][-1].as_py()}
            if table is fraud_labels:
                kept, refused = append_labels(lake, settings, again, _labels(again, settings), reached)
                landed += kept + refused
            else:
                landed += append_landed(lake, raw_transactions, again, reached)


def _claimed(lake: Lake, stream: SourcePartition, table: Table, settings: Settings) -> Any:
    """Rows of the log that the landing table has not taken."""
    known = committed_offset(lake.open(table), stream)
    return find_pending(lake.open(retried_messages), lambda other: known if other == stream else _NOWHERE, settings)


def _labels(again: pa.Table, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """Good and rejected labels; those of dropped files are read as they were read there."""
    from fraud_assets.ingest.files.labels import labels_of_rows

    of_files = pa.array([_origin_of(headers).startswith(FILE_LABELS_TOPIC) for headers in again["headers"].to_pylist()])
    of_files = of_files.cast(pa.bool_())
    plain = parse_labels(again.filter(pc.invert(of_files)), settings.contract, label_decoder(settings))
    dropped = labels_of_rows(again.filter(of_files), settings)
    good, rejected = (pa.concat_tables(tables).sort_by("offset") for tables in zip(plain, dropped, strict=True))
    return good, rejected


def _as_messages(rows: pa.Table, offsets: Sequence[int], stream: SourcePartition) -> pa.Table:
    """Quarantined rows as messages of the stream (`MESSAGES`): the same bytes, and a header that says whence."""
    headers = []
    for entry in rows.select([*POSITION_COLUMNS, "headers"]).to_pylist():
        known = entry["headers"] or []
        # Only what was retried has our header; on another message it is somebody else's.
        if entry["topic"] not in (RETRIED_TRANSACTIONS.topic, RETRIED_LABELS.topic):
            place = f"{entry['topic']}@{entry['topic_id']}/{entry['partition']}/{entry['offset']}"
            known = [*known, {"key": ORIGIN_HEADER, "value": place.encode()}]
        headers.append(known)
    columns: dict[str, Any] = {
        **{name: rows[name] for name in ("timestamp", "key", "value")},
        **_places(stream, offsets),
        "headers": pa.array(headers, MESSAGES.field("headers").type),
    }
    return pa.table({name: columns[name] for name in MESSAGES.names}).cast(MESSAGES)


def _origin_of(headers: list[dict[str, Any]]) -> str:
    """Where a message of ours landed first: its last header says it."""
    return headers[-1]["value"].decode()


def _places(stream: SourcePartition, offsets: Sequence[int]) -> dict[str, pa.Array]:
    count = len(offsets)
    return {
        "topic": pa.repeat(pa.scalar(stream.topic), count),
        "topic_id": pa.repeat(pa.scalar(stream.topic_id), count),
        "partition": pa.repeat(pa.scalar(stream.partition, pa.int32()), count),
        "offset": pa.array(offsets, pa.int64()),
    }


def _offsets(claims: pa.Table, rows: pa.Table) -> list[int]:
    """The offset that was given to each of the rows."""
    given = dict(
        zip(zip(*(claims[name].to_pylist() for name in _ORIGIN_COLUMNS), strict=True), claims["offset"].to_pylist(),
            strict=True)
    )  # fmt: skip
    return [given[place] for place in zip(*(rows[name].to_pylist() for name in POSITION_COLUMNS), strict=True)]


# ---------------------------------------------------------------------------------------------------------
# Reading the tables.


def _selected(connection: DuckDBPyConnection, lake: Lake, selection: Selection) -> tuple[str, dict[str, Any]]:
    """Registers quarantine as `q` and the log as `r`; gives the condition on `q` and its values."""
    if lake.exists(quarantined_transactions):
        quarantine, files = lake.open(quarantined_transactions), None
        if selection.since is not None:
            files = files_within(quarantine, {"ingest_date": (selection.since.astimezone(UTC).date(), None)})
        register_view(connection, "q", quarantine, files)
    else:
        connection.register("q", QUARANTINED_TRANSACTIONS.empty_table())
    _register_log(connection, lake)
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
        connection.register("wanted", _wanted(selection.positions))
        conditions.append(
            """exists (select 1 from wanted w where q."partition" = w."partition" and q."offset" = w."offset"
            and w.stream in (q.topic, q.topic || '@' || q.topic_id))"""
        )
    if not selection.retried:
        conditions.append(f"not exists (select 1 from r where {_SAME})")
    return "where " + " and ".join(conditions), values


def _register_log(connection: DuckDBPyConnection, lake: Lake) -> None:
    if lake.exists(retried_messages):
        register_view(connection, "r", lake.open(retried_messages))
    else:
        connection.register("r", RETRIED_MESSAGES.empty_table())


def _wanted(positions: Sequence[str]) -> pa.Table:
    parts = []
    for position in positions:
        stream, *numbers = position.rsplit("/", 2)
        if len(numbers) != 2 or not all(number.isdecimal() and len(number) < 19 for number in numbers):
            raise UnknownMessageError(
                f"{position!r} is no position: write it as `fraud-assets quarantine list` prints it, "
                "topic/partition/offset."
            )
        parts.append((stream, int(numbers[0]), int(numbers[1])))
    streams, partitions, offsets = zip(*parts, strict=True)
    return pa.table({"stream": pa.array(streams), "partition": pa.array(partitions), "offset": pa.array(offsets)})


def _read(
    lake: Lake, settings: Settings, selection: Selection, limit: int | None, *, whole: bool
) -> list[QuarantinedMessage]:
    bodies = ", epoch_us(q.timestamp), q.key, q.value, q.headers" if whole else ""
    with connect(settings) as connection:
        where, values = _selected(connection, lake, selection)
        rows = connection.execute(
            f"""select {_POSITION}, q.reason, q.detail, epoch_us(q.ingested_at), coalesce(octet_length(q.value), 0),
            (select r.topic || '/' || r."partition" || '/' || r."offset" from r where {_SAME} limit 1) {bodies}
            from q {where} order by q.ingested_at desc, {_POSITION} {"" if limit is None else f"limit {int(limit)}"}""",
            values,
        ).fetchall()
    found = []
    for topic, topic_id, partition, offset, reason, detail, ingested, size, retried, *rest in rows:
        entry = QuarantinedMessage(
            topic, topic_id, partition, offset, reason, detail or "", _moment(ingested), size, retried
        )
        if rest:
            timestamp, key, value, headers = rest
            entry = replace(
                entry,
                timestamp=None if timestamp is None else _moment(timestamp),
                key=key,
                value=value,
                headers=tuple((header["key"], header["value"]) for header in headers or ()),
            )
        found.append(entry)
    return found


def _batches(lake: Lake, settings: Settings, selection: Selection, *, labels: bool) -> Iterator[pa.Table]:
    """Positions of the selected open messages of one kind, in landing order, a landing batch's bytes at a time."""
    with connect(settings) as connection:
        where, values = _selected(connection, lake, replace(selection, retried=False))
        kind = f"starts_with(q.reason, '{LABEL}')"
        kind = kind if labels else f"not {kind}"
        if selection.reason is None and not selection.positions:
            kind += f" and q.reason <> '{DUPLICATE}'"
        places = connection.sql(
            f"""select {_POSITION}, coalesce(octet_length(q.value), 0) as size from q {where} and {kind}
            order by {_LANDING_ORDER}""",
            params=values,
        ).to_arrow_table()
    yield from _slices(places, settings)


def _sized(lake: Lake, settings: Settings, places: pa.Table) -> pa.Table:
    """The positions in their order, with the bytes of their bodies."""
    with connect(settings) as connection:
        register_view(connection, "q", lake.open(quarantined_transactions))
        connection.register("p", places.append_column("n", pa.array(range(places.num_rows), pa.int64())))
        return connection.sql(
            f"""select {position_columns("p")}, coalesce(octet_length(q.value), 0) as size
            from p left join q on {same_position("q", "p")} order by p.n"""
        ).to_arrow_table()


def _slices(places: pa.Table, settings: Settings) -> Iterator[pa.Table]:
    """Cuts positions with `size` into pieces of at most FRAUD_LAND_BATCH_ROWS rows and FRAUD_LAND_BATCH_BYTES bytes."""
    start = size = 0
    for row, bytes_ in enumerate(places["size"].to_pylist()):
        if row > start and (size + bytes_ > settings.land_batch_bytes or row - start >= settings.land_batch_rows):
            yield places.slice(start, row - start)
            start, size = row, 0
        size += bytes_
    if start < places.num_rows:
        yield places.slice(start)


def _bodies(lake: Lake, settings: Settings, places: pa.Table) -> pa.Table:
    """The quarantined rows at the positions, in landing order."""
    with connect(settings) as connection:
        register_view(connection, "q", lake.open(quarantined_transactions))
        connection.register("p", places)
        rows = connection.sql(
            f"select q.* from q semi join p using ({position_columns()}) order by {_LANDING_ORDER}"
        ).to_arrow_table()
    return rows.select(QUARANTINED_TRANSACTIONS.names).cast(QUARANTINED_TRANSACTIONS)


def _unknown(position: str) -> UnknownMessageError:
    return UnknownMessageError(
        f"No quarantined message has the position {position!r}: `fraud-assets quarantine list --reason …` prints those "
        "that are there."
    )


def _ambiguous(position: str, found: Sequence[QuarantinedMessage]) -> UnknownMessageError:
    names = ", ".join(sorted(f"{e.topic}@{e.topic_id}/{e.partition}/{e.offset}" for e in found))
    return UnknownMessageError(f"{position!r} is the position of {len(found)} messages; name one of {names}.")


def _moment(microseconds: int) -> datetime:
    return pa.scalar(microseconds, pa.int64()).cast(TIME).as_py()
