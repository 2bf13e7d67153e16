"""Registers Delta tables as DuckDB views of only the files that a query needs.

DuckDB's own Parquet reader takes a quarter of the time of an Arrow dataset, so it is used if possible. `delta_scan`
would download an extension, so delta-rs lists the files, and files of an object store are read from local copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from fraud_assets.lake.duckdb_session import quote_name, record_files
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.schema_check import UPGRADED
from fraud_assets.lake.tables import RemoteTable, open_dataset
from fraud_assets.system.paths import strip_file_scheme

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Bound = date | datetime | int | None

_SPECIAL = frozenset("*?[%=")
"""Characters of a folder's name that DuckDB would read as a glob, an escape or a partition."""
_STATISTICS_CUT = timedelta(milliseconds=1)
"""Delta's file statistics truncate times to milliseconds."""


def find_files_within(handle: DeltaTable, ranges: Mapping[str, tuple[Bound, Bound]]) -> list[str]:
    """Returns the paths of the files that can contain rows within all ranges, by partition and statistics.

    Args:
        handle: The version of the files.
        ranges: Lowest and highest value by column, both inclusive; None for an open end.
    """
    actions = add_actions(handle)
    keep = pa.repeat(True, actions.num_rows)
    for column, (low, high) in ranges.items():
        partition = f"partition.{column}"
        minimum, maximum = (
            (partition, partition) if partition in actions.column_names else (f"min.{column}", f"max.{column}")
        )
        lowest = low - _STATISTICS_CUT if isinstance(low, datetime) else low
        for name, limit, compare in ((maximum, lowest, pc.greater_equal), (minimum, high, pc.less_equal)):
            if limit is None or name not in actions.column_names:
                continue
            values = actions[name]
            # A file without statistics may contain such rows.
            keep = pc.and_(keep, pc.fill_null(compare(values, pa.scalar(limit, values.type)), True))
    return actions.filter(keep)["path"].to_pylist()


def register_view(
    connection: DuckDBPyConnection, name: str, handle: DeltaTable, files: Sequence[str] | None = None
) -> None:
    """Creates a view of the handle's version.

    Args:
        connection: The DuckDB connection.
        name: Name of the view.
        handle: The table.
        files: Files to include, as named by `add_actions`; all if None.

    Raises:
        LakeError: The files of an object store cannot be fetched.
    """
    schema = pa.schema(handle.schema().to_arrow())
    if files is None:
        files = add_actions(handle)["path"].to_pylist()
    if not files:
        connection.register(name, schema.empty_table())
    elif (source := _parquet_source(connection, handle, files, schema)) is not None:
        columns = ", ".join(map(quote_name, schema.names))
        if UPGRADED in handle.metadata().configuration:
            connection.register(f"{name}_columns", schema.empty_table())
            source = f"(from {name}_columns union all by name from {source})"
        connection.execute(f"create or replace temp view {name} as select {columns} from {source}")
    else:
        connection.register(name, open_dataset(handle, files))


def _parquet_source(
    connection: DuckDBPyConnection, handle: DeltaTable, files: Sequence[str], schema: pa.Schema
) -> str | None:
    """Returns the files as a call of DuckDB's `read_parquet`; None if only delta-rs can read them."""
    root = str(handle.copied_to) if isinstance(handle, RemoteTable) else strip_file_scheme(handle.table_uri)
    # DuckDB would need an extension for an object store. A higher reader version can mean deletion vectors or renamed
    # columns.
    if "://" in root or _SPECIAL & set(root) or handle.protocol().min_reader_version > 1:
        return None
    partitions = handle.metadata().partition_columns
    # The log defines the partition values; folder names only follow them by convention. DuckDB reads partitions from
    # folder names, so this is limited to one partition column of type date.
    if any(not pa.types.is_date(schema.field(column).type) for column in partitions) or len(partitions) > 1:
        return None
    hive = ""
    if partitions:
        values = dict(zip(*(add_actions(handle)[name].to_pylist() for name in ("path", f"partition.{partitions[0]}")),
                          strict=True))  # fmt: skip
        if not all(path.startswith(f"{partitions[0]}={values[path]}/") and path.count("=") == 1 for path in files):
            return None
        hive = f", hive_partitioning = true, hive_types = {{{partitions[0]}: date}}"
    if isinstance(handle, RemoteTable):
        handle.fetch(files)
    paths = [f"{root.rstrip('/')}/{path}" for path in files]
    record_files(connection, paths)
    quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    by_name = ", union_by_name = true" if UPGRADED in handle.metadata().configuration else ""
    return f"read_parquet([{quoted}]{hive}{by_name})"
