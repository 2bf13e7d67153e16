"""What a stage has not taken yet from its source table, in bounded batches, in landing order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from fraud_assets.lake.duckdb_session import connect
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.positions import Positions, SourcePartition
from fraud_assets.lake.scan import register_view
from fraud_assets.settings import BatchLimits, Settings

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_STREAM = 'topic, topic_id, "partition"'
_POSITION = f'{_STREAM}, "offset"'
LANDING_ORDER = f"ingested_at, {_POSITION}"
_BODY = "value"
_ORDER = ("order landed", "order stream", "order offset")
_COMPRESSION = 8
"""How much smaller a data file may be than its bodies without a look at more of them than a batch needs."""


@dataclass(frozen=True)
class Pending:
    """Rows of a pinned source version beyond the stored positions.

    `files` are the only ones that can hold such rows; `start` and `target` are the offsets before the first
    and of the last pending row per stream.
    """

    source: DeltaTable
    files: tuple[str, ...]
    start: dict[SourcePartition, int]
    target: dict[SourcePartition, int]
    rows: int


def find_pending(source: DeltaTable, committed_offset: Callable[[SourcePartition], int], settings: Settings) -> Pending:
    """What `source` holds beyond the committed offsets, from file statistics first and position columns second."""
    files = tuple(_candidate_files(source, committed_offset))
    if not files:
        return Pending(source, (), {}, {}, 0)
    start: dict[SourcePartition, int] = {}
    target: dict[SourcePartition, int] = {}
    rows = 0
    with connect(settings) as connection:
        register_view(connection, "source", source, files)
        streams = connection.sql(
            f"""select {_STREAM}, min("offset"), max("offset"), count(*) from source group by all"""
        ).fetchall()
        begun: list[SourcePartition] = []
        for topic, topic_id, partition, first, last, count in streams:
            stream = SourcePartition(topic, topic_id, partition)
            known = committed_offset(stream)
            if last > known:
                start[stream], target[stream] = known, last
                if first > known:
                    rows += count
                else:
                    begun.append(stream)
        if begun:
            begun_bounds = Bounds({s: start[s] for s in begun}, {s: target[s] for s in begun})
            connection.register("bounds", _bounds(begun_bounds))
            rows += connection.sql(f"select count(*) from {_WITHIN_BOUNDS}").fetchall()[0][0]
    return Pending(source, files, start, target, rows)


@dataclass(frozen=True)
class Bounds:
    """A batch: per stream the offset before its first row and the offset of its last."""

    start: dict[SourcePartition, int]
    target: dict[SourcePartition, int]


def next_bounds(work: Pending, settings: Settings, limits: BatchLimits, until: Positions | None = None) -> Bounds:
    """The next batch in landing order: a prefix of every stream.

    It has at most FRAUD_BATCH_ROWS rows. If the source keeps message bodies, it also has at most FRAUD_BATCH_BYTES of
    them, or a single larger message.

    Args:
        work: the pending rows.
        settings: DuckDB's memory.
        limits: the most rows and bytes of message bodies.
        until: if given, no row beyond these positions is in the batch: a killed run began a batch up to them.

    Raises:
        LakeError: a file cannot be read.
    """
    target = work.target if until is None else {s: min(work.target[s], until[s]) for s in work.target if s in until}
    whole = Bounds({stream: work.start[stream] for stream in target}, dict(target))
    if _BODY not in work.source.schema().to_arrow().names:
        return whole if work.rows <= limits.rows else _first_rows(work, whole, settings, limits)
    return _first_bytes(work, whole, settings, limits)


def _first_rows(work: Pending, whole: Bounds, settings: Settings, limits: BatchLimits) -> Bounds:
    """The first FRAUD_BATCH_ROWS rows in landing order."""
    with connect(settings) as connection:
        register_view(connection, "source", work.source, work.files)
        connection.register("bounds", _bounds(whole))
        _order_rows(connection, limits.rows)
        cut = connection.sql('select stream, max("offset") from ordered group by stream').fetchall()
    return _up_to(whole, cut)


def _first_bytes(work: Pending, whole: Bounds, settings: Settings, limits: BatchLimits) -> Bounds:
    """The first rows in landing order, as many as both limits allow.

    Body lengths are read file by file, in about landing order, and only as far as the batch reaches: a long backlog
    is not read once for each batch.
    """
    is_ordered = False
    with connect(settings) as connection:
        connection.register("bounds", _bounds(whole))
        connection.execute('create or replace temp table lengths (stream integer, "offset" bigint, bytes bigint)')
        groups = _file_groups(work, limits.bytes)
        for number, files in enumerate(groups, start=1):
            register_view(connection, "source", work.source, files)
            connection.execute(
                f"""insert into lengths
                select stream, source."offset", coalesce(octet_length({_BODY}), 0) from {_WITHIN_BOUNDS}"""
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
            cut, is_final = _within_bytes(connection, limits.bytes)
            if is_final:
                return _up_to(whole, cut)
    return whole


def _order_rows(connection: DuckDBPyConnection, limit: int) -> None:
    """Makes the table `ordered` of the first rows of `source` within `bounds`: `stream`, `offset`, and `number`."""
    # The running maximum keeps the cut a prefix of each stream even where a clock went backwards.
    connection.execute(
        f"""
        create or replace temp table ordered as
        with landed as (
            select stream, source."offset", max(ingested_at) over (
                partition by stream order by source."offset"
            ) as landed
            from {_WITHIN_BOUNDS}
        ), first_rows as (
            select * from landed order by landed, stream, "offset" limit {limit}
        )
        select stream, "offset", row_number() over (order by landed, stream, "offset") as number from first_rows
        """
    )


def _within_bytes(connection: DuckDBPyConnection, limit: int) -> tuple[list[tuple[int, int]], bool]:
    """The last offset per stream of the first `limit` bytes of `ordered`, and whether that is the final answer.

    It is not final if the length of a row is unknown before the limit is reached.
    """
    connection.execute(
        """
        create or replace temp table reached as
        select stream, "offset", number, bytes, sum(bytes) over (order by number) as total,
            bool_or(bytes is null) over (order by number) as is_unknown
        from ordered left join lengths using (stream, "offset")
        """
    )
    kept = f"not is_unknown and (total <= {limit} or number = 1)"
    cut = connection.sql(f'select stream, max("offset") from reached where {kept} group by stream').fetchall()
    first_left = connection.sql(f"select is_unknown from reached where not ({kept}) order by number limit 1").fetchall()
    return cut, not first_left or not first_left[0][0]


def _file_groups(work: Pending, batch_bytes: int) -> list[list[str]]:
    """The files in the order of their first landing, some at a time: less than a batch of bodies, if they compress."""
    actions = add_actions(work.source)
    columns = (actions[name].to_pylist() for name in ("path", "size_bytes", "min.ingested_at"))
    known = {path: (landed is not None, landed, size) for path, size, landed in zip(*columns, strict=True)}
    groups: list[list[str]] = []
    reached = 0
    # A file without statistics may hold the first rows.
    for path in sorted(work.files, key=lambda path: known[path][:2]):
        if not groups or reached + known[path][2] > batch_bytes // _COMPRESSION:
            groups.append([])
            reached = 0
        groups[-1].append(path)
        reached += known[path][2]
    return groups


def _up_to(whole: Bounds, cut: Sequence[tuple[int, int]]) -> Bounds:
    streams = sorted(whole.target)
    target = {streams[number]: last for number, last in cut}
    return Bounds({stream: whole.start[stream] for stream in target}, target)


def read_batch(work: Pending, settings: Settings, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of `next_bounds`, as `rows_within` gives them."""
    return rows_within(work, next_bounds(work, settings, settings.batch_limits), settings, columns)


