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
from fraud_assets.engines.base import FeatureBatch, FeatureResult, RecomputedRange
from fraud_assets.engines.history import CLOCKS_DIFFER, find_history_span
from fraud_assets.engines.local.windows import compute_windows
from fraud_assets.kafka.schemas import create_transaction_decoder
from fraud_assets.lake.batches import read_rows_within
from fraud_assets.lake.duckdb_session import connect
from fraud_assets.lake.position_sql import landing_order, position_columns, same_position
from fraud_assets.lake.scan import find_files_within, register_view
from fraud_assets.lake.tables import Lake, read
from fraud_assets.settings import Settings

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def compute_features(batch: FeatureBatch, settings: Settings) -> FeatureResult:
    """Parses the messages of a batch, separates duplicates and computes the features of the other transactions.

    Args:
        batch: The messages and the handles that will commit the result.
        settings: The message contract, the windows and DuckDB's memory.

    Returns:
        Features and quarantine as tables in memory.

    Raises:
        LakeError: A table cannot be read, or memory and disk do not suffice.
    """
    messages = read_rows_within(batch.pending, batch.bounds, settings)
    landed = messages.num_rows
    held = messages.slice(0, 0).select(list(POSITION_COLUMNS))
    if batch.quarantined is not None and batch.quarantined.target:
        held = read_rows_within(batch.quarantined, batch.quarantined_bounds, settings, (*POSITION_COLUMNS, "reason"))
    rows, rejected = _separate_rejected(messages, held, batch.features, settings)
    # The windows need the memory that the bodies occupy.
    del messages
    table = _features(rows, batch.features, batch.lake.open(fraud_labels), settings)
    return FeatureResult(landed, table, rejected, _count_reasons(held, rejected))


def recompute_features(
    lake: Lake, handle: DeltaTable, start: datetime, end: datetime, settings: Settings
) -> RecomputedRange:
    """Recomputes the features of `tx_datetime` in [start, end) with the current history and labels.

    Args:
        lake: The lake with the labels.
        handle: The version of the features that the result replaces.
        start: Start of the range (inclusive), with time zone.
        end: End of the range (exclusive).
        settings: The windows and DuckDB's memory.

    Returns:
        The rows of the range, in memory.

    Raises:
        LakeError: A table cannot be read, or memory and disk do not suffice.
    """
    within = (pc.field("tx_datetime") >= _to_scalar(start)) & (pc.field("tx_datetime") < _to_scalar(end))
    near = (pc.field("tx_date") >= start.date()) & (pc.field("tx_date") <= end.date())
    rows = read(handle, TRANSACTION_FEATURES.names, near & within).cast(TRANSACTION_FEATURES)
    if not rows.num_rows:
        return RecomputedRange(rows, 0)
    rows = rows.sort_by([(name, "ascending") for name in ("ingested_at", *POSITION_COLUMNS)])
    table = _features(rows, handle, lake.open(fraud_labels), settings, recomputed=True)
    return RecomputedRange(table, table.num_rows)


def _separate_rejected(
    batch: pa.Table, held: pa.Table, features: DeltaTable, settings: Settings
) -> tuple[pa.Table, pa.Table]:
    """Splits a batch into transactions with a new id and rows to add to quarantine, without those in `held`."""
    if held.num_rows:
        batch = batch.take(_find_rows(batch, held, settings, are_in_others=False))
    valid, rejected = parse_transactions(batch, settings.contract, create_transaction_decoder(settings))
    details = _find_duplicates(valid, features, settings)
    if not details:
        return valid, rejected
    mask = pa.array(details.get(row) is None for row in range(valid.num_rows))
    duplicates = valid.filter(pc.invert(mask)).select(list(POSITION_COLUMNS))
    bodies = batch.take(_find_rows(batch, duplicates, settings, are_in_others=True))
    bodies = bodies.append_column("reason", pa.repeat(DUPLICATE, bodies.num_rows))
    # The bodies and the details are both in landing order.
    bodies = bodies.append_column("detail", pa.array(details.values(), pa.string()))
    quarantined = bodies.select(QUARANTINED_TRANSACTIONS.names).cast(QUARANTINED_TRANSACTIONS)
    return valid.filter(mask), pa.concat_tables([rejected.cast(QUARANTINED_TRANSACTIONS), quarantined])


def _find_rows(batch: pa.Table, others: pa.Table, settings: Settings, *, are_in_others: bool) -> pa.Array:
    """Returns the row numbers of messages whose positions are, or are not, in `others`. No body is copied."""
    positions = batch.select(list(POSITION_COLUMNS)).append_column("row", pa.array(np.arange(batch.num_rows)))
    with connect(settings) as connection:
        connection.register("batch", positions)
        connection.register("others", others.select(list(POSITION_COLUMNS)))
        return (
            connection.sql(
                f"""select "row" from batch {"semi" if are_in_others else "anti"} join others
            using ({position_columns()}) order by "row" """
            )
            .to_arrow_table()["row"]
            .combine_chunks()
        )


