"""Finds the rows of a source table that a stage has not processed yet, and cuts them into batches in landing order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from fraud_assets.lake.duckdb_session import connect
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.position_sql import same_source_partition, source_partition_columns
from fraud_assets.lake.positions import Positions, SourcePartition, build_partition_arrays
from fraud_assets.lake.scan import register_view
from fraud_assets.settings import BatchLimits, Settings

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_BODY = "value"
_ORDER = ("order landed", "order partition", "order offset")
_COMPRESSION = 8
"""Assumed compression of bodies in data files. A higher value measures more bodies than a batch needs."""


@dataclass(frozen=True)
class Pending:
    """Rows of a pinned version of a table beyond given positions, for example those that a later table has committed.

    Attributes:
        source: The pinned version.
        files: The only files that can contain pending rows.
        start: Per source partition, the offset before its first pending row.
        target: Per source partition, the offset of its last pending row.
        rows: Number of pending rows.
    """

    source: DeltaTable
    files: tuple[str, ...]
    start: dict[SourcePartition, int]
    target: dict[SourcePartition, int]
    rows: int


def find_pending(source: DeltaTable, committed_offset: Callable[[SourcePartition], int], settings: Settings) -> Pending:
    """Finds the rows of `source` beyond given offsets, first from file statistics, then from position columns.

    Args:
        source: The source table's version.
        committed_offset: Returns the last committed offset of a source partition; -1 for none.
        settings: DuckDB's memory.

    Raises:
        LakeError: A file cannot be read.
    """
    files = tuple(_candidate_files(source, committed_offset))
    if not files:
        return Pending(source, (), {}, {}, 0)
    start: dict[SourcePartition, int] = {}
    target: dict[SourcePartition, int] = {}
    rows = 0
    with connect(settings) as connection:
        register_view(connection, "source", source, files)
        spans = connection.sql(
            f"""select {source_partition_columns()}, min("offset"), max("offset"), count(*) from source group by all"""
        ).fetchall()
        started: list[SourcePartition] = []
        for topic, topic_id, number, first, last, count in spans:
            partition = SourcePartition(topic, topic_id, number)
            committed = committed_offset(partition)
            if last > committed:
                start[partition], target[partition] = committed, last
                if first > committed:
                    rows += count
                else:
                    started.append(partition)
        if started:
            started_bounds = Bounds({p: start[p] for p in started}, {p: target[p] for p in started})
            connection.register("bounds", _bounds_table(started_bounds))
            rows += connection.sql(f"select count(*) from {_WITHIN_BOUNDS}").fetchall()[0][0]
    return Pending(source, files, start, target, rows)


@dataclass(frozen=True)
class Bounds:
    """A batch: per source partition, the offset before its first row and the offset of its last row."""

    start: dict[SourcePartition, int]
    target: dict[SourcePartition, int]


def next_bounds(work: Pending, settings: Settings, limits: BatchLimits, until: Positions | None = None) -> Bounds:
    """Returns the next batch in landing order: a prefix of the pending rows of every source partition.

    A batch has at most FRAUD_BATCH_ROWS rows. If the source contains message bodies, it has at most FRAUD_BATCH_BYTES
    bytes of them, or one larger message.

    Args:
        work: The pending rows.
        settings: DuckDB's memory.
        limits: Maximum rows and bytes of message bodies.
        until: Positions beyond which no row is in the batch: the bounds of a batch that a killed run started.

    Raises:
        LakeError: A file cannot be read.
    """
    target = work.target if until is None else {p: min(work.target[p], until[p]) for p in work.target if p in until}
    whole = Bounds({partition: work.start[partition] for partition in target}, dict(target))
    if _BODY not in work.source.schema().to_arrow().names:
        return whole if work.rows <= limits.rows else _first_rows(work, whole, settings, limits)
    return _first_bytes(work, whole, settings, limits)


def _first_rows(work: Pending, whole: Bounds, settings: Settings, limits: BatchLimits) -> Bounds:
    """Returns the first rows in landing order, up to the limit of rows."""
    with connect(settings) as connection:
        register_view(connection, "source", work.source, work.files)
        connection.register("bounds", _bounds_table(whole))
        _order_rows(connection, limits.rows)
        cut = connection.sql('select partition_index, max("offset") from ordered group by partition_index').fetchall()
    return _cut_bounds(whole, cut)


def _first_bytes(work: Pending, whole: Bounds, settings: Settings, limits: BatchLimits) -> Bounds:
    """Returns the first rows in landing order that both limits allow.

    Body lengths are read file by file in approximate landing order, and only as far as the batch reaches. So a long
    backlog is not read again for every batch.
    """
    is_ordered = False
    with connect(settings) as connection:
        connection.register("bounds", _bounds_table(whole))
        connection.execute(
            'create or replace temp table lengths (partition_index integer, "offset" bigint, bytes bigint)'
        )
        groups = _file_groups(work, limits.bytes)
        for number, files in enumerate(groups, start=1):
            register_view(connection, "source", work.source, files)
            connection.execute(
                f"""insert into lengths
                select partition_index, source."offset", coalesce(octet_length({_BODY}), 0) from {_WITHIN_BOUNDS}"""
            )
            rows, read = connection.sql("select count(*), coalesce(sum(bytes), 0) from lengths").fetchall()[0]
            if rows <= limits.rows and read <= limits.bytes:
                if number == len(groups):
                    return whole
                continue
            if not is_ordered:
                register_view(connection, "source", work.source, work.files)
                _order_rows(connection, limits.rows)
                is_ordered = True
            cut, is_final = _cut_at_bytes(connection, limits.bytes)
            if is_final:
                return _cut_bounds(whole, cut)
    return whole


def _order_rows(connection: DuckDBPyConnection, limit: int) -> None:
    """Creates the table `ordered` (`partition_index`, `offset`, `number`) of the first rows of `source` in `bounds`."""
    # With the running maximum, the cut is a prefix of each source partition even if a clock was set back.
    connection.execute(
        f"""
        create or replace temp table ordered as
        with landed as (
            select partition_index, source."offset", max(ingested_at) over (
                partition by partition_index order by source."offset"
            ) as landed
            from {_WITHIN_BOUNDS}
        ), first_rows as (
            select * from landed order by landed, partition_index, "offset" limit {limit}
        )
        select partition_index, "offset", row_number() over (order by landed, partition_index, "offset") as number
        from first_rows
        """
    )


def _cut_at_bytes(connection: DuckDBPyConnection, limit: int) -> tuple[list[tuple[int, int]], bool]:
    """Returns the last offset per partition index within the first `limit` bytes of `ordered`, and whether it is final.

    The result is not final if a row with an unknown length comes before the limit is reached.
    """
    connection.execute(
        """
        create or replace temp table reached as
        select partition_index, "offset", number, bytes, sum(bytes) over (order by number) as total,
            bool_or(bytes is null) over (order by number) as is_unknown
        from ordered left join lengths using (partition_index, "offset")
        """
    )
    kept = f"not is_unknown and (total <= {limit} or number = 1)"
    cut = connection.sql(
        f'select partition_index, max("offset") from reached where {kept} group by partition_index'
    ).fetchall()
    first_left = connection.sql(f"select is_unknown from reached where not ({kept}) order by number limit 1").fetchall()
    return cut, not first_left or not first_left[0][0]


def _file_groups(work: Pending, batch_bytes: int) -> list[list[str]]:
    """Returns the files by their first landing, in groups that should each contain less than a batch of bodies."""
    actions = add_actions(work.source)
    columns = (actions[name].to_pylist() for name in ("path", "size_bytes", "min.ingested_at"))
    known = {path: (landed is not None, landed, size) for path, size, landed in zip(*columns, strict=True)}
    groups: list[list[str]] = []
    reached = 0
    # A file without statistics may contain the first rows.
    for path in sorted(work.files, key=lambda path: known[path][:2]):
        if not groups or reached + known[path][2] > batch_bytes // _COMPRESSION:
            groups.append([])
            reached = 0
        groups[-1].append(path)
        reached += known[path][2]
    return groups


def _cut_bounds(whole: Bounds, cut: Sequence[tuple[int, int]]) -> Bounds:
    partitions = sorted(whole.target)
    target = {partitions[index]: last for index, last in cut}
    return Bounds({partition: whole.start[partition] for partition in target}, target)


def read_batch(work: Pending, settings: Settings, columns: Sequence[str] | None = None) -> pa.Table:
    """Returns the rows of the next batch; see `next_bounds` and `read_rows_within`."""
    return read_rows_within(work, next_bounds(work, settings, settings.batch_limits), settings, columns)


def read_rows_within(
    work: Pending, bounds: Bounds, settings: Settings, columns: Sequence[str] | None = None
) -> pa.Table:
    """Returns the rows of a batch in landing order.

    Args:
        work: The pending rows.
        bounds: The bounds of the batch.
        settings: DuckDB's memory.
        columns: Columns to read; all if None.

    Raises:
        LakeError: A file cannot be read.
    """
    with connect(settings) as connection:
        register_view(connection, "source", work.source, work.files)
        connection.register("bounds", _bounds_table(bounds))
        chosen = "source.*" if columns is None else ", ".join(f'source."{name}"' for name in columns)
        order = (
            f'source.ingested_at as "{_ORDER[0]}", partition_index as "{_ORDER[1]}", source."offset" as "{_ORDER[2]}"'
        )
        rows = connection.sql(f"select {chosen}, {order} from {_WITHIN_BOUNDS}").to_arrow_table()
    keys = rows.select(list(_ORDER))
    rows = rows.drop_columns(list(_ORDER))
    # DuckDB would sort whole rows, which takes several times the memory of the bodies.
    order_indices = pc.sort_indices(keys, [(name, "ascending") for name in _ORDER]).to_numpy()
    return rows if (order_indices[1:] > order_indices[:-1]).all() else rows.take(pa.array(order_indices))


_WITHIN_BOUNDS = f"""
    source join bounds on {same_source_partition("source", "bounds")}
        and source."offset" > bounds.first and source."offset" <= bounds.last
