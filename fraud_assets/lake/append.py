"""Commits rows and source positions to the lake. All writes of rows go through this module.

A delta-rs application transaction by itself does not prevent duplicates. Therefore, a writer opens a new handle, reads
the committed positions from it, drops the rows that the table contains, and commits *with the same handle*. delta-rs
refuses the commit if another writer changed one of the same application ids. So each source row is committed exactly
once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Any, Literal, NoReturn

import pyarrow as pa
from deltalake import (
    CommitProperties,
    DeltaTable,
    PostCommitHookProperties,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, DeltaError
from tenacity import RetryCallState, retry, retry_if_exception_type, stop_after_attempt

from fraud_assets.core.schema import Table
from fraud_assets.errors import CommitConflictError, LakeError
from fraud_assets.lake.data_files import GROUP_ROWS, DataFile, Rows, remove_files
from fraud_assets.lake.log import TRANSACTIONS, add_actions
from fraud_assets.lake.positions import Positions, committed_offset, find_largest_positions, select_uncommitted
from fraud_assets.lake.table_errors import table_error
from fraud_assets.lake.tables import Lake

MAX_CONFLICTS = 100
WRITER = WriterProperties(compression="ZSTD", compression_level=1, max_row_group_size=GROUP_ROWS)
# Removing old log entries after every commit costs more with every commit, so maintenance does it.
_POST_COMMIT = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)


def _raise_lake_error(state: RetryCallState) -> NoReturn:
    conflict = state.outcome.exception() if state.outcome else None
    raise LakeError(f"{conflict} This happened {MAX_CONFLICTS} times in a row; run the command again.") from conflict


retry_conflicts = retry(
    retry=retry_if_exception_type(CommitConflictError),
    stop=stop_after_attempt(MAX_CONFLICTS),
    retry_error_callback=_raise_lake_error,
)
"""Decorates a function that opens a handle and commits with it. The function is called again on a commit conflict.

After `MAX_CONFLICTS` conflicts in a row the function raises `LakeError`.
"""


@contextmanager
def commit_errors(handle: DeltaTable) -> Iterator[None]:
    """Raises `CommitConflictError` and `LakeError` in place of delta-rs's errors on a commit."""
    try:
        yield
    except CommitFailedError as error:
        raise CommitConflictError(f"Another writer committed to table {handle.table_uri} first.") from error
    except (DeltaError, OSError) as error:
        raise table_error(handle.table_uri, error) from error


def commit_append(
    handle: DeltaTable,
    table: Table,
    rows: Rows,
    positions: Positions,
    metadata: Mapping[str, object] | None = None,
    marks: Sequence[str] = (),
) -> None:
    """Appends rows and sets positions in one commit.

    Args:
        handle: The handle that the positions were read from.
        table: The table of the handle.
        rows: Rows in memory, or written data files. If the commit fails, the caller discards them.
        positions: Last offset per source partition that the table holds with these rows.
        metadata: Values for the commit's entry in the log.
        marks: Further application ids. Two commits that set the same id conflict, as with positions.

    Raises:
        CommitConflictError: Another writer committed first; nothing was written.
        LakeError: The table cannot be written; nothing was committed.
    """
    properties = _properties(metadata, positions, marks)
    if isinstance(rows, pa.Table):
        _write(handle, table, rows, properties, mode="append")
    else:
        _commit_files(handle, table, rows, properties, mode="append")


def commit_range(
    handle: DeltaTable, table: Table, rows: pa.Table, predicate: str, metadata: Mapping[str, object]
) -> None:
    """Replaces the rows that meet a predicate. Positions stay unchanged, so later stages do not see new rows.

    Args:
        handle: The handle that the replaced rows were read from.
        table: The table of the handle.
        rows: The new rows.
        predicate: SQL that the replaced rows meet.
        metadata: Values for the commit's entry in the log.

    Raises:
        CommitConflictError: Another writer committed first; nothing was written.
        LakeError: The table cannot be written; nothing was committed.
    """
    _write(handle, table, rows, _properties(metadata), mode="overwrite", predicate=predicate)


