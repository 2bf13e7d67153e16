"""Computes the features and the quarantine of a batch with DuckDB, in this process."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from fraud_assets.core.duplicates import LandedTransaction, find_duplicates
from fraud_assets.core.parsing import parse_transactions
from fraud_assets.core.quarantine_reasons import DUPLICATE
from fraud_assets.core.schema import (
    FEATURE_VERSION,
    POSITION_COLUMNS,
    QUARANTINED_TRANSACTIONS,
    TRANSACTION,
    TRANSACTION_FEATURES,
    fraud_labels,
)
from fraud_assets.engines.base import CLOCKS_DIFFER, FeatureBatch, FeatureResult, RecomputedRange, reach
from fraud_assets.engines.local.windows import compute_windows
from fraud_assets.kafka.schemas import transaction_decoder
from fraud_assets.lake.batches import LANDING_ORDER, rows_within
from fraud_assets.lake.duckdb_session import connect
from fraud_assets.lake.scan import files_within, register_view
from fraud_assets.lake.tables import Lake, read
from fraud_assets.settings import Settings

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def compute_features(batch: FeatureBatch, settings: Settings) -> FeatureResult:
    """Parses the messages of a batch, sets duplicates apart and computes the features of the others.

    Args:
        batch: the messages, with the tables that they will be committed to.
        settings: the contract, the windows and DuckDB's memory.

    Returns:
        Features and quarantine as tables in memory.

    Raises:
        LakeError: a table cannot be read, or memory and disk are not enough.
    """
    messages = rows_within(batch.work, batch.bounds, settings)
    landed = messages.num_rows
    held = messages.slice(0, 0).select(list(POSITION_COLUMNS))
    if batch.held is not None and batch.held.target:
        held = rows_within(batch.held, batch.held_bounds, settings, (*POSITION_COLUMNS, "reason"))
    rows, rejected = _split(messages, held, batch.features, settings)
    # The windows need the memory that the bodies take.
    del messages
    table = _features(rows, batch.features, batch.lake.open(fraud_labels), settings)
    return FeatureResult(landed, table, rejected, _counts(held, rejected))


def recompute_features(
    lake: Lake, handle: DeltaTable, start: datetime, end: datetime, settings: Settings
) -> RecomputedRange:
    """Computes the features of `tx_datetime` in [start, end) again, with the history and labels of now.

    Args:
        lake: holds the labels.
        handle: the features; the result replaces rows of this version.
        start: first moment, with zone.
        end: the moment after the last.
        settings: the windows and DuckDB's memory.

    Returns:
        The rows of the range, in memory.

    Raises:
        LakeError: a table cannot be read, or memory and disk are not enough.
    """
    within = (pc.field("tx_datetime") >= _scalar(start)) & (pc.field("tx_datetime") < _scalar(end))
    near = (pc.field("tx_date") >= start.date()) & (pc.field("tx_date") <= end.date())
    rows = read(handle, TRANSACTION_FEATURES.names, near & within).cast(TRANSACTION_FEATURES)
    if not rows.num_rows:
        return RecomputedRange(rows, 0)
    rows = rows.sort_by([(name, "ascending") for name in ("ingested_at", *POSITION_COLUMNS)])
    table = _features(rows, handle, lake.open(fraud_labels), settings, recomputed=True)
    return RecomputedRange(table, table.num_rows)


def _split(batch: pa.Table, held: pa.Table, features: DeltaTable, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """The batch's first-of-their-id transactions, and what is to be added to quarantine."""
    if held.num_rows:
        batch = batch.take(_places(batch, held, settings, are_held=False))
    valid, rejected = parse_transactions(batch, settings.contract, transaction_decoder(settings))
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
        register_view(connection, "features", features, files_within(features, {"ingested_at": (oldest, None)}))
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
    verdicts = find_duplicates(
        (LandedTransaction(*row) for row in known),
        (LandedTransaction(*row[1:]) for row in again),
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
    since, last = reach(rows["tx_datetime"], settings.window_policy)
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
        register_view(connection, "features", features, near)
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
    since, last = reach(rows["tx_datetime"], settings.window_policy)
    since -= CLOCKS_DIFFER
    recent = files_within(labels, {"labelled_at": (since, last)})
    within = f"epoch_us(labelled_at) between {_microseconds(since)} and {_microseconds(last)}"
    with connect(settings) as connection:
        connection.register("known", known.select(["transaction_id"]))
        register_view(connection, "labels", labels, recent)
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
