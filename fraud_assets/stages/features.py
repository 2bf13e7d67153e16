"""Cleaned features and quarantine, from what landed, exactly once.

Quarantine is committed first and features last. A run that was killed in between is finished by the next
one on exactly the same messages, in parts if they are more than a batch by now: what quarantine already holds of them
stays there, all others are features.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from fraud_assets.core.duplicates import Landed, repeated
from fraud_assets.core.features import history_days
from fraud_assets.core.parsing import parse_transactions
from fraud_assets.core.schema import (
    FEATURE_VERSION,
    POSITION_COLUMNS,
    QUARANTINED_TRANSACTIONS,
    TRANSACTION,
    TRANSACTION_FEATURES,
    fraud_labels,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.errors import SettingError
from fraud_assets.kafka.schemas import transaction_decoder
from fraud_assets.lake.append import CommitConflictError, commit
from fraud_assets.lake.batches import LANDING_ORDER, Bounds, Pending, next_bounds, pending, rows_within
from fraud_assets.lake.data_files import Rows, count_of, discard
from fraud_assets.lake.duckdb_session import compute_windows, connect
from fraud_assets.lake.positions import SourcePartition, committed_offset
from fraud_assets.lake.scan import files_within, register
from fraud_assets.lake.tables import Lake, read
from fraud_assets.settings import Settings

Progress = Callable[[str], None]
RecomputeRange = Callable[[Lake, Settings, datetime, datetime], int]
DUPLICATE = "duplicate"
CLOCKS_DIFFER = timedelta(days=1)
"""A label is younger than its transaction, but for clocks that differ."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class FeatureReport:
    """Counts of one run; `landed` = `features` + `quarantined` + `duplicates`."""

    landed: int = 0
    features: int = 0
    quarantined: int = 0
    duplicates: int = 0
    batches: int = 0
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)

    def plus(self, landed: int, features: int, reasons: dict[str, int]) -> FeatureReport:
        """The report with one more batch."""
        total = {key: self.reasons.get(key, 0) + reasons.get(key, 0) for key in {*self.reasons, *reasons}}
        duplicates = total.get(DUPLICATE, 0)
        return replace(
            self,
            landed=self.landed + landed,
            features=self.features + features,
            quarantined=sum(total.values()) - duplicates,
            duplicates=duplicates,
            batches=self.batches + 1,
            reasons=dict(sorted(total.items())),
        )


@dataclass(frozen=True)
class Batch:
    """What one round takes: the `bounds` of `work`, with the handles that it will be committed with.

    `held` is what of it quarantine holds already, where a run was killed between its two commits.
    """

    lake: Lake
    settings: Settings
    work: Pending
    bounds: Bounds
    features: DeltaTable
    quarantine: DeltaTable
    held: Pending | None


@dataclass(frozen=True)
class Computed:
    """A batch ready for its commits: its messages, new features and new quarantine, and the reasons of the latter.

    `reasons` count what quarantine holds already too.
    """

    landed: int
    features: Rows
    rejected: Rows
    reasons: dict[str, int]


def process_landed(
    lake: Lake,
    settings: Settings,
    progress: Progress = lambda line: None,
    compute: Callable[[Batch], Computed] | None = None,
) -> FeatureReport:
    """Take everything that has landed by now, from the stored positions on, batch by batch, in landing order.

    Args:
        lake: where the tables are.
        settings: of the contract, the windows and the batch.
        progress: told after every batch.
        compute: the engine; DuckDB in this process where None.

    Raises:
        LakeError: a table cannot be read or written; the batches before stay committed.
    """
    began = time.monotonic()
    report = FeatureReport()
    # Pinned: a run ends at what had landed at its start, however fast more comes in.
    landed = lake.open(raw_transactions)
    while True:
        features, quarantine = lake.open(transaction_features), lake.open(quarantined_transactions)
        work = pending(landed, lambda stream: committed_offset(features, stream), settings)  # noqa: B023
        if not work.target:
            return replace(report, seconds=time.monotonic() - began)
        begun = _begun(work, quarantine)
        bounds = next_bounds(work, settings, begun or None)
        held = _held(quarantine, bounds, settings) if begun else None
        computed = (compute or compute_here)(Batch(lake, settings, work, bounds, features, quarantine, held))
        counts = {"landed": computed.landed, "features": count_of(computed.features), **computed.reasons}
        waiting = {quarantined_transactions: computed.rejected, transaction_features: computed.features}
        try:
            if count_of(computed.rejected) or not begun:
                # Quarantine may be ahead: of a batch that a killed run began, this one may be the first part.
                reached = {stream: max(offset, begun.get(stream, offset)) for stream, offset in bounds.target.items()}
                commit(quarantine, quarantined_transactions, computed.rejected, reached, counts)
                del waiting[quarantined_transactions]
            commit(features, transaction_features, computed.features, bounds.target, counts)
        except CommitConflictError:
            for table, rows in waiting.items():
                discard(lake, table, rows)
            progress("another writer committed first; starting over from what the tables hold now")
            continue
        report = report.plus(computed.landed, count_of(computed.features), computed.reasons)
        progress(
            f"{report.landed:,} of {report.landed + work.rows - computed.landed:,} messages: "
            f"{report.features:,} features, {report.quarantined:,} quarantined, {report.duplicates:,} duplicates"
        )