def _find_duplicates(valid: pa.Table, features: DeltaTable, settings: Settings) -> dict[int, str]:
    """Returns, by row number, a sentence for each row whose transaction id landed before within the horizon."""
    if not valid.num_rows:
        return {}
    horizon = timedelta(days=settings.duplicate_horizon_days)
    oldest = pc.min(valid["ingested_at"]).as_py() - horizon
    ids = valid.select(["transaction_id", *POSITION_COLUMNS])
    ids = ids.append_column("row", pa.array(np.arange(valid.num_rows)))
    with connect(settings) as connection:
        connection.register("ids", ids.append_column("landed_us", valid["ingested_at"].cast(pa.int64())))
        register_view(connection, "features", features, find_files_within(features, {"ingested_at": (oldest, None)}))
        # Usually no id is repeated, and the ids alone suffice to find this out.
        repeated = connection.sql(
            """select distinct transaction_id from features semi join ids using (transaction_id)
            union select transaction_id from ids group by 1 having count(*) > 1"""
        ).to_arrow_table()
        if not repeated.num_rows:
            return {}
        connection.register("repeated", repeated)
        known = connection.sql(
            f"""select transaction_id, epoch_us(ingested_at), topic, "partition", "offset"
            from features semi join repeated using (transaction_id) order by {landing_order()}"""
        ).fetchall()
        candidates = connection.sql(
            """select "row", transaction_id, landed_us, topic, "partition", "offset"
            from ids semi join repeated using (transaction_id) order by "row" """
        ).fetchall()
    details = find_duplicates(
        (LandedTransaction(*row) for row in known),
        (LandedTransaction(*row[1:]) for row in candidates),
        horizon // timedelta(microseconds=1),
    )
    return {row[0]: detail for row, detail in zip(candidates, details, strict=True) if detail is not None}


def _features(
    rows: pa.Table, features: DeltaTable, labels: DeltaTable, settings: Settings, *, recomputed: bool = False
) -> pa.Table:
    """Computes TRANSACTION_FEATURES of rows in landing order, with the history that the lake holds.

    If `recomputed` is true, the lake already holds the rows themselves.
    """
    if not rows.num_rows:
        return TRANSACTION_FEATURES.empty_table()
    history = _read_history(rows, features, settings, recomputed=recomputed)
    known = pa.concat_tables([history, _to_window_input(rows, is_new=True)])
    arrival = np.arange(known.num_rows)
    if (
        history.num_rows
        and pc.max(history["landed_us"]).as_py() >= pc.min(rows["ingested_at"].cast(pa.int64())).as_py()
    ):
        order = pc.sort_indices(known, [(name, "ascending") for name in ("landed_us", *POSITION_COLUMNS)])
        arrival[order.to_numpy()] = np.arange(known.num_rows)
    known = known.append_column("arrival", pa.array(arrival))
    windows = compute_windows(known, _read_labels(known, labels, rows, settings), settings)
    table = rows.select([name for name in rows.column_names if name not in windows.column_names])
    for name in windows.column_names:
        if name != "arrival":
            table = table.append_column(name, windows[name])
    # Recomputed rows may carry an earlier version.
    table = table.drop_columns([name for name in ("feature_version",) if name in table.column_names])
    table = table.append_column("feature_version", pa.repeat(FEATURE_VERSION, table.num_rows))
    return table.select(TRANSACTION_FEATURES.names).cast(TRANSACTION_FEATURES)


def _read_history(rows: pa.Table, features: DeltaTable, settings: Settings, *, recomputed: bool) -> pa.Table:
    """Reads earlier transactions of the rows' customers and terminals, as far back as the windows reach."""
    since, last = find_history_span(rows["tx_datetime"], settings.window_policy)
    near = find_files_within(features, {"tx_date": (since.date(), last.date()), "tx_datetime": (since, last)})
    columns = (*TRANSACTION.names, *POSITION_COLUMNS, "ingested_at")
    exclusion = (
        ""
        if not recomputed
        else f"""
        and not exists (select 1 from rows r where {same_position("r", "f")})"""
    )
    with connect(settings) as connection:
        register_view(connection, "features", features, near)
        connection.register("rows", rows.select(["customer_id", "terminal_id", *POSITION_COLUMNS]))
        found = connection.sql(
            f"""
            select {_quote_names(columns)} from features f
            where epoch_us(tx_datetime) > {_to_microseconds(since)}
            and epoch_us(tx_datetime) <= {_to_microseconds(last)}
            and (customer_id in (select customer_id from rows) or terminal_id in (select terminal_id from rows))
            {exclusion}
            order by {landing_order()}
            """
        ).to_arrow_table()
    return _to_window_input(found, is_new=False)


def _to_window_input(rows: pa.Table, *, is_new: bool) -> pa.Table:
    """Returns the columns of transactions that the windows need, with times in microseconds."""
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


def _read_labels(known: pa.Table, labels: DeltaTable, rows: pa.Table, settings: Settings) -> pa.Table:
    """Reads all labels of the known transactions that ever had a fraud label, up to the newest transaction.

    No window contains a later label.
    """
    since, last = find_history_span(rows["tx_datetime"], settings.window_policy)
    since -= CLOCKS_DIFFER
    recent = find_files_within(labels, {"labelled_at": (since, last)})
    within = f"epoch_us(labelled_at) between {_to_microseconds(since)} and {_to_microseconds(last)}"
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
            row_number() over (order by {landing_order()}) as arrival
            from labels semi join ever_fraud using (transaction_id) where {within}"""
        ).to_arrow_table()


def _count_reasons(*quarantined: pa.Table) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for table in quarantined:
        for entry in pc.value_counts(table["reason"]).to_pylist() if "reason" in table.column_names else ():
            reasons[entry["values"]] = reasons.get(entry["values"], 0) + entry["counts"]
    return reasons


def _quote_names(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _to_microseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)


def _to_scalar(time: datetime) -> pa.Scalar:
    return pa.scalar(time.astimezone(UTC), pa.timestamp("us", tz="UTC"))
