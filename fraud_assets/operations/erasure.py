"""Erases a customer from every table, by source position, and from kept dropped files.

The order makes it safe to kill and to repeat an erasure. Labels and predictions are deleted first, because they
are found through rows that are deleted later. Landed bodies and quarantine follow; their rows are found by reading
them. Features are deleted last, because they name the customer in a column. Committed positions stay, so nothing lands
or is scored again. Delta's log names positions, never the customer.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pyarrow as pa
from deltalake import CommitProperties
from deltalake.exceptions import DeltaError

from fraud_assets.core.schema import (
    SOURCE_PARTITION_COLUMNS,
    Table,
    quarantined_transactions,
    raw_transactions,
)
from fraud_assets.lake.append import commit_errors, retry_conflicts
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.position_sql import is_of_source_partition
from fraud_assets.lake.positions import SourcePartition
from fraud_assets.lake.table_errors import table_error
from fraud_assets.lake.tables import Lake, RemoteTable
from fraud_assets.operations.holdings import (
    ERASED_TABLES,
    POSITIONS,
    Holdings,
    find_holdings,
    find_stored_ids,
    select_existing,
)
from fraud_assets.operations.kept_files import remove_from_file
from fraud_assets.printable import escape_unprintable
from fraud_assets.settings import Settings

logger = logging.getLogger(__name__)

_POSITIONS_PER_COMMIT = 2_000
_MAX_ROUNDS = 5


@dataclass(frozen=True)
class ErasureReport:
    """The result of an erasure.

    Attributes:
        tables: number of removed rows, by table.
        files: number of removed rows, by kept file.
        unreadable: number of removed messages and lines that could not be parsed but mentioned the id.
        vacuumed_files: number of removed data files of older table versions.
    """

    tables: dict[str, int]
    files: dict[str, int]
    unreadable: int = 0
    vacuumed_files: int = 0


def erase_customer(
    lake: Lake,
    settings: Settings,
    customer: str,
    *,
    unreadable: bool = False,
    found: Holdings | None = None,
) -> ErasureReport:
    """Removes a customer's rows from every table and kept file, and repeats the search until nothing is left.

    An erasure can be repeated or killed safely; the next one completes it. A running stage may still write rows that
    it read earlier. The last search finds such rows if they are committed by then.

    Args:
        lake: the lake to erase from.
        settings: define the contract, the pseudonyms and the folders of kept files.
        customer: the customer_id, not its pseudonym.
        unreadable: also remove messages and lines that cannot be parsed but mention the id.
        found: the result of `find_holdings`, which saves the first search.

    Raises:
        LakeError: a table or file cannot be written. Rows that were removed stay removed.
    """
    ids = find_stored_ids(customer, settings)
    tables = dict.fromkeys((table.name for table in ERASED_TABLES), 0)
    files: dict[str, int] = {}
    mentioned = 0
    for _ in range(_MAX_ROUNDS):
        found = found or find_holdings(lake, settings, customer)
        lines = sum(found.unreadable_lines.values()) if unreadable else 0
        mentions = found.mentions if unreadable else POSITIONS.empty_table()
        if found.empty and not mentions.num_rows and not lines:
            break
        for name, removed in _erase_from_tables(lake, found).items():
            tables[name] += removed
        for table in (raw_transactions, quarantined_transactions):
            delete_positions(lake, table, select_existing(lake, table, settings, mentions))
        mentioned += mentions.num_rows
        for file in found.files:
            if file.rows or (unreadable and file.unreadable):
                removed_rows = remove_from_file(file, settings, ids, unreadable=unreadable)
                name = escape_unprintable(file.path)
                files[name] = files.get(name, 0) + removed_rows.rows
                mentioned += removed_rows.unreadable if unreadable else 0
                logger.info(f"{name}: {removed_rows.rows:,} rows removed")
        found = None
    return ErasureReport(tables, files, mentioned)


def delete_positions(lake: Lake, table: Table, positions: pa.Table) -> int:
    """Deletes the rows at the positions from a table. The call can be repeated safely.

    Returns:
        The number of deleted rows.

    Raises:
        LakeError: the table cannot be written. Positions of earlier commits stay deleted.
    """
    removed = 0
    for start in range(0, positions.num_rows, _POSITIONS_PER_COMMIT):
        removed += _delete_where(lake, table, _predicate(positions.slice(start, _POSITIONS_PER_COMMIT)))
    return removed


def vacuum_now(lake: Lake) -> int:
    """Removes every data file that the newest version of its table does not use, and the local copies of such files.

    A reader of an older version fails. Files that a writer has not committed yet stay.

    Returns:
        The number of removed files, without local copies.

    Raises:
        LakeError: a table cannot be written.
    """
    removed = 0
    for table in filter(lake.exists, ERASED_TABLES):
        handle = lake.open(table)
        try:
            removed += len(handle.vacuum(0, dry_run=False, enforce_retention_duration=False))
        except (DeltaError, OSError) as error:
            raise table_error(lake.uri(table), error) from error
        if isinstance(handle, RemoteTable):
            used = {handle.copied_to / path for path in add_actions(handle)["path"].to_pylist()}
            for copy in handle.copied_to.rglob("*.parquet"):
                if copy not in used:
                    copy.unlink(missing_ok=True)
    return removed


def _erase_from_tables(lake: Lake, found: Holdings) -> dict[str, int]:
    """Deletes the customer's rows, bad labels first; returns the number of deleted rows by table."""
    removed = dict.fromkeys((table.name for table in ERASED_TABLES), 0)
    for table, positions in (
        (quarantined_transactions, found.bad_labels),
        *((table, found.tables[table.name]) for table in ERASED_TABLES),
    ):
        rows = delete_positions(lake, table, positions)
        removed[table.name] += rows
        if rows:
            logger.info(f"{table.name}: {rows:,} rows removed")
    return removed


@retry_conflicts
def _delete_where(lake: Lake, table: Table, predicate: str) -> int:
    handle = lake.open(table)
    # A compaction or a recomputation may rewrite these files at the same time; `commit_errors` reports a conflict.
    with commit_errors(handle):
        note = CommitProperties(custom_metadata={"erased": "a customer"})
        return int(handle.delete(predicate, commit_properties=note)["num_deleted_rows"])


def _predicate(positions: pa.Table) -> str:
    """Returns SQL that matches exactly the positions.

    Its bounds on the offset let Delta see that it does not match rows that are appended at the same time.
    """
    parts = []
    for group in positions.group_by(list(SOURCE_PARTITION_COLUMNS)).aggregate([("offset", "list")]).to_pylist():
        offsets = sorted(group["offset_list"])
        partition = SourcePartition(*(group[name] for name in SOURCE_PARTITION_COLUMNS))
        parts.append(
            f"({is_of_source_partition(partition)} "
            f'and "offset" >= {offsets[0]} and "offset" <= {offsets[-1]} '
            f'and "offset" in ({", ".join(map(str, offsets))}))'
        )
    return " or ".join(parts)
