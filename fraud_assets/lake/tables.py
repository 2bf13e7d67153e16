"""Opens, creates and reads the Delta tables of `core.schema`, in a folder or on an object store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from fraud_assets.core.schema import TABLES, Table
from fraud_assets.errors import DamagedFileError
from fraud_assets.lake.data_files import READ_ROWS
from fraud_assets.lake.file_cache import FileCache
from fraud_assets.lake.location import TableLocation
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.log_damage import find_lost_log, refuse_incomplete_entries
from fraud_assets.lake.schema_check import check_columns
from fraud_assets.lake.storage import build_storage_options, is_remote
from fraud_assets.lake.table_errors import convert_errors
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset, Expression, Fragment


_REMOTE_CHECKPOINT = 10
"""Commits between two checkpoints. Opening a table takes two requests per commit since the last checkpoint."""


@dataclass(frozen=True)
class Lake:
    """The Delta tables under a root URI.

    Attributes:
        root: Folder or URI of the tables.
        storage_options: delta-rs options to reach an object store.
        copies: Cache of data files; for a lake on an object store only.
    """

    root: str
    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    copies: FileCache | None = None

    @classmethod
    def of(cls, settings: Settings, more: Mapping[str, str] | None = None) -> Lake:
        """Returns the lake of the settings.

        Args:
            settings: The lake's URI and options.
            more: delta-rs options that override those of the settings.

        Raises:
            SettingError: Commits would not be safe with these options.
        """
        copies = FileCache(settings.home_path / "cache" / "lake", settings.lake_cache_bytes)
        return cls(settings.lake, build_storage_options(settings, more), copies if is_remote(settings.lake) else None)

    def uri(self, table: Table) -> str:
        """Returns the URI of a table."""
        return f"{self.root.rstrip('/')}/{table.name}"

    def location(self, table: Table) -> TableLocation:
        """Returns the folder of a table, with the options to reach it from any machine."""
        return TableLocation(self.uri(table), dict(self.storage_options))

    def exists(self, table: Table) -> bool:
        """Returns whether the table exists. Raises `LakeError`."""
        return self.find(table) is not None

    def find(self, table: Table, *, any_columns: bool = False) -> DeltaTable | None:
        """Returns a fresh handle on the newest version, or None if the table does not exist.

        Args:
            table: The table.
            any_columns: Whether to open tables of other versions of the platform too.

        Raises:
            LakeError: The table cannot be read, or has other columns than this version of the platform.
        """
        # `DeltaTable.is_deltatable` is not used: it holds the interpreter lock while it waits for an object store.
        with convert_errors(self.uri(table), self.storage_options):
            try:
                handle = self._open_newest(table)
            except TableNotFoundError:
                return None
        if not any_columns:
            check_columns(handle, table, self.uri(table))
        return handle

    def versions(self) -> dict[str, int]:
        """Returns the newest version of every existing table, by name. Raises `LakeError`."""
        found = {table.name: self.find(table) for table in TABLES}
        return {name: handle.version() for name, handle in found.items() if handle is not None}

    def open(self, table: Table) -> DeltaTable:
        """Returns a new handle on the newest version; creates the table if it does not exist.

        Raises:
            LakeError: The table cannot be read or written.
        """
        found = self.find(table)
        if found is not None:
            return found
        with convert_errors(self.uri(table), self.storage_options):
            self._refuse_lost_log(table)
            self._create(table)
            return self._open_newest(table)

    @property
    def _options(self) -> dict[str, str] | None:
        return dict(self.storage_options) or None

    def _open_newest(self, table: Table) -> DeltaTable:
        if self.copies is None:
            handle = LakeTable(self.uri(table), storage_options=self._options)
            # Only a folder is checked: an object store stores a file completely or not at all.
            refuse_incomplete_entries(handle.table_uri, handle.version())
            return handle
        return RemoteTable(self.uri(table), self.storage_options, self.copies)

    def _refuse_lost_log(self, table: Table) -> None:
        """Raises `DamagedFileError` if a folder has data files but no log, so that no empty table is created over them.

        An object store is not checked: delta-rs's listing holds the interpreter lock while it waits for the store.
        """
        if self.copies is not None:
            return
        if (lost := find_lost_log(self.location(table))) is None:
            return
        # Another process may have created the table and added rows meanwhile.
        with suppress(TableNotFoundError):
            self._open_newest(table)
            return
        raise DamagedFileError(lost)

    def _create(self, table: Table) -> None:
        # Another process may have created the table at the same time, or an object store may have created it although
        # its answer was lost. In both cases the table exists and is not created again.
        with suppress(CommitFailedError):
            DeltaTable.create(
                self.uri(table),
                schema=table.schema,
                mode="ignore",
                partition_by=[table.partition_by] if table.partition_by else None,
                storage_options=self._options,
                configuration={
                    "delta.dataSkippingStatsColumns": ",".join(table.statistics),
                    **({} if self.copies is None else {"delta.checkpointInterval": str(_REMOTE_CHECKPOINT)}),
                },
                commit_properties=CommitProperties(max_commit_retries=0),
            )


class LakeTable(DeltaTable):
    """A table that raises `LakeError` if maintenance shortened the log before delta-rs read it again."""

    def transaction_version(self, app_id: str) -> int | None:
        """As in delta-rs. Raises `LakeError`."""
        with convert_errors(self.table_uri):
            return super().transaction_version(app_id)

    def get_add_actions(self, flatten: bool = False) -> Any:
        """As in delta-rs. Raises `LakeError`."""
        with convert_errors(self.table_uri):
            return super().get_add_actions(flatten)


class RemoteTable(LakeTable):
    """A table on an object store, whose files are read from local copies."""

    def __init__(self, uri: str, options: Mapping[str, str], copies: FileCache) -> None:
        super().__init__(uri, storage_options=dict(options))
        self._options = options
        self._copies = copies
        self._transactions: dict[tuple[int, str], int | None] = {}

    @property
    def copied_to(self) -> Path:
        """Folder of the local copies, with the same paths below it as in the table's folder."""
        return self._copies.folder_of(self.table_uri)

    def fetch(self, paths: Iterable[str]) -> Path:
        """Fetches the files that have no local copy yet; returns `copied_to`. Raises `LakeError` and `DiskError`."""
        actions = add_actions(self)
        sizes = dict(zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True))
        return self._copies.fetch(self.table_uri, self._options, {path: sizes[path] for path in paths})

    def transaction_version(self, app_id: str) -> int | None:
        """As in delta-rs, but cached: delta-rs reads the log again for each call. Raises `LakeError`."""
        key = (self.version(), app_id)
        if key not in self._transactions:
            self._transactions[key] = super().transaction_version(app_id)
        return self._transactions[key]