"""


def _bounds_table(bounds: Bounds) -> pa.Table:
    """Returns the source partitions with their bounds and an index in landing order, which sorts faster than names."""
    partitions = sorted(bounds.target)
    return pa.table(
        {
            "partition_index": pa.array(range(len(partitions)), pa.int32()),
            **build_partition_arrays(partitions),
            "first": pa.array([bounds.start[partition] for partition in partitions], pa.int64()),
            "last": pa.array([bounds.target[partition] for partition in partitions], pa.int64()),
        }
    )


def _candidate_files(source: DeltaTable, committed_offset: Callable[[SourcePartition], int]) -> list[str]:
    """Returns the files that can contain rows beyond the committed positions, according to their statistics."""
    actions = add_actions(source)
    if actions.num_rows == 0:
        return []
    names = ("path", "min.topic", "max.topic", "min.topic_id", "max.topic_id", "min.partition", "max.partition")
    columns = [actions.column(name).to_pylist() for name in (*names, "max.offset")]
    known: dict[SourcePartition, int] = {}

    def is_committed(source_partition: SourcePartition, offset: int) -> bool:
        if source_partition not in known:
            known[source_partition] = committed_offset(source_partition)
        return offset <= known[source_partition]

    files = []
    for path, topic, topic_max, topic_id, topic_id_max, partition, partition_max, offset in zip(*columns, strict=True):
        one_source = topic is not None and topic == topic_max and topic_id is not None and topic_id == topic_id_max
        # Statistics truncate long names, so such a file is read.
        if (
            not one_source
            or offset is None
            or not all(
                is_committed(SourcePartition(topic, topic_id, number), offset)
                for number in range(partition, partition_max + 1)
            )
        ):
            files.append(path)
    return files