def commit_partitions(
    handle: DeltaTable, table: Table, files: Sequence[DataFile], values: Sequence[date], metadata: Mapping[str, object]
) -> None:
    """Replaces whole partitions by data files. Positions stay unchanged, so later stages do not see new rows.

    Args:
        handle: The handle that the replaced rows were read from.
        table: The table of the handle; it has a partition column.
        files: Written data files. If the commit fails, the caller discards them.
        values: Values of the partition column.
        metadata: Values for the commit's entry in the log.

    Raises:
        CommitConflictError: Another writer committed first; nothing was committed.
        LakeError: The table cannot be written; nothing was committed.
    """
    replaced = [(str(table.partition_by), "in", [str(value) for value in values])]
    _commit_files(handle, table, files, _properties(metadata), mode="overwrite", replaced=replaced)


def discard(lake: Lake, table: Table, rows: Rows) -> None:
    """Removes the data files of rows whose commit failed; rows in memory need no removal.

    Files that the log names stay: an object store may have made the commit even if its answer was lost.
    """
    if not isinstance(rows, pa.Table):
        named = set(add_actions(lake.open(table))["path"].to_pylist())
        remove_files(lake.location(table), [file for file in rows if file.path not in named])


def _properties(
    metadata: Mapping[str, object] | None, positions: Positions | None = None, marks: Sequence[str] = ()
) -> CommitProperties:
    transactions = [
        *(Transaction(source.app_id, offset) for source, offset in (positions or {}).items()),
        *(Transaction(mark, 0) for mark in marks),
    ]
    facts = {**(metadata or {}), TRANSACTIONS: len(transactions)}
    return CommitProperties(
        custom_metadata={key: str(value) for key, value in facts.items()},
        app_transactions=transactions,
        # Commits of other source partitions do not conflict: delta-rs retries this commit after them, at most 15 times.
        max_commit_retries=15,
    )


def _write(handle: DeltaTable, table: Table, rows: pa.Table, properties: CommitProperties, **how: Any) -> None:
    with commit_errors(handle):
        write_deltalake(
            handle,
            rows.select(table.schema.names).cast(table.schema),
            commit_properties=properties,
            post_commithook_properties=_POST_COMMIT,
            writer_properties=WRITER,
            **how,
        )


def _commit_files(
    handle: DeltaTable,
    table: Table,
    files: Sequence[DataFile],
    properties: CommitProperties,
    *,
    mode: Literal["append", "overwrite"],
    replaced: list[tuple[str, str, Any]] | None = None,
) -> None:
    with commit_errors(handle):
        handle.create_write_transaction(
            [file.action(table) for file in files],
            mode,
            handle.schema(),
            [table.partition_by] if table.partition_by else None,
            replaced,
            commit_properties=properties,
            post_commithook_properties=_POST_COMMIT,
        )


def append_landed(
    lake: Lake,
    table: Table,
    rows: pa.Table,
    positions: Positions | None = None,
    metadata: Mapping[str, object] | None = None,
) -> int:
    """Appends the source rows that the table does not contain yet, with `ingested_at`, and returns their number.

    It is safe to repeat or kill the call, and to run it concurrently. Rows and positions are one commit, and every
    attempt drops the rows at or below the committed positions.

    Args:
        lake: The lake.
        table: A landing table.
        rows: Rows with source positions.
        positions: Last offset per source partition after this commit; the largest offsets in `rows` if None.
        metadata: Values for the commit's entry in the log.

    Raises:
        LakeError: The table cannot be written.
    """
    reached = find_largest_positions(rows) if positions is None else positions

    @retry_conflicts
    def append() -> int:
        handle = lake.open(table)
        fresh = select_uncommitted(rows, handle)
        ahead = {source: offset for source, offset in reached.items() if offset > committed_offset(handle, source)}
        if not ahead:
            return 0
        commit_append(handle, table, stamp_ingest(fresh, table), ahead, {"rows": fresh.num_rows, **(metadata or {})})
        return fresh.num_rows

    return append()


def stamp_ingest(rows: pa.Table, table: Table, moment: datetime | None = None) -> pa.Table:
    """Returns the rows with `ingested_at` and `ingest_date` (UTC) set to `moment`; to the current time if None."""
    now = moment or datetime.now(UTC)
    for name, value in (("ingested_at", now), ("ingest_date", now.date())):
        field = table.schema.field(name)
        column = pa.repeat(pa.scalar(value, field.type), rows.num_rows)
        if name in rows.column_names:
            rows = rows.set_column(rows.column_names.index(name), field, column)
        else:
            rows = rows.append_column(field, column)
    return rows
