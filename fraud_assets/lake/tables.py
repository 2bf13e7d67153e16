"""The lake: opens, creates and reads the Delta tables of `core.schema`, in a folder or on an object store."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from fraud_assets.core.schema import TABLES, Table
from fraud_assets.errors import DamagedFileError, LakeError
from fraud_assets.lake.damage import (
    examine_data_files,
    log_damage,
    lost_log,
    named_data_file,
    refuse_incomplete_entries,
)
from fraud_assets.lake.data_files import READ_ROWS
from fraud_assets.lake.file_cache import FileCache
from fraud_assets.lake.location import TableLocation
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.schema_check import check_columns
from fraud_assets.lake.storage import is_remote, known_store_fault, storage_options, store_fault
from fraud_assets.settings import Settings
from fraud_assets.system.paths import plain_path

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset, Expression, Fragment


_FOOTERS, _FOOTER_SECONDS = 10_000, 20.0
_CORRUPT = re.compile(r"corrupt|decompress|parquet|thrift", re.IGNORECASE)
"""Of Arrow's and delta-rs's errors on the content of a file, which do not name it."""
_REMOTE_CHECKPOINT = 10
"""Commits between two checkpoints. To open a table takes two requests for each commit since the last one."""


@dataclass(frozen=True)
class Lake:
    """Root URI of the Delta tables and what is needed to reach it; `copies` is for a lake on an object store."""

    root: str
    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    copies: FileCache | None = None

    @classmethod
    def of(cls, settings: Settings, more: Mapping[str, str] | None = None) -> Lake:
        """The lake that the settings name; `more` are options of delta-rs that win over theirs.

        Raises:
            SettingError: commits would not be safe with these options.
        """
        copies = FileCache(settings.home_path / "cache" / "lake", settings.lake_cache_bytes)
        return cls(settings.lake, storage_options(settings, more), copies if is_remote(settings.lake) else None)

    def uri(self, table: Table) -> str:
        """Where a table is."""
        return f"{self.root.rstrip('/')}/{table.name}"

    def location(self, table: Table) -> TableLocation:
        """The folder of a table, as any machine reaches it."""
        return TableLocation(self.uri(table), dict(self.storage_options))

    def exists(self, table: Table) -> bool:
        """Whether the table has been created. Raises `LakeError`."""
        return self.find(table) is not None

    def find(self, table: Table, *, any_columns: bool = False) -> DeltaTable | None:
        """Returns a fresh handle on the newest version, or None if the table does not exist.

        Args:
            table: the table.
            any_columns: if true, a table of another version of the platform is opened too.

        Raises:
            LakeError: the table cannot be read, or has other columns than this version of the platform.
        """
        # Not `DeltaTable.is_deltatable`: it holds the interpreter lock for as long as an object store keeps it waiting.
        with _in_words(self.uri(table), self.storage_options):
            try:
                handle = self._newest(table)
            except TableNotFoundError:
                return None
        if not any_columns:
            check_columns(handle, table, self.uri(table))
        return handle

    def versions(self) -> dict[str, int]:
        """Newest version of every table that exists, by name. Raises `LakeError`."""
        found = {table.name: self.find(table) for table in TABLES}
        return {name: handle.version() for name, handle in found.items() if handle is not None}

    def open(self, table: Table) -> DeltaTable:
        """A fresh handle on the newest version; the table is created when it does not exist.

        Raises:
            LakeError: it cannot be read or written.
        """
        found = self.find(table)
        if found is not None:
            return found
        with _in_words(self.uri(table), self.storage_options):
            self._refuse_lost_log(table)
            self._create(table)
            return self._newest(table)

    @property
    def _options(self) -> dict[str, str] | None:
        return dict(self.storage_options) or None

    def _newest(self, table: Table) -> DeltaTable:
        if self.copies is None:
            handle = LakeTable(self.uri(table), storage_options=self._options)
            # An object store keeps a file whole or not at all.
            refuse_incomplete_entries(handle.table_uri, handle.version())
            return handle
        return RemoteTable(self.uri(table), self.storage_options, self.copies)

    def _refuse_lost_log(self, table: Table) -> None:
        """Keeps a table in a folder that lost its log from being created again, empty, on top of its data files.

        A store is not asked: delta-rs's listing holds the interpreter lock for as long as the store keeps it waiting.
        """
        if self.copies is not None:
            return
        if (lost := lost_log(self.location(table))) is None:
            return
        # Another process may have created the table and added rows meanwhile.
        with suppress(TableNotFoundError):
            self._newest(table)
            return
        raise DamagedFileError(lost)

    def _create(self, table: Table) -> None:
        # Two processes may meet a missing table at the same time, and an object store may have made it without being
        # able to say so. It is there then, and is not made again on top.
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
        """As delta-rs's own. Raises `LakeError`."""
        with _in_words(self.table_uri):
            return super().transaction_version(app_id)

    def get_add_actions(self, flatten: bool = False) -> Any:
        """As delta-rs's own. Raises `LakeError`."""
        with _in_words(self.table_uri):
            return super().get_add_actions(flatten)


class RemoteTable(LakeTable):
    """A table on an object store. Its files are read from local copies."""

    def __init__(self, uri: str, options: Mapping[str, str], copies: FileCache) -> None:
        super().__init__(uri, storage_options=dict(options))
        self._options = options
        self._copies = copies
        self._transactions: dict[tuple[int, str], int | None] = {}

    @property
    def copied_to(self) -> Path:
        """Folder of the local copies, with the same paths below it as the table's own."""
        return self._copies.place(self.table_uri)

    def fetch(self, paths: Iterable[str]) -> Path:
        """Sees to the local copies of these files; gives `copied_to`. Raises `LakeError` and `DiskError`."""
        actions = add_actions(self)
        sizes = dict(zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True))
        return self._copies.fetch(self.table_uri, self._options, {path: sizes[path] for path in paths})

    def transaction_version(self, app_id: str) -> int | None:
        """As delta-rs's own, which reads the log anew for each call. Raises `LakeError`."""
        known = (self.version(), app_id)
        if known not in self._transactions:
            self._transactions[known] = super().transaction_version(app_id)
        return self._transactions[known]


