"""Adds the columns of this version of the platform to the tables of an earlier version."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fraud_assets.core.schema import TABLES
from fraud_assets.lake.append import commit_errors
from fraud_assets.lake.schema_check import UPGRADED, find_addable_columns
from fraud_assets.lake.tables import Lake

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableUpgrade:
    """The changes of an upgrade to one table.

    Attributes:
        table: name of the table.
        added: names of the columns that it adds; existing rows hold null in them.
    """

    table: str
    added: tuple[str, ...]


def upgrade_lake(lake: Lake, *, dry_run: bool = False) -> list[TableUpgrade]:
    """Adds the columns that the tables lack. The call can be repeated and interrupted safely.

    Args:
        lake: the lake that contains the tables.
        dry_run: if true, nothing is changed.

    Returns:
        One entry for each table that lacked columns, in the order of `core.schema.TABLES`.

    Raises:
        LakeError: a table cannot be read or written, or needs other changes. Earlier tables stay upgraded.
        CommitConflictError: another process writes to a table. Stop landers and Dagster's daemon first.
    """
    upgrades = []
    for table in TABLES:
        handle = lake.find(table, any_columns=True)
        if handle is None:
            continue
        columns = find_addable_columns(handle, table)
        if not columns:
            # Raises an error if the table needs other changes than added columns.
            lake.find(table)
            continue
        upgrades.append(TableUpgrade(table.name, tuple(column.name for column in columns)))
        if dry_run:
            continue
        with commit_errors(handle):
            # The property is set first, so that readers expect data files without the columns.
            handle.alter.set_table_properties({UPGRADED: "true"}, raise_if_not_exists=False)
            handle.alter.add_columns(columns)
        lake.find(table)
        logger.info(f"{table.name}: added {', '.join(upgrades[-1].added)}")
    return upgrades
