"""Retries quarantined messages after a fix.

A retried message lands a second time, at the next position of a source partition of its own, and every later stage
processes it like any other message. The retry log, table `retried_messages`, records in one commit which quarantined
message got which position. Then the messages land from the log exactly once, with the same protection as any landing.
If a retry is killed between the two steps, the next retry or maintenance completes it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.parsing import parse_labels, parse_transactions
from fraud_assets.core.quarantine_reasons import DUPLICATE, LABEL_PREFIX
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
from fraud_assets.ingest.files.labels import parse_landed_labels
from fraud_assets.kafka.schemas import create_label_decoder, create_transaction_decoder
from fraud_assets.lake.append import append_landed, commit_append, retry_conflicts
from fraud_assets.lake.batches import find_pending, read_batch
from fraud_assets.lake.duckdb_session import connect
from fraud_assets.lake.position_sql import landing_order, position_columns, same_position
from fraud_assets.lake.positions import (
    AFTER_ALL_OFFSETS,
    FILE_LABELS_TOPIC,
    RETRIED_LABELS,
    RETRIED_TRANSACTIONS,
    SourcePartition,
    committed_offset,
)
from fraud_assets.lake.scan import register_view
from fraud_assets.lake.tables import Lake
from fraud_assets.operations.quarantine import IS_RETRIED_SQL, POSITION_SQL, Selection, find_message, register_selection
from fraud_assets.settings import Settings

logger = logging.getLogger(__name__)

ORIGIN_HEADER = "fraud-retry-of"
"""Header of a retried message. Its value is the position at which the message landed first."""

_TARGETS = ((RETRIED_LABELS, fraud_labels), (RETRIED_TRANSACTIONS, raw_transactions))
"""The source partitions of retried messages and the tables they land in. Labels land before transactions."""
_ORIGIN_COLUMNS = tuple(f"origin_{name}" for name in POSITION_COLUMNS)


@dataclass(frozen=True)
class RetryReport:
    """The result of a retry, or the expected result with `dry_run`.

    Attributes:
        selected: number of messages that were parsed again.
        passing: number of these messages that pass now.
        failing: number of these messages that do not pass, by their present reason. They stay in quarantine.
        transactions: number of transactions that landed.
        labels: number of labels that landed.
        resumed: number of messages that an interrupted retry had recorded and this one landed first.
        dry_run: whether nothing was written.
    """

    selected: int = 0
    passing: int = 0
    failing: dict[str, int] = field(default_factory=dict)
    transactions: int = 0
    labels: int = 0
    resumed: int = 0
    dry_run: bool = False


def retry_messages(lake: Lake, settings: Settings, selection: Selection, *, dry_run: bool = False) -> RetryReport:
    """Lands the selected messages that pass with the current settings; the others stay in quarantine.

    Repeated ids (reason `duplicate`) are retried only if the selection names that reason or their positions. A
    retry can be repeated, killed or run several times at once. Each message still lands once, labels before
    transactions.

    Raises:
        UnknownMessageError: a position is not in quarantine or is ambiguous. Nothing was written.
        LakeError: a table cannot be read or written. Committed rows stay.
    """
    for position in selection.positions:
        find_message(lake, settings, position)
    resumed = 0 if dry_run else land_retries(lake, settings)
    report = RetryReport(dry_run=dry_run)
    landed = {fraud_labels.name: 0, raw_transactions.name: 0}
    for partition, table in _TARGETS:
        for positions in _selected_batches(lake, settings, selection, labels=table is fraud_labels):
            rows = _read_quarantined(lake, settings, positions)
            passing, failing = _parse_again(rows, table, settings)
            reasons = {reason: report.failing.get(reason, 0) + count for reason, count in failing.items()}
            report = replace(
                report,
                selected=report.selected + rows.num_rows,
                passing=report.passing + passing.num_rows,
                failing={**report.failing, **reasons},
            )
            if dry_run or not passing.num_rows:
                continue
            _record_retries(lake, settings, passing, partition, table)
            landed[table.name] += _land_recorded(lake, settings, partition, table)
            logger.info(f"{table.name}: landed {landed[table.name]:,} retried messages")
    return replace(
        report, transactions=landed[raw_transactions.name], labels=landed[fraud_labels.name], resumed=resumed
    )


def land_retries(lake: Lake, settings: Settings) -> int:
    """Lands the messages that an interrupted retry recorded in the retry log.

    Returns:
        The number of messages that landed.
    """
    if not lake.exists(retried_messages):
        return 0
    return sum(_land_recorded(lake, settings, partition, table) for partition, table in _TARGETS)


def count_waiting_retries(lake: Lake, settings: Settings) -> int:
    """Counts the messages that an interrupted retry recorded in the retry log but did not land."""
    if not lake.exists(retried_messages):
        return 0
    return sum(_find_recorded(lake, partition, table, settings).rows for partition, table in _TARGETS)


# ---------------------------------------------------------------------------------------------------------
# Selecting messages and parsing them again.


def _selected_batches(lake: Lake, settings: Settings, selection: Selection, *, labels: bool) -> Iterator[pa.Table]:
    """Yields positions of the selected labels or transactions, in landing order, each batch as large as a landing."""
    with connect(settings) as connection:
        where, values = register_selection(connection, lake, replace(selection, retried=False))
        kind = f"starts_with(q.reason, '{LABEL_PREFIX}')"
        kind = kind if labels else f"not {kind}"
        if selection.reason is None and not selection.positions:
            kind += f" and q.reason <> '{DUPLICATE}'"
        positions = connection.sql(
            f"""select {POSITION_SQL}, coalesce(octet_length(q.value), 0) as size from q {where} and {kind}
            order by {landing_order("q")}""",
            params=values,
        ).to_arrow_table()
    yield from _split_by_size(positions, settings)


def _split_by_size(positions: pa.Table, settings: Settings) -> Iterator[pa.Table]:
    """Splits positions by their column `size` to respect FRAUD_LAND_BATCH_ROWS and FRAUD_LAND_BATCH_BYTES."""
    start = size = 0
    for row, row_bytes in enumerate(positions["size"].to_pylist()):
        if row > start and (size + row_bytes > settings.land_batch_bytes or row - start >= settings.land_batch_rows):
            yield positions.slice(start, row - start)
            start, size = row, 0
        size += row_bytes
    if start < positions.num_rows:
        yield positions.slice(start)


def _read_quarantined(lake: Lake, settings: Settings, positions: pa.Table) -> pa.Table:
    """Reads the quarantined rows at the positions, in landing order."""
    with connect(settings) as connection:
        register_view(connection, "q", lake.open(quarantined_transactions))
        connection.register("p", positions)
        rows = connection.sql(
            f"select q.* from q semi join p using ({position_columns()}) order by {landing_order('q')}"
        ).to_arrow_table()
    return rows.select(QUARANTINED_TRANSACTIONS.names).cast(QUARANTINED_TRANSACTIONS)


def _parse_again(rows: pa.Table, table: Table, settings: Settings) -> tuple[pa.Table, dict[str, int]]:
    """Returns the quarantined rows that pass now, and the number of the other rows by reason."""
    partition = RETRIED_LABELS if table is fraud_labels else RETRIED_TRANSACTIONS
    messages = _as_messages(rows, range(rows.num_rows), partition)
    if table is fraud_labels:
        valid, rejected = _parse_retried_labels(messages, settings)
    else:
        now = datetime.now(UTC)
        for name, value in (("ingested_at", now), ("ingest_date", now.date())):
            kind = RAW_TRANSACTIONS.field(name).type
            messages = messages.append_column(name, pa.repeat(pa.scalar(value, kind), messages.num_rows))
        valid, rejected = parse_transactions(messages, settings.contract, create_transaction_decoder(settings))
    reasons = {entry["values"]: entry["counts"] for entry in pc.value_counts(rejected["reason"]).to_pylist()}
    # The offsets of `messages` are row numbers of `rows`.
    return rows.take(valid["offset"].sort()), reasons


def _parse_retried_labels(messages: pa.Table, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """Returns valid and rejected labels. Labels from dropped files are parsed as landing parses files."""
    is_from_file = pa.array(
        [_first_position(headers).startswith(FILE_LABELS_TOPIC) for headers in messages["headers"].to_pylist()]
    ).cast(pa.bool_())
    from_topic = parse_labels(
        messages.filter(pc.invert(is_from_file)), settings.contract, create_label_decoder(settings)
    )
    from_files = parse_landed_labels(messages.filter(is_from_file), settings)
    valid, rejected = (
        pa.concat_tables(tables).sort_by("offset") for tables in zip(from_topic, from_files, strict=True)
    )
    return valid, rejected


# ---------------------------------------------------------------------------------------------------------
# Recording retries in the log and landing them from there.


def _record_retries(lake: Lake, settings: Settings, rows: pa.Table, partition: SourcePartition, table: Table) -> None:
    """Records in the retry log the next positions of the source partition for the rows that are not in it yet."""

    @retry_conflicts
    def record() -> None:
        handle = lake.open(retried_messages)
        with connect(settings) as connection:
            register_view(connection, "r", handle)
            connection.register("q", rows.select([*POSITION_COLUMNS, "reason", "ingested_at"]))
            fresh = connection.sql(
                f"""select {POSITION_SQL}, reason from q where not exists (select 1 from r where {IS_RETRIED_SQL})
                order by {landing_order("q")}"""
            ).to_arrow_table()
        if not fresh.num_rows:
            return
        # If the log was recreated, it has lost its positions. Positions that the landing table contains must not be
        # assigned again.
        first = 1 + max(committed_offset(handle, partition), committed_offset(lake.open(table), partition))
        last = first + fresh.num_rows - 1
        columns: dict[str, Any] = {
            **_position_columns(partition, range(first, last + 1)),
            **{f"origin_{name}": fresh[name] for name in POSITION_COLUMNS},
            "reason": fresh["reason"],
            "ingested_at": pa.repeat(pa.scalar(datetime.now(UTC), TIME), fresh.num_rows),
        }
        entries = pa.table({name: columns[name] for name in RETRIED_MESSAGES.names}).cast(RETRIED_MESSAGES)
        commit_append(handle, retried_messages, entries, {partition: last}, {"rows": fresh.num_rows})

    record()


def _land_recorded(lake: Lake, settings: Settings, partition: SourcePartition, table: Table) -> int:
    """Lands the messages of the retry log that the landing table does not contain; returns their number."""
    landed = 0
    while True:
        pending = _find_recorded(lake, partition, table, settings)
        if not pending.target:
            return landed
        entries = read_batch(pending, settings)
        entries = entries.sort_by("offset")
        origins = entries.select(list(_ORIGIN_COLUMNS)).rename_columns(list(POSITION_COLUMNS))
        done = 0
        for positions in _split_by_size(_with_sizes(lake, settings, origins), settings):
            part = entries.slice(done, positions.num_rows)
            done += positions.num_rows
            rows = _read_quarantined(lake, settings, positions)
            # A message that has been erased from quarantine has no row; its position stays empty.
            messages = _as_messages(rows, _recorded_offsets(part, rows), partition).sort_by("offset")
            reached = {partition: part["offset"][-1].as_py()}
            if table is fraud_labels:
                parsed = _parse_retried_labels(messages, settings)
                accepted, rejected = append_labels(lake, settings, messages, parsed, reached)
                landed += accepted + rejected
            else:
                landed += append_landed(lake, raw_transactions, messages, reached)


def _find_recorded(lake: Lake, partition: SourcePartition, table: Table, settings: Settings) -> Any:
    """Finds the rows of the retry log that the landing table does not contain."""
    committed = committed_offset(lake.open(table), partition)
    return find_pending(
        lake.open(retried_messages),
        lambda other: committed if other == partition else AFTER_ALL_OFFSETS,
        settings,
    )


def _with_sizes(lake: Lake, settings: Settings, positions: pa.Table) -> pa.Table:
    """Adds column `size`, the bytes of each body, to the positions and keeps their order."""
    with connect(settings) as connection:
        register_view(connection, "q", lake.open(quarantined_transactions))
        connection.register("p", positions.append_column("n", pa.array(range(positions.num_rows), pa.int64())))
        return connection.sql(
            f"""select {position_columns("p")}, coalesce(octet_length(q.value), 0) as size
            from p left join q on {same_position("q", "p")} order by p.n"""
        ).to_arrow_table()


def _recorded_offsets(entries: pa.Table, rows: pa.Table) -> list[int]:
    """Returns the offset that the entries of the retry log assign to each quarantined row."""
    origins = zip(*(entries[name].to_pylist() for name in _ORIGIN_COLUMNS), strict=True)
    offsets = dict(zip(origins, entries["offset"].to_pylist(), strict=True))
    return [offsets[position] for position in zip(*(rows[name].to_pylist() for name in POSITION_COLUMNS), strict=True)]


def _as_messages(rows: pa.Table, offsets: Sequence[int], partition: SourcePartition) -> pa.Table:
    """Returns quarantined rows as messages (`MESSAGES`) of the source partition, with `ORIGIN_HEADER`."""
    headers = []
    for entry in rows.select([*POSITION_COLUMNS, "headers"]).to_pylist():
        known = entry["headers"] or []
        # Retried messages have the header already. On any other message a header of this name is the producer's own.
        if entry["topic"] not in (RETRIED_TRANSACTIONS.topic, RETRIED_LABELS.topic):
            position = f"{entry['topic']}@{entry['topic_id']}/{entry['partition']}/{entry['offset']}"
            known = [*known, {"key": ORIGIN_HEADER, "value": position.encode()}]
        headers.append(known)
    columns: dict[str, Any] = {
        **{name: rows[name] for name in ("timestamp", "key", "value")},
        **_position_columns(partition, offsets),
        "headers": pa.array(headers, MESSAGES.field("headers").type),
    }
    return pa.table({name: columns[name] for name in MESSAGES.names}).cast(MESSAGES)


def _first_position(headers: list[dict[str, Any]]) -> str:
    """Returns the position at which a retried message landed first, the value of its last header."""
    return headers[-1]["value"].decode()


def _position_columns(partition: SourcePartition, offsets: Sequence[int]) -> dict[str, pa.Array]:
    count = len(offsets)
    return {
        "topic": pa.repeat(pa.scalar(partition.topic), count),
        "topic_id": pa.repeat(pa.scalar(partition.topic_id), count),
        "partition": pa.repeat(pa.scalar(partition.partition, pa.int32()), count),
        "offset": pa.array(offsets, pa.int64()),
    }