@contextmanager
def _in_words(uri: str, options: Mapping[str, str] | None = None) -> Iterator[None]:
    try:
        yield
    except (DeltaError, OSError, pa.ArrowInvalid) as error:
        raise table_error(uri, error, options) from error


def table_error(uri: str, error: Exception, options: Mapping[str, str] | None = None) -> LakeError:
    """The one sentence for a table that cannot be read or written, by what the cause looks like.

    Args:
        uri: the table's.
        error: what delta-rs or Arrow raised.
        options: of an object store; without them a damaged log there is not looked for.
    """
    uri = plain_path(uri)
    if is_remote(uri):
        known = known_store_fault(uri, error)
        damaged = _damage(uri, error, options) if known is None and options is not None else None
        return known or damaged or store_fault(uri, error)
    # delta-rs appends the frames of its own stack to some messages.
    cause = " ".join(str(error).split()).split(" 0: <unknown>")[0]
    folder = Path(uri)
    lowered = cause.lower()
    if "no space left" in lowered or "os error 28" in lowered or "enospc" in lowered:
        remedy = "The disk is full: free space, or point FRAUD_HOME (or FRAUD_LAKE_URI) to another disk"
    elif "os error 24" in lowered or "os error 23" in lowered:
        remedy = "Close other files or connections, or raise the limit of open files (`ulimit -n`)"
    elif any(sign in lowered for sign in ("permission denied", "read-only", "os error 13", "os error 30")):
        remedy = "It cannot be written: check its owner and mount, or point FRAUD_HOME (or FRAUD_LAKE_URI) elsewhere"
    elif folder.exists() and not os.access(folder, os.R_OK):
        remedy = "It cannot be read: check its permissions"
    elif (damaged := _damage(uri, error, {})) is not None:
        return damaged
    elif "invalid table version" in lowered or ("not found" in lowered and "_delta_log" in lowered):
        remedy = "Maintenance may have shortened the log meanwhile: run it again"
    else:
        remedy = "Check FRAUD_LAKE_URI and FRAUD_HOME"
    return LakeError(f"Table {uri} failed: {cause[:300]}. {remedy}.")


def _damage(uri: str, error: Exception, options: Mapping[str, str]) -> LakeError | None:
    """The error that names the damaged file, if that is what the table fails for."""
    if (named := named_data_file(str(error))) is not None:
        return named
    place = TableLocation(uri, dict(options))
    # To look for the damage may fail as reading did.
    with suppress(OSError, DeltaError, pa.ArrowInvalid):
        if (damage := log_damage(place)) is not None:
            return DamagedFileError(damage)
        handle = DeltaTable(uri, storage_options=dict(options) or None)
        whole = not options and _CORRUPT.search(str(error)) is not None
        damage = examine_data_files(place, handle, _FOOTERS, _FOOTER_SECONDS, whole=whole).damage
        return None if damage is None else DamagedFileError(damage)
    return None


def dataset_of(handle: DeltaTable, paths: Iterable[str] | None = None) -> Dataset:
    """Arrow dataset of the handle's version, of all files or of those in `paths` (as `add_actions` names them).

    Raises:
        LakeError: the files of an object store cannot be fetched.
    """
    whole = _whole(handle)
    wanted = None if paths is None else set(paths)
    return _of(handle, whole, [part for part in whole.get_fragments() if wanted is None or part.path in wanted])


def read(handle: DeltaTable, columns: Sequence[str] | None = None, where: Expression | None = None) -> pa.Table:
    """Rows of the handle's version as an Arrow table: `columns` (all) of those that meet `where` (all).

    Only files that can hold such rows are touched, by partition and statistics.

    Raises:
        LakeError: a file cannot be read.
    """
    whole = _whole(handle)
    dataset = _of(handle, whole, list(whole.get_fragments(where)))
    with _in_words(handle.table_uri):
        return dataset.to_table(columns=columns and list(columns), filter=where)


def batches(
    handle: DeltaTable,
    columns: Sequence[str],
    paths: Iterable[str] | None = None,
    where: Expression | None = None,
    batch_rows: int = READ_ROWS,
) -> Iterator[pa.RecordBatch]:
    """As `read`, a few batches of at most `batch_rows` rows in memory at a time, from the files in `paths` (all).

    Raises:
        LakeError: a file cannot be read.
    """
    dataset = dataset_of(handle, paths)
    with _in_words(handle.table_uri):
        scanner = dataset.scanner(
            columns=list(columns), filter=where, batch_size=batch_rows, batch_readahead=2, fragment_readahead=1
        )
        yield from scanner.to_batches()


def _whole(handle: DeltaTable) -> Dataset:
    """The dataset of all files; those of a remote table need not be there yet."""
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    if isinstance(handle, RemoteTable):
        return handle.to_pyarrow_dataset(filesystem=SubTreeFileSystem(str(handle.copied_to), LocalFileSystem()))
    return handle.to_pyarrow_dataset()


def _of(handle: DeltaTable, whole: Dataset, fragments: Sequence[Fragment]) -> Dataset:
    """The dataset of these fragments alone, ready to be read."""
    from pyarrow.dataset import FileSystemDataset

    if isinstance(handle, RemoteTable):
        handle.fetch(fragment.path for fragment in fragments)
    return FileSystemDataset(fragments, whole.schema, whole.format, whole.filesystem)
