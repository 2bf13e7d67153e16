"""Keeps local copies of an object store's data files: each file is fetched once and then read from disk.

A data file of a Delta table never changes and its name is never used again, so a copy stays valid. All processes of
this FRAUD_HOME share the copies, and readers in Arrow and DuckDB do not wait for the network.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from fraud_assets.errors import DamagedFileError, convert_disk_error
from fraud_assets.lake.data_file_damage import describe_damaged_file
from fraud_assets.lake.file_state import describe_size_fault
from fraud_assets.lake.storage import store_fault
from fraud_assets.system.files import replaced_file

if TYPE_CHECKING:
    from deltalake.fs import DeltaStorageHandler

_PARALLEL_FETCHES = 8
_BLOCK_BYTES = 16_777_216
_UNUSED_SECONDS = 86_400
_IN_USE_SECONDS = 3_600
"""A reader opens a fetched copy well within this time."""


@dataclass(frozen=True)
class FileCache:
    """The copies of one lake.

    Attributes:
        folder: Folder of the copies.
        max_bytes: Size limit; copies in use may exceed it.
    """

    folder: Path
    max_bytes: int

    def folder_of(self, uri: str) -> Path:
        """Returns the folder of a table's copies, with the same paths below it as in the table's folder."""
        return self.folder / sha256(uri.encode()).hexdigest()[:16]

    def fetch(self, uri: str, options: Mapping[str, str], sizes: Mapping[str, int]) -> Path:
        """Fetches the files of a table that have no copy yet; returns `folder_of` the table.

        Args:
            uri: The table.
            options: delta-rs options of the store.
            sizes: Sizes of the files in bytes, by path.

        Raises:
            LakeError: A file cannot be read from the store.
            DiskError: A copy cannot be written.
        """
        folder = self.folder_of(uri)
        missing = [path for path, size in sizes.items() if not _is_cached(folder / path, size)]
        if missing:
            self._fetch(uri, options, {path: sizes[path] for path in missing})
            self._make_room({folder / path for path in sizes})
        return folder

    def _fetch(self, uri: str, options: Mapping[str, str], sizes: Mapping[str, int]) -> None:
        from deltalake.fs import DeltaStorageHandler

        try:
            handler = DeltaStorageHandler(uri, dict(options), dict(sizes))
            with ThreadPoolExecutor(_PARALLEL_FETCHES) as pool:
                list(pool.map(partial(_copy, handler, self.folder_of(uri)), sizes.items()))
        except OSError as error:
            # Errors of the operating system have a number; those of delta-rs have none.
            raise convert_disk_error(error) or _find_damage(uri, options, sizes) or store_fault(uri, error) from error

    def _make_room(self, in_use: Collection[Path]) -> None:
        """Removes copies that were not used for a day, then the least recently used ones until the limit is met."""
        now = time.time()
        found = []
        for file in self.folder.rglob("*"):
            # Another process may remove it first.
            with suppress(FileNotFoundError):
                status = file.stat()
                if file.is_file() and file not in in_use:
                    found.append((now - status.st_mtime, status.st_size, file))
        spare = self.max_bytes - sum(size for _, size, _ in found) - sum(file.stat().st_size for file in in_use)
        for age, size, file in sorted(found, reverse=True):
            if age > _UNUSED_SECONDS or (spare < 0 and age > _IN_USE_SECONDS):
                file.unlink(missing_ok=True)
                spare += size


def _find_damage(uri: str, options: Mapping[str, str], sizes: Mapping[str, int]) -> DamagedFileError | None:
    """Returns the error for the first file that the store lacks or has with another size; None if there is none."""
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.fs import FileType, PyFileSystem

    # If the store does not answer, the caller reports the original error.
    with suppress(OSError):
        for info in PyFileSystem(DeltaStorageHandler(uri, dict(options))).get_file_info(list(sizes)):
            found = None if info.type == FileType.NotFound else info.size
            if (fault := describe_size_fault(found, sizes[info.path])) is not None:
                return DamagedFileError(describe_damaged_file(f"{uri.rstrip('/')}/{info.path}", fault))
    return None


def _is_cached(file: Path, size: int) -> bool:
    try:
        if file.stat().st_size != size:
            return False
        os.utime(file)
    except FileNotFoundError:
        return False
    return True


def _copy(handler: DeltaStorageHandler, folder: Path, item: tuple[str, int]) -> None:
    path, size = item
    target = folder / path
    with replaced_file(target) as part, handler.open_input_file(path) as source:
        for start in range(0, size, _BLOCK_BYTES):
            part.write(source.read(min(_BLOCK_BYTES, size - start)))
    if target.stat().st_size != size:
        raise OSError(f"unexpected eof of {path}")
