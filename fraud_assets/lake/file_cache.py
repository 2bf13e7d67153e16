"""Local copies of an object store's data files: fetched once, then read like those of a folder.

A data file of a Delta table never changes and its name is never used again, so a copy is right for ever. Every
process of this FRAUD_HOME uses the same copies, and no reader of Arrow or DuckDB waits for the network.
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

from fraud_assets.errors import DamagedFileError, disk_fault
from fraud_assets.lake.damage import of_data_file, size_state
from fraud_assets.lake.storage import store_fault
from fraud_assets.system.files import replaced_file

if TYPE_CHECKING:
    from deltalake.fs import DeltaStorageHandler

_AT_ONCE = 8
_BLOCK = 16_777_216
_UNUSED_SECONDS = 86_400
_IN_USE_SECONDS = 3_600
"""A reader that has just been given a copy opens it well within this."""


@dataclass(frozen=True)
class FileCache:
    """The copies of one lake in `folder`, `most_bytes` of them as far as they are not in use."""

    folder: Path
    most_bytes: int

    def place(self, uri: str) -> Path:
        """Folder that stands for a table's own, with the same paths below it."""
        return self.folder / sha256(uri.encode()).hexdigest()[:16]

    def fetch(self, uri: str, options: Mapping[str, str], sizes: Mapping[str, int]) -> Path:
        """Sees to it that the files of a table (bytes by path) are there; gives `place`.

        Raises:
            LakeError: a file cannot be read from the store.
            DiskError: it cannot be written here.
        """
        place = self.place(uri)
        missing = [path for path, size in sizes.items() if not _is_there(place / path, size)]
        if missing:
            self._fetch(uri, options, {path: sizes[path] for path in missing})
            self._make_room({place / path for path in sizes})
        return place

    def _fetch(self, uri: str, options: Mapping[str, str], sizes: Mapping[str, int]) -> None:
        from deltalake.fs import DeltaStorageHandler

        try:
            handler = DeltaStorageHandler(uri, dict(options), dict(sizes))
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(partial(_copy, handler, self.place(uri)), sizes.items()))
        except OSError as error:
            # The operating system's own errors have a number, those of delta-rs have none.
            raise disk_fault(error) or _damaged(uri, options, sizes) or store_fault(uri, error) from error

    def _make_room(self, in_use: Collection[Path]) -> None:
        """Removes what was not used for a day, then the least recently used while there is too much."""
        now = time.time()
        found = []
        for file in self.folder.rglob("*"):
            # Another process may remove it first.
            with suppress(FileNotFoundError):
                status = file.stat()
                if file.is_file() and file not in in_use:
                    found.append((now - status.st_mtime, status.st_size, file))
        spare = self.most_bytes - sum(size for _, size, _ in found) - sum(file.stat().st_size for file in in_use)
        for age, size, file in sorted(found, reverse=True):
            if age > _UNUSED_SECONDS or (spare < 0 and age > _IN_USE_SECONDS):
                file.unlink(missing_ok=True)
                spare += size


def _damaged(uri: str, options: Mapping[str, str], sizes: Mapping[str, int]) -> DamagedFileError | None:
    """The error for the first of the files that the store does not have, or has with another size."""
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.fs import FileType, PyFileSystem

    # Where the store does not answer, its own error is the one to tell.
    with suppress(OSError):
        for info in PyFileSystem(DeltaStorageHandler(uri, dict(options))).get_file_info(list(sizes)):
            state = size_state(None if info.type == FileType.NotFound else info.size, sizes[info.path])
            if state is not None:
                return DamagedFileError(of_data_file(f"{uri.rstrip('/')}/{info.path}", state))
    return None


def _is_there(file: Path, size: int) -> bool:
    try:
        if file.stat().st_size != size:
            return False
        os.utime(file)
    except FileNotFoundError:
        return False
    return True


def _copy(handler: DeltaStorageHandler, place: Path, item: tuple[str, int]) -> None:
    path, size = item
    target = place / path
    with replaced_file(target) as part, handler.open_input_file(path) as source:
        for start in range(0, size, _BLOCK):
            part.write(source.read(min(_BLOCK, size - start)))
    if target.stat().st_size != size:
        raise OSError(f"unexpected eof of {path}")