def open_dataset(handle: DeltaTable, paths: Iterable[str] | None = None) -> Dataset:
    """Returns the handle's version as an Arrow dataset.

    Args:
        handle: The table.
        paths: Files to include, as named by `add_actions`; all if None.

    Raises:
        LakeError: The files of an object store cannot be fetched.
    """
    whole = _full_dataset(handle)
    wanted = None if paths is None else set(paths)
    return _select_fragments(
        handle, whole, [part for part in whole.get_fragments() if wanted is None or part.path in wanted]
    )


def read(handle: DeltaTable, columns: Sequence[str] | None = None, where: Expression | None = None) -> pa.Table:
    """Returns rows of the handle's version.

    Only files that can contain such rows are read, according to their partition and statistics.

    Args:
        handle: The table.
        columns: Columns to read; all if None.
        where: Condition of the rows; all rows if None.

    Raises:
        LakeError: A file cannot be read.
    """
    whole = _full_dataset(handle)
    dataset = _select_fragments(handle, whole, list(whole.get_fragments(where)))
    with convert_errors(handle.table_uri):
        return dataset.to_table(columns=columns and list(columns), filter=where)


def read_batches(
    handle: DeltaTable,
    columns: Sequence[str],
    paths: Iterable[str] | None = None,
    where: Expression | None = None,
    batch_rows: int = READ_ROWS,
) -> Iterator[pa.RecordBatch]:
    """Yields rows of the handle's version, with only a few batches in memory at a time.

    Args:
        handle: The table.
        columns: Columns to read.
        paths: Files to read, as named by `add_actions`; all if None.
        where: Condition of the rows; all rows if None.
        batch_rows: Maximum number of rows in a batch.

    Raises:
        LakeError: A file cannot be read.
    """
    dataset = open_dataset(handle, paths)
    with convert_errors(handle.table_uri):
        scanner = dataset.scanner(
            columns=list(columns), filter=where, batch_size=batch_rows, batch_readahead=2, fragment_readahead=1
        )
        yield from scanner.to_batches()


def _full_dataset(handle: DeltaTable) -> Dataset:
    """Returns the dataset of all files; the files of a remote table need not be fetched yet."""
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    if isinstance(handle, RemoteTable):
        return handle.to_pyarrow_dataset(filesystem=SubTreeFileSystem(str(handle.copied_to), LocalFileSystem()))
    return handle.to_pyarrow_dataset()


def _select_fragments(handle: DeltaTable, whole: Dataset, fragments: Sequence[Fragment]) -> Dataset:
    """Fetches the files of a remote table, and returns the dataset of these fragments."""
    from pyarrow.dataset import FileSystemDataset

    if isinstance(handle, RemoteTable):
        handle.fetch(fragment.path for fragment in fragments)
    return FileSystemDataset(fragments, whole.schema, whole.format, whole.filesystem)