def rows_within(work: Pending, bounds: Bounds, settings: Settings, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of the batch in landing order; with `columns` only those are read.

    Raises:
        LakeError: a file cannot be read.
    """
    with connect(settings) as connection:
        register_view(connection, "source", work.source, work.files)
        connection.register("bounds", _bounds(bounds))
        chosen = "source.*" if columns is None else ", ".join(f'source."{name}"' for name in columns)
        order = f'source.ingested_at as "{_ORDER[0]}", stream as "{_ORDER[1]}", source."offset" as "{_ORDER[2]}"'
        rows = connection.sql(f"select {chosen}, {order} from {_WITHIN_BOUNDS}").to_arrow_table()
    keys = rows.select(list(_ORDER))
    rows = rows.drop_columns(list(_ORDER))
    # DuckDB would sort whole rows, which takes several times the memory of the bodies.
    places = pc.sort_indices(keys, [(name, "ascending") for name in _ORDER]).to_numpy()
    return rows if (places[1:] > places[:-1]).all() else rows.take(pa.array(places))


_WITHIN_BOUNDS = """
    source join bounds on source.topic = bounds.topic and source.topic_id = bounds.topic_id
        and source."partition" = bounds."partition"
        and source."offset" > bounds.first and source."offset" <= bounds.last
"""


def _bounds(bounds: Bounds) -> pa.Table:
    """The streams with their bounds, numbered in landing order, which is cheaper to sort by than names."""
    streams = sorted(bounds.target)
    return pa.table(
        {
            "stream": pa.array(range(len(streams)), pa.int32()),
            "topic": pa.array([s.topic for s in streams], pa.string()),
            "topic_id": pa.array([s.topic_id for s in streams], pa.string()),
            "partition": pa.array([s.partition for s in streams], pa.int32()),
            "first": pa.array([bounds.start[s] for s in streams], pa.int64()),
            "last": pa.array([bounds.target[s] for s in streams], pa.int64()),
        }
    )


def _candidate_files(source: DeltaTable, committed_offset: Callable[[SourcePartition], int]) -> list[str]:
    """Files that may hold rows beyond the stored positions, judged by their statistics."""
    actions = add_actions(source)
    if actions.num_rows == 0:
        return []
    names = ("path", "min.topic", "max.topic", "min.topic_id", "max.topic_id", "min.partition", "max.partition")
    columns = [actions.column(name).to_pylist() for name in (*names, "max.offset")]
    known: dict[SourcePartition, int] = {}

    def contained(stream: SourcePartition, offset: int) -> bool:
        if stream not in known:
            known[stream] = committed_offset(stream)
        return offset <= known[stream]

    files = []
    for path, topic, topic_max, topic_id, topic_id_max, partition, partition_max, offset in zip(*columns, strict=True):
        one_source = topic is not None and topic == topic_max and topic_id is not None and topic_id == topic_id_max
        # Statistics of long names are cut short; such a file is read rather than trusted.
        if (
            not one_source
            or offset is None
            or not all(
                contained(SourcePartition(topic, topic_id, number), offset)
                for number in range(partition, partition_max + 1)
            )
        ):
            files.append(path)
    return files