def compute_here(batch: Batch) -> Computed:
    """The batch by DuckDB, in this process."""
    settings = batch.settings
    messages = rows_within(batch.work, batch.bounds, settings)
    landed = messages.num_rows
    held = messages.slice(0, 0).select(list(POSITION_COLUMNS))
    if batch.held is not None and batch.held.target:
        held = rows_within(batch.held, bounds_of(batch.held, batch.bounds), settings, (*POSITION_COLUMNS, "reason"))
    rows, rejected = _split(messages, held, batch.features, settings)
    # The windows need the memory that the bodies take.
    del messages
    table = _features(rows, batch.features, batch.lake.open(fraud_labels), settings)
    return Computed(landed, table, rejected, _counts(held, rejected))


def recompute(
    lake: Lake,
    settings: Settings,
    start: datetime,
    end: datetime,
    progress: Progress = lambda line: None,
    recompute_range: RecomputeRange | None = None,
) -> int:
    """Compute the features of `tx_datetime` in [start, end) again, with all history and labels of now.

    Gives the number of rows. Positions do not move, so predictions do not take them for new; score the
    range again on its own request. Later rows' windows are not refreshed.

    Args:
        lake: where the tables are.
        settings: of the windows.
        start: first moment, with zone.
        end: the moment after the last.
        progress: told after every commit: of a day, or with `recompute_range` of 31 days.
        recompute_range: the engine; DuckDB in this process where None.

    Raises:
        SettingError: the range is empty or has no zone.
    """
    if start.tzinfo is None or end.tzinfo is None or start >= end:
        raise SettingError(f"The range from {start} to {end} is empty or without a zone: give start < end, in UTC.")
    day = datetime(start.year, start.month, start.day, tzinfo=UTC)
    step = timedelta(days=31 if recompute_range else 1)
    done = 0
    while day < end:
        low, high = max(day, start), min(day + step, end)
        done += (recompute_range or _recompute_here)(lake, settings, low, high)
        progress(f"recomputed up to {high:%Y-%m-%d %H:%M}: {done:,} rows")
        day += step
    return done


def recompute_note(low: datetime, high: datetime, rows: int) -> dict[str, object]:
    """What the commit says of a recomputation."""
    return {"recomputed": f"{low.isoformat()}/{high.isoformat()}", "rows": rows}


def _recompute_here(lake: Lake, settings: Settings, low: datetime, high: datetime) -> int:
    within = (pc.field("tx_datetime") >= _scalar(low)) & (pc.field("tx_datetime") < _scalar(high))
    while True:
        features = lake.open(transaction_features)
        near = (pc.field("tx_date") >= low.date()) & (pc.field("tx_date") <= high.date())
        rows = read(features, where=near & within).cast(TRANSACTION_FEATURES)
        if not rows.num_rows:
            return 0
        rows = rows.sort_by([(name, "ascending") for name in ("ingested_at", *POSITION_COLUMNS)])
        table = _features(rows, features, lake.open(fraud_labels), settings, recomputed=True)
        where = f"tx_datetime >= '{low:%Y-%m-%dT%H:%M:%S.%fZ}' AND tx_datetime < '{high:%Y-%m-%dT%H:%M:%S.%fZ}'"
        try:
            mark = recompute_note(low, high, table.num_rows)
            commit(features, transaction_features, table, {}, mark, recomputed=where)
        except CommitConflictError:
            continue
        return table.num_rows


def _begun(work: Pending, quarantine: DeltaTable) -> dict[SourcePartition, int]:
    """How far a killed run got with quarantine beyond features; empty if it did not."""
    ahead = {stream: committed_offset(quarantine, stream) for stream in work.target}
    return {stream: offset for stream, offset in ahead.items() if offset > work.start[stream]}


def _held(quarantine: DeltaTable, bounds: Bounds, settings: Settings) -> Pending:
    """Rows of the batch that quarantine already holds."""
    return pending(quarantine, lambda stream: bounds.start.get(stream, 2**62), settings)


