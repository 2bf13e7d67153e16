"""What a stage has not taken yet from its source table, in bounded batches, in landing order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
from deltalake import DeltaTable

from fraud_assets.engines.duckdb import connect
from fraud_assets.lake.positions import Positions, Stream
from fraud_assets.lake.scan import register
from fraud_assets.lake.tables import add_actions
from fraud_assets.settings import Settings

_STREAM = 'topic, lineage, "partition"'
_POSITION = f'{_STREAM}, "offset"'
LANDING_ORDER = f"ingested_at, {_POSITION}"


@dataclass(frozen=True)
class Pending:
    """Rows of a pinned source version beyond the stored positions.

    `files` are the only ones that can hold such rows; `start` and `target` are the offsets before the first
    and of the last pending row per stream.
    """

    source: DeltaTable
    files: tuple[str, ...]
    start: dict[Stream, int]
    target: dict[Stream, int]
    rows: int


def pending(source: DeltaTable, stored: Callable[[Stream], int], settings: Settings) -> Pending:
    """What `source` holds beyond `stored`, from file statistics first and position columns second."""
    files = tuple(_candidate_files(source, stored))
    if not files:
        return Pending(source, (), {}, {}, 0)
    start: dict[Stream, int] = {}
    target: dict[Stream, int] = {}
    rows = 0
    with connect(settings) as connection:
        register(connection, "source", source, files)
        streams = connection.sql(
            f"""select {_STREAM}, min("offset"), max("offset"), count(*) from source group by all"""
        ).fetchall()
        begun: list[Stream] = []
        for topic, lineage, partition, first, last, count in streams:
            stream = Stream(topic, lineage, partition)
            known = stored(stream)
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

    start: dict[Stream, int]
    target: dict[Stream, int]


def next_bounds(work: Pending, settings: Settings, until: Positions | None = None) -> Bounds:
    """The next batch in landing order: at most FRAUD_BATCH_ROWS rows, a prefix of every stream.

    With `until` it is exactly the rows up to those positions: the batch that a killed run began.
    """
    target = work.target if until is None else {s: min(work.target[s], until[s]) for s in work.target if s in until}
    if until is None and work.rows > settings.batch_rows:
        with connect(settings) as connection:
            register(connection, "source", work.source, work.files)
            connection.register("bounds", _bounds(Bounds(work.start, target)))
            # The running maximum keeps the cut a prefix of each stream even where a clock went backwards.
            cut = connection.sql(
                f"""
                with ordered as (
                    select stream, source."offset", max(ingested_at) over (
                        partition by stream order by source."offset"
                    ) as landed
                    from {_WITHIN_BOUNDS}
                ), first_rows as (
                    select stream, "offset" from ordered order by landed, stream, "offset" limit {settings.batch_rows}
                )
                select stream, max("offset") from first_rows group by stream
                """
            ).fetchall()
        streams = sorted(target)
        target = {streams[number]: last for number, last in cut}
    return Bounds({stream: work.start[stream] for stream in target}, dict(target))


def read_batch(work: Pending, settings: Settings, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of `next_bounds`, as `rows_within` gives them."""
    return rows_within(work, next_bounds(work, settings), settings, columns)


def rows_within(work: Pending, bounds: Bounds, settings: Settings, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of the batch in landing order; with `columns` only those are read."""
    with connect(settings) as connection:
        register(connection, "source", work.source, work.files)
        connection.register("bounds", _bounds(bounds))
        chosen = "source.*" if columns is None else ", ".join(f'source."{name}"' for name in columns)
        return connection.sql(
            f"""select {chosen} from {_WITHIN_BOUNDS} order by source.ingested_at, stream, source."offset" """
        ).to_arrow_table()


_WITHIN_BOUNDS = """
    source join bounds on source.topic = bounds.topic and source.lineage = bounds.lineage
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
            "lineage": pa.array([s.lineage for s in streams], pa.string()),
            "partition": pa.array([s.partition for s in streams], pa.int32()),
            "first": pa.array([bounds.start[s] for s in streams], pa.int64()),
            "last": pa.array([bounds.target[s] for s in streams], pa.int64()),
        }
    )


def _candidate_files(source: DeltaTable, stored: Callable[[Stream], int]) -> list[str]:
    """Files that may hold rows beyond the stored positions, judged by their statistics."""
    actions = add_actions(source)
    if actions.num_rows == 0:
        return []
    names = ("path", "min.topic", "max.topic", "min.lineage", "max.lineage", "min.partition", "max.partition")
    columns = [actions.column(name).to_pylist() for name in (*names, "max.offset")]
    known: dict[Stream, int] = {}

    def contained(stream: Stream, offset: int) -> bool:
        if stream not in known:
            known[stream] = stored(stream)
        return offset <= known[stream]

    files = []
    for path, topic, topic_max, lineage, lineage_max, partition, partition_max, offset in zip(*columns, strict=True):
        one_source = topic is not None and topic == topic_max and lineage is not None and lineage == lineage_max
        # Statistics of long names are cut short; such a file is read rather than trusted.
        if (
            not one_source
            or offset is None
            or not all(
                contained(Stream(topic, lineage, number), offset) for number in range(partition, partition_max + 1)
            )
        ):
            files.append(path)
    return files
