"""The lake: opens, creates and reads the Delta tables of `core.schema`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from fraud_assets.core.schema import TABLES, Table
from fraud_assets.errors import LakeError
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset


@dataclass(frozen=True)
class Lake:
    """Root URI of the Delta tables and what is needed to reach it."""

    root: str
    storage_options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> Lake:
        """The lake that the settings name."""
        return cls(settings.lake)

    def uri(self, table: Table) -> str:
        """Where a table is."""
        return f"{self.root.rstrip('/')}/{table.name}"

    def exists(self, table: Table) -> bool:
        """Whether the table has been created."""
        return DeltaTable.is_deltatable(self.uri(table), dict(self.storage_options) or None)

    def versions(self) -> dict[str, int]:
        """Newest version of every table that exists, by name."""
        return {table.name: self.open(table).version() for table in TABLES if self.exists(table)}

    def open(self, table: Table) -> DeltaTable:
        """A fresh handle on the newest version; the table is created when it does not exist.

        Raises:
            LakeError: the folder cannot be read or written.
        """
        options = dict(self.storage_options) or None
        try:
            try:
                return DeltaTable(self.uri(table), storage_options=options)
            except TableNotFoundError:
                return self._create(table)
        except (DeltaError, OSError) as error:
            raise unreadable(self.uri(table), error) from error

    def _create(self, table: Table) -> DeltaTable:
        # mode="ignore": two processes may meet a missing table at the same time.
        return DeltaTable.create(
            self.uri(table),
            schema=table.schema,
            mode="ignore",
            partition_by=[table.partition_by] if table.partition_by else None,
            storage_options=dict(self.storage_options) or None,
            configuration={"delta.dataSkippingStatsColumns": ",".join(table.statistics)},
        )


def unreadable(uri: str, error: Exception) -> LakeError:
    """The one sentence for a table that cannot be read or written, by what the cause looks like."""
    # delta-rs appends the frames of its own stack to some messages.
    cause = " ".join(str(error).split()).split(" 0: <unknown>")[0]
    folder = Path(uri.removeprefix("file://"))
    lowered = cause.lower()
    if "no space left" in lowered or "os error 28" in lowered or "enospc" in lowered:
        remedy = "The disk is full: free space, or point FRAUD_HOME (or FRAUD_LAKE_URI) to another disk"
    elif any(sign in lowered for sign in ("permission denied", "read-only", "os error 13", "os error 30")):
        remedy = "It cannot be written: check its owner and mount, or point FRAUD_HOME (or FRAUD_LAKE_URI) elsewhere"
    elif folder.exists() and not os.access(folder, os.R_OK):
        remedy = "It cannot be read: check its permissions"
    else:
        remedy = "Check FRAUD_LAKE_URI and FRAUD_HOME"
    return LakeError(f"Table {uri} failed: {cause[:300]}. {remedy}.")


def add_actions(handle: DeltaTable) -> pa.Table:
    """The table's live files with their statistics, a row each, flattened as `min.offset`."""
    return pa.table(handle.get_add_actions(flatten=True))


def row_count(handle: DeltaTable) -> int:
    """Rows of the handle's version, from file statistics."""
    return sum(add_actions(handle).column("num_records").to_pylist())


def dataset_of(handle: DeltaTable, paths: Iterable[str] | None = None) -> Dataset:
    """Arrow dataset of the handle's version, of all files or of those in `paths` (as `add_actions` names them)."""
    from pyarrow.dataset import FileSystemDataset

    dataset = handle.to_pyarrow_dataset()
    if paths is None:
        return dataset
    wanted = set(paths)
    fragments = [fragment for fragment in dataset.get_fragments() if fragment.path in wanted]
    return FileSystemDataset(fragments, dataset.schema, dataset.format, dataset.filesystem)
