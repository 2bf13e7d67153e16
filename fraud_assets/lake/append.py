"""The one committer: every append to the lake goes through here, exactly once by source position.

delta-rs application transactions are a label, not a guard. What guards: a fresh handle, its stored positions,
dropping what it contains, and writing *with that same handle*, which delta-rs refuses when another writer
moved one of the same application ids meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime

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

from fraud_assets.core.schema import Table
from fraud_assets.lake.damage import TRANSACTIONS
from fraud_assets.lake.data_files import GROUP_ROWS, Rows
from fraud_assets.lake.positions import Positions, beyond, committed_offset, positions_of
from fraud_assets.lake.tables import Lake, unreadable

RACES = 100
WRITER = WriterProperties(compression="ZSTD", compression_level=1, max_row_group_size=GROUP_ROWS)
# To look for old log entries after every commit costs more with every commit; maintenance does it.
_AFTERWARDS = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)


class CommitConflictError(Exception):
    """Another writer committed the same positions first; read the stored positions again and start over."""


def commit(
    handle: DeltaTable,
    table: Table,
    rows: Rows,
    positions: Positions,
    metadata: Mapping[str, object] | None = None,
    *,
    recomputed: str | None = None,
    replaced: Sequence[date] | None = None,
    marks: Sequence[str] = (),
) -> None:
    """Append `rows` and set `positions` in one commit, with the very handle that the positions were read from.

    Rows may be in data files already, which other machines wrote; where the commit fails they are left to the caller.
    With `recomputed` (a SQL predicate) the rows take the place of those that meet it, with `replaced` (of data files:
    partition values) of those partitions; predictions do not take them for new, because positions do not move.
    `marks` are further application ids; two commits that set the same one conflict, as those of one position do.

    Raises:
        CommitConflictError: another writer came first; nothing was written.
        LakeError: the table cannot be written; nothing was committed.
    """
    transactions = [
        *(Transaction(stream.app_id, offset) for stream, offset in positions.items()),
        *(Transaction(mark, 0) for mark in marks),
    ]
    properties = CommitProperties(
        custom_metadata={
            key: str(value) for key, value in {**(metadata or {}), TRANSACTIONS: len(transactions)}.items()
        },
        app_transactions=transactions,
        # Commits of other streams do not conflict: delta-rs puts ours behind theirs, up to so many.
        max_commit_retries=15,
    )
    try:
        if not isinstance(rows, pa.Table):
            handle.create_write_transaction(
                [file.action(table) for file in rows],
                "append" if replaced is None else "overwrite",
                handle.schema(),
                [table.partition_by] if table.partition_by else None,
                None if replaced is None else [(str(table.partition_by), "in", [str(value) for value in replaced])],
                commit_properties=properties,
                post_commithook_properties=_AFTERWARDS,
            )
        elif recomputed is None:
            write_deltalake(
                handle,
                rows.select(table.schema.names).cast(table.schema),
                mode="append",
                commit_properties=properties,
                post_commithook_properties=_AFTERWARDS,
                writer_properties=WRITER,
            )
        else:
            write_deltalake(
                handle,
                rows.select(table.schema.names).cast(table.schema),
                mode="overwrite",
                predicate=recomputed,
                commit_properties=properties,
                post_commithook_properties=_AFTERWARDS,
                writer_properties=WRITER,
            )
    except CommitFailedError as error:
        raise CommitConflictError(str(error)) from error
    except (DeltaError, OSError) as error:
        raise unreadable(handle.table_uri, error) from error


def append_landed(
    lake: Lake,
    table: Table,
    rows: pa.Table,
    positions: Positions | None = None,
    metadata: Mapping[str, object] | None = None,
) -> int:
    """Append source rows that the table does not contain yet, stamping `ingested_at`; gives how many.

    Safe to repeat, to kill and to race: `positions` (default: the largest offset per stream in `rows`) and
    rows are one commit, and rows at or below the stored positions are dropped, in every attempt anew.

    Raises:
        LakeError: the table cannot be written.
    """
    reached = positions_of(rows) if positions is None else positions
    for _ in range(RACES):
        handle = lake.open(table)
        fresh = beyond(rows, handle)
        ahead = {stream: offset for stream, offset in reached.items() if offset > committed_offset(handle, stream)}
        if not ahead:
            return 0
        try:
            commit(handle, table, stamped(fresh, table), ahead, {"rows": fresh.num_rows, **(metadata or {})})
        except CommitConflictError:
            continue
        return fresh.num_rows
    raise unreadable(lake.uri(table), RuntimeError(f"{RACES} commits in a row lost against other writers"))


def stamped(rows: pa.Table, table: Table, moment: datetime | None = None) -> pa.Table:
    """Rows with `ingested_at` and `ingest_date` (UTC) of this moment, or of the one given."""
    now = moment or datetime.now(UTC)
    for name, value in (("ingested_at", now), ("ingest_date", now.date())):
        field = table.schema.field(name)
        column = pa.repeat(pa.scalar(value, field.type), rows.num_rows)
        if name in rows.column_names:
            rows = rows.set_column(rows.column_names.index(name), field, column)
        else:
            rows = rows.append_column(field, column)
    return rows
