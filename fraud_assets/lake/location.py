"""The location of a table, with the options to access its files from any machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fraud_assets.lake.storage import is_remote

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


@dataclass(frozen=True)
class TableLocation:
    """The folder of a table and the delta-rs options to reach it, from this machine or another."""

    uri: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def path(self) -> str:
        """The folder for messages: a local path, or the URI of an object store."""
        return self.uri.removeprefix("file://").rstrip("/")

    def filesystem(self, sizes: Mapping[str, int] | None = None) -> FileSystem:
        """Returns the folder as an Arrow file system.

        Args:
            sizes: Sizes of files in bytes, by path; each known size saves a request to an object store.
        """
        from pyarrow.fs import LocalFileSystem, PyFileSystem, SubTreeFileSystem

        if not is_remote(self.uri):
            return SubTreeFileSystem(self.uri.removeprefix("file://"), LocalFileSystem())
        from deltalake.fs import DeltaStorageHandler

        return PyFileSystem(DeltaStorageHandler(self.uri, dict(self.options), dict(sizes or {})))