def bounds_of(held: Pending, bounds: Bounds) -> Bounds:
    """The part of the batch's bounds in which quarantine holds rows."""
    streams = [stream for stream in held.target if stream in bounds.target]
    return Bounds({s: bounds.start[s] for s in streams}, {s: bounds.target[s] for s in streams})


def _split(batch: pa.Table, held: pa.Table, features: DeltaTable, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """The batch's first-of-their-id transactions, and what is to be added to quarantine."""
    if held.num_rows:
        batch = batch.take(_places(batch, held, settings, are_held=False))
    valid, rejected = parse_transactions(batch, settings, transaction_decoder(settings))
    repeated = _repeated(valid, features, settings)
    if not repeated:
        return valid, rejected
    mask = pa.array(repeated.get(row) is None for row in range(valid.num_rows))
    doubles = valid.filter(pc.invert(mask)).select(list(POSITION_COLUMNS))
    bodies = batch.take(_places(batch, doubles, settings, are_held=True))
    bodies = bodies.append_column("reason", pa.repeat(DUPLICATE, bodies.num_rows))
    # Both are in landing order.
    bodies = bodies.append_column("detail", pa.array(repeated.values(), pa.string()))
    quarantined = bodies.select(QUARANTINED_TRANSACTIONS.names).cast(QUARANTINED_TRANSACTIONS)
    return valid.filter(mask), pa.concat_tables([rejected.cast(QUARANTINED_TRANSACTIONS), quarantined])


def _places(batch: pa.Table, others: pa.Table, settings: Settings, *, are_held: bool) -> pa.Array:
    """Row numbers of the messages whose positions are among `others`, or of those whose are not. No body is moved."""
    positions = batch.select(list(POSITION_COLUMNS)).append_column("row", pa.array(np.arange(batch.num_rows)))
    with connect(settings) as connection:
        connection.register("batch", positions)
        connection.register("others", others.select(list(POSITION_COLUMNS)))
        return (
            connection.sql(
                f"""select "row" from batch {"semi" if are_held else "anti"} join others
            using ({_quoted(POSITION_COLUMNS)}) order by "row" """
            )
            .to_arrow_table()["row"]
            .combine_chunks()
        )


def _repeated(valid: pa.Table, features: DeltaTable, settings: Settings) -> dict[int, str]:
    """Row numbers whose transaction id landed before, within the horizon, and the sentence that says where."""
    if not valid.num_rows:
        return {}
    horizon = timedelta(days=settings.duplicate_horizon_days)
    oldest = pc.min(valid["ingested_at"]).as_py() - horizon
    ids = valid.select(["transaction_id", *POSITION_COLUMNS])
    ids = ids.append_column("row", pa.array(np.arange(valid.num_rows)))
    with connect(settings) as connection:
        connection.register("ids", ids.append_column("landed_us", valid["ingested_at"].cast(pa.int64())))
        register(connection, "features", features, files_within(features, {"ingested_at": (oldest, None)}))
        # Mostly there is none, and that is found from the ids alone.
        doubles = connection.sql(
            """select distinct transaction_id from features semi join ids using (transaction_id)
            union select transaction_id from ids group by 1 having count(*) > 1"""
        ).to_arrow_table()
        if not doubles.num_rows:
            return {}
        connection.register("doubles", doubles)
        known = connection.sql(
            f"""select transaction_id, epoch_us(ingested_at), topic, "partition", "offset"
            from features semi join doubles using (transaction_id) order by {LANDING_ORDER}"""
        ).fetchall()
        again = connection.sql(
            """select "row", transaction_id, landed_us, topic, "partition", "offset"
            from ids semi join doubles using (transaction_id) order by "row" """
        ).fetchall()
    verdicts = repeated(
        (Landed(*row) for row in known),
        (Landed(*row[1:]) for row in again),
        horizon // timedelta(microseconds=1),
    )
    return {row[0]: verdict for row, verdict in zip(again, verdicts, strict=True) if verdict is not None}


def _features(
    rows: pa.Table, features: DeltaTable, labels: DeltaTable, settings: Settings, *, recomputed: bool = False
) -> pa.Table:
    """TRANSACTION_FEATURES of `rows`, which are in landing order, with the history that the lake holds.

    With `recomputed` the lake holds these rows too.
    """
    if not rows.num_rows:
        return TRANSACTION_FEATURES.empty_table()
    history = _history(rows, features, settings, recomputed=recomputed)
    known = pa.concat_tables([history, _bare(rows, is_new=True)])
    arrival = np.arange(known.num_rows)
    if (
        history.num_rows
        and pc.max(history["landed_us"]).as_py() >= pc.min(rows["ingested_at"].cast(pa.int64())).as_py()
    ):
        order = pc.sort_indices(known, [(name, "ascending") for name in ("landed_us", *POSITION_COLUMNS)])
        arrival[order.to_numpy()] = np.arange(known.num_rows)
    known = known.append_column("arrival", pa.array(arrival))
    verdicts = _labels(known, labels, rows, settings)
    windows = compute_windows(known, verdicts, settings)
    table = rows.select([name for name in rows.column_names if name not in windows.column_names])
    for name in windows.column_names:
        if name != "arrival":
            table = table.append_column(name, windows[name])
    if "feature_version" not in table.column_names:
        table = table.append_column("feature_version", pa.repeat(FEATURE_VERSION, table.num_rows))
    return table.select(TRANSACTION_FEATURES.names).cast(TRANSACTION_FEATURES)


def _history(rows: pa.Table, features: DeltaTable, settings: Settings, *, recomputed: bool) -> pa.Table:
    """Earlier transactions of the rows' customers and terminals, as far back as their windows reach."""
    since, last = reach(rows["tx_datetime"], settings)
    near = files_within(features, {"tx_date": (since.date(), last.date()), "tx_datetime": (since, last)})
    columns = (*TRANSACTION.names, *POSITION_COLUMNS, "ingested_at")
    others = (
        ""
        if not recomputed
        else """
        and not exists (
            select 1 from rows r where r.topic = f.topic and r.topic_id = f.topic_id
            and r."partition" = f."partition" and r."offset" = f."offset"
        )"""
    )
    with connect(settings) as connection:
        register(connection, "features", features, near)
        connection.register("rows", rows.select(["customer_id", "terminal_id", *POSITION_COLUMNS]))
        found = connection.sql(
            f"""
            select {_quoted(columns)} from features f
            where epoch_us(tx_datetime) > {_microseconds(since)} and epoch_us(tx_datetime) <= {_microseconds(last)}
            and (customer_id in (select customer_id from rows) or terminal_id in (select terminal_id from rows))
            {others}
            order by {LANDING_ORDER}
            """
        ).to_arrow_table()
    return _bare(found, is_new=False)


def reach(times: pa.ChunkedArray, settings: Settings) -> tuple[datetime, datetime]:
    """From when (exclusively) to when transactions are in a window of one at these times."""
    first, last = (edge.as_py() for edge in pc.min_max(times).values())
    return first - timedelta(days=history_days(settings.feedback_delay_days)), last


def _bare(rows: pa.Table, *, is_new: bool) -> pa.Table:
    """What the windows need of a transaction, times as microseconds."""
    return pa.table(
        {
            "transaction_id": rows["transaction_id"],
            "customer_id": rows["customer_id"],
            "terminal_id": rows["terminal_id"],
            "event_us": rows["tx_datetime"].cast(pa.int64()),
            "tx_amount": rows["tx_amount"],
            "is_new": pa.repeat(is_new, rows.num_rows),
            "landed_us": rows["ingested_at"].cast(pa.int64()),
            **{name: rows[name] for name in POSITION_COLUMNS},
        }
    )


def _labels(known: pa.Table, labels: DeltaTable, rows: pa.Table, settings: Settings) -> pa.Table:
    """All labels of those known transactions that were called fraud, up to the newest transaction.

    A label that came later is in no window.
    """
    since, last = reach(rows["tx_datetime"], settings)
    since -= CLOCKS_DIFFER
    recent = files_within(labels, {"labelled_at": (since, last)})
    within = f"epoch_us(labelled_at) between {_microseconds(since)} and {_microseconds(last)}"
    with connect(settings) as connection:
        connection.register("known", known.select(["transaction_id"]))
        register(connection, "labels", labels, recent)
        frauds = connection.sql(
            f"""select distinct transaction_id from labels semi join known using (transaction_id)
            where is_fraud and {within}"""
        ).to_arrow_table()
        connection.register("ever_fraud", frauds)
        return connection.sql(
            f"""select transaction_id, is_fraud, epoch_us(labelled_at) as labelled_us,
            row_number() over (order by {LANDING_ORDER}) as arrival
            from labels semi join ever_fraud using (transaction_id) where {within}"""
        ).to_arrow_table()


def _counts(*quarantined: pa.Table) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for table in quarantined:
        for entry in pc.value_counts(table["reason"]).to_pylist() if "reason" in table.column_names else ():
            reasons[entry["values"]] = reasons.get(entry["values"], 0) + entry["counts"]
    return reasons


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _scalar(moment: datetime) -> pa.Scalar:
    return pa.scalar(moment.astimezone(UTC), pa.timestamp("us", tz="UTC"))
