"""Checks single files: whether they exist, have the expected size and can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_BATCH_ROWS = 1_024


def describe_size_fault(found: int | None, logged: int) -> str | None:
    """Describes the fault of a file with a wrong size. Returns None if the size is correct.

    Args:
        found: The file's size in bytes; None if it does not exist.
        logged: Its size in bytes according to the table's log.
    """
    if found is None:
        return "is missing"
    return None if found == logged else f"has {found:,} bytes, but {logged:,} according to the log"


def describe_parquet_fault(filesystem: FileSystem, path: str, size: int, *, whole: bool = False) -> str | None:
    """Describes the fault of a Parquet file that cannot be read. Returns None if it can be read.

    Args:
        filesystem: The file system of the path.
        path: The file.
        size: Its size in bytes.
        whole: Whether to read the whole file, not only its footer.
    """
    from pyarrow.parquet import ParquetFile

    if not size:
        return "is empty"
    try:
        with filesystem.open_input_file(path) as file:
            parquet = ParquetFile(file)
            for _ in parquet.iter_batches(_BATCH_ROWS) if whole else ():
                pass
            parquet.close()
    except FileNotFoundError:
        return "is missing"
    except (pa.ArrowInvalid, OSError) as error:
        cause = " ".join(str(error).split()).split(". ")[0]
        return f"cannot be read ({cause[:120].rstrip('.')})"
    return None


def list_sizes(filesystem: FileSystem, folder: str, *, recursive: bool = False) -> dict[str, int]:
    """Returns the sizes of the files in a folder in bytes, by path below it; empty if the folder does not exist.

    Raises:
        OSError: The folder cannot be listed.
    """
    from pyarrow.fs import FileSelector

    prefix = f"{folder}/" if folder else ""
    selector = FileSelector(folder, allow_not_found=True, recursive=recursive)
    try:
        found = filesystem.get_file_info(selector)
    except FileNotFoundError:
        # Arrow raises this if another writer creates the folder while Arrow lists it.
        found = filesystem.get_file_info(selector)
    return {info.path.removeprefix(prefix).lstrip("/"): info.size for info in found if info.is_file}


def read_bytes(filesystem: FileSystem, path: str) -> bytes:
    """Returns the content of a file."""
    with filesystem.open_input_file(path) as file:
        return file.read()
