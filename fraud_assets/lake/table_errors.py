"""Converts errors of delta-rs and Arrow on a table to `LakeError`, with the cause and the fix in one message."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from fraud_assets.errors import DamagedFileError, LakeError
from fraud_assets.lake.data_file_damage import examine_data_files, find_named_damage
from fraud_assets.lake.location import TableLocation
from fraud_assets.lake.log_damage import find_log_damage
from fraud_assets.lake.storage import is_remote, recognize_store_error, store_fault
from fraud_assets.system.paths import strip_file_scheme

_FOOTERS, _FOOTER_SECONDS = 10_000, 20.0
_CORRUPT = re.compile(r"corrupt|decompress|parquet|thrift", re.IGNORECASE)
"""Matches errors of Arrow and delta-rs about the content of a file. These errors do not name the file."""


@contextmanager
def convert_errors(uri: str, options: Mapping[str, str] | None = None) -> Iterator[None]:
    """Raises `LakeError` for errors of delta-rs and Arrow on the table at `uri`; see `table_error`."""
    try:
        yield
    except (DeltaError, OSError, pa.ArrowInvalid) as error:
        raise table_error(uri, error, options) from error


def table_error(uri: str, error: Exception, options: Mapping[str, str] | None = None) -> LakeError:
    """Returns the error for a table that cannot be read or written, with the most likely cause and its fix.

    Args:
        uri: The table.
        error: The exception of delta-rs or Arrow.
        options: delta-rs options of an object store. Without them, its log is not searched for damage.
    """
    uri = strip_file_scheme(uri)
    if is_remote(uri):
        known = recognize_store_error(uri, error)
        damaged = _find_damage(uri, error, options) if known is None and options is not None else None
        return known or damaged or store_fault(uri, error)
    # delta-rs appends stack frames of its own to some messages.
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
    elif (damaged := _find_damage(uri, error, {})) is not None:
        return damaged
    elif "invalid table version" in lowered or ("not found" in lowered and "_delta_log" in lowered):
        remedy = "Maintenance may have shortened the log meanwhile: run the command again"
    else:
        remedy = "Check FRAUD_LAKE_URI and FRAUD_HOME"
    return LakeError(f"Table {uri} failed: {cause[:300]}. {remedy}.")


def _find_damage(uri: str, error: Exception, options: Mapping[str, str]) -> LakeError | None:
    """Returns the error that names the damaged file; None if the table failed for another reason."""
    if (named := find_named_damage(str(error))) is not None:
        return named
    location = TableLocation(uri, dict(options))
    # The search can fail for the same reason as the read.
    with suppress(OSError, DeltaError, pa.ArrowInvalid):
        if (damage := find_log_damage(location)) is not None:
            return DamagedFileError(damage)
        handle = DeltaTable(uri, storage_options=dict(options) or None)
        whole = not options and _CORRUPT.search(str(error)) is not None
        damage = examine_data_files(location, handle, _FOOTERS, _FOOTER_SECONDS, whole=whole).damage
        return None if damage is None else DamagedFileError(damage)
    return None
