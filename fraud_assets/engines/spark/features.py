"""Computes the features and the quarantine of a batch on Spark, with the shared parser and feature definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.duplicates import LandedTransaction, find_duplicates
from fraud_assets.core.features import window_features
from fraud_assets.core.parsing import VALID_TRANSACTIONS, parse_transactions
from fraud_assets.core.quarantine_reasons import DUPLICATE
from fraud_assets.core.schema import (
    FEATURE_VERSION,
    POSITION_COLUMNS,
    QUARANTINED_TRANSACTIONS,
    TIME,
    TRANSACTION,
    TRANSACTION_FEATURES,
    fraud_labels,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.engines.base import FeatureBatch, FeatureResult, RecomputedRange
from fraud_assets.engines.history import CLOCKS_DIFFER, find_history_span
from fraud_assets.engines.spark.headers import convert_headers_to_text, replace_headers_field
from fraud_assets.engines.spark.tables import group_slices, run_tasks, scan, write
from fraud_assets.kafka.schemas import create_transaction_decoder
from fraud_assets.lake.batches import Bounds, Pending
from fraud_assets.lake.data_files import Slice, list_slices, read_slices
from fraud_assets.lake.positions import select_between
from fraud_assets.lake.scan import find_files_within
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyspark.sql import DataFrame, SparkSession

_LANDING = ("ingested_at", *POSITION_COLUMNS)
_ARRIVAL = (*_LANDING, *TRANSACTION.names, "tx_during_weekend", "tx_during_night", "tx_date")
"""The first columns order rows by arrival. The others only accompany their row through the windows."""
_QUARANTINED = replace_headers_field(QUARANTINED_TRANSACTIONS)
_PARSED = pa.schema(
    [*VALID_TRANSACTIONS, *(field for field in _QUARANTINED if field.name not in VALID_TRANSACTIONS.names)]
)
"""A parsed message: the columns of a valid one, or those of a rejected one. Only a rejected one has a `reason`."""
_DUPLICATES = pa.schema(
    [*(VALID_TRANSACTIONS.field(name) for name in POSITION_COLUMNS), QUARANTINED_TRANSACTIONS.field("detail")]
)


def recompute_features(
    spark: SparkSession, lake: Lake, handle: DeltaTable, start: datetime, end: datetime, settings: Settings
) -> RecomputedRange:
    """Recomputes the features of `tx_datetime` in [start, end) and writes data files of whole days."""
    from pyspark.sql import functions as F  # noqa: N812

    start, end = start.astimezone(UTC), end.astimezone(UTC)
    days = (start.date(), (end - timedelta(microseconds=1)).date())
    files = find_files_within(handle, {"tx_date": days})
    if not files:
        return RecomputedRange([], 0)
    with ExitStack() as stack:
        stored = _persist(scan(spark, lake, transaction_features, handle, files), stack)
        in_range = (F.col("tx_datetime") >= F.lit(start)) & (F.col("tx_datetime") < F.lit(end))
        rows = stored.where(in_range)
        edges = rows.agg(F.min("tx_datetime"), F.max("tx_datetime"), F.count("*").alias("rows")).toArrow()
        first, last, count = edges.to_pylist()[0].values()
        if not count:
            return RecomputedRange([], 0)
        since, until = find_history_span(pa.chunked_array([pa.array([first, last], TIME)]), settings.window_policy)
        history = _read_history(spark, lake, handle, rows, since, until)
        history = None if history is None else history.where(~in_range)
        table = _compute_windows(spark, lake, settings, rows, history, (since, until), partial(_persist, stack=stack))
        table = table.unionByName(stored.where(~in_range).select(*TRANSACTION_FEATURES.names))
        written = write(table.hint("rebalance", "tx_date"), lake, transaction_features)
    written_days = sorted({date.fromisoformat(str(file.partition)) for file in written})
    return RecomputedRange(written, int(count), written_days)


def compute_features(spark: SparkSession, batch: FeatureBatch, settings: Settings) -> FeatureResult:
    """Parses the messages of a batch, separates duplicates, computes the features and writes data files."""
    from pyspark.sql import functions as F  # noqa: N812

    lake = batch.lake
    with ExitStack() as stack:
        parsed = _parse(spark, batch, settings)
        held = _read_quarantined(spark, batch)
        if held is not None:
            parsed = parsed.join(held, list(POSITION_COLUMNS), "left_anti")
        parsed = _persist(parsed, stack)
        by_reason = parsed.groupBy("reason").agg(
            F.count("*").alias("rows"),
            F.min("tx_datetime").alias("first"),
            F.max("tx_datetime").alias("last"),
            F.min("ingested_at").alias("landed"),
        )
        found = {row["reason"]: row for row in by_reason.toArrow().to_pylist()}
        good = found.pop(None, None)
        reasons = {reason: row["rows"] for reason, row in found.items()}
        rejected = parsed.where("reason is not null").select(*QUARANTINED_TRANSACTIONS.names)
        valid = parsed.where("reason is null").select(*VALID_TRANSACTIONS.names)
        if good is not None:
            duplicates = _persist(_find_duplicates(spark, batch, valid, good["landed"], settings), stack)
            if count := duplicates.count():
                valid = valid.join(duplicates, list(POSITION_COLUMNS), "left_anti")
                rejected = rejected.unionByName(_read_duplicates(spark, batch, duplicates))
                reasons[DUPLICATE] = count
        quarantined = write(rejected, lake, quarantined_transactions) if reasons else []
        features = []
        if good is not None and good["rows"] > reasons.get(DUPLICATE, 0):
            times = pa.chunked_array([pa.array([good["first"], good["last"]], TIME)])
            since, last = find_history_span(times, settings.window_policy)
            history = _read_history(spark, lake, batch.features, valid, since, last)
            rows = _compute_windows(
                spark, lake, settings, valid, history, (since, last), partial(_persist, stack=stack)
            )
            features = write(rows.hint("rebalance", "tx_date"), lake, transaction_features)
        if held is not None:
            for row in held.groupBy("reason").count().toArrow().to_pylist():
                reasons[row["reason"]] = reasons.get(row["reason"], 0) + row["count"]
        landed = sum(file.rows for file in features) + sum(reasons.values())
    return FeatureResult(landed, features, quarantined, reasons)


def _persist(frame: DataFrame, stack: ExitStack) -> DataFrame:
    """Computes the rows once and keeps them on the executors' disks until the stack closes."""
    from pyspark.storagelevel import StorageLevel

    # Memory is not faster, and reading a block of some hundred megabytes back from disk kills the executor.
    frame = frame.persist(StorageLevel.DISK_ONLY)
    stack.callback(frame.unpersist)
    return frame


def _parse(spark: SparkSession, batch: FeatureBatch, settings: Settings) -> DataFrame:
    """Parses every message of the batch to a row of `_PARSED`."""

    def parse(raw: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        valid, rejected = parse_transactions(
            pa.Table.from_batches([raw]), settings.contract, create_transaction_decoder(settings)
        )
        for rows in (valid, convert_headers_to_text(rejected)):
            yield from _pad(rows, _PARSED).to_batches()

    return _map_messages(spark, batch.lake, batch.pending, batch.bounds, parse, _PARSED)


def _map_messages(
    spark: SparkSession,
    lake: Lake,
    pending: Pending,
    bounds: Bounds,
    function: Callable[[pa.RecordBatch], Iterator[pa.RecordBatch]],
    schema: pa.Schema,
) -> DataFrame:
    """Runs a function on the landed messages within the bounds; `schema` is that of its output."""
    table = raw_transactions
    location = lake.location(table)

    def read(slices: Sequence[Slice]) -> Iterator[pa.RecordBatch]:
        for rows in read_slices(location, slices, table.schema, table.partition_by):
            messages = select_between(rows, bounds.start, bounds.target)
            if messages.num_rows:
                yield from function(messages)

    return run_tasks(spark, group_slices(spark, list_slices(pending.source, pending.files, table)), read, schema)


def _read_quarantined(spark: SparkSession, batch: FeatureBatch) -> DataFrame | None:
    """Reads position and reason of the rows of the batch that quarantine already holds."""
    if batch.quarantined is None or not batch.quarantined.target:
        return None
    bounds = batch.quarantined_bounds
    columns = (*POSITION_COLUMNS, "reason")
    table = quarantined_transactions
    schema = pa.schema([table.schema.field(name) for name in columns])
    location = batch.lake.location(table)

    def read(slices: Sequence[Slice]) -> Iterator[pa.RecordBatch]:
        for rows in read_slices(location, slices, schema, table.partition_by):
            yield select_between(rows, bounds.start, bounds.target)

    slices = list_slices(batch.quarantined.source, batch.quarantined.files, table)
    return run_tasks(spark, group_slices(spark, slices), read, schema)


def _find_duplicates(
    spark: SparkSession, batch: FeatureBatch, valid: DataFrame, landed: datetime, settings: Settings
) -> DataFrame:
    """Finds the duplicates among the valid rows of the batch: a row of `_DUPLICATES` each.

    `landed` is the earliest landing time of the valid rows.
    """
    from pyspark.sql import Window as W  # noqa: N817
    from pyspark.sql import functions as F  # noqa: N812
    from pyspark.sql.pandas.types import from_arrow_schema

    horizon = timedelta(days=settings.duplicate_horizon_days)
    columns = ("transaction_id", *_LANDING)
    ids = valid.select(*columns, F.lit(True).alias("is_new"))
    files = find_files_within(batch.features, {"ingested_at": (landed - horizon, None)})
    if files:
        known = scan(spark, batch.lake, transaction_features, batch.features, files, columns)
        known = known.join(ids.select("transaction_id").distinct(), "transaction_id", "left_semi")
        ids = ids.unionByName(known.select(*columns, F.lit(False).alias("is_new")))
    occurrences = F.count("*").over(W.partitionBy("transaction_id"))
    candidates = ids.withColumn("occurrences", occurrences).where("occurrences > 1").drop("occurrences")

    def find(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        # The window put all rows of an id into one partition.
        parts = [rows for rows in batches if rows.num_rows]
        if not parts:
            return
        rows = pa.Table.from_batches(parts).sort_by([(name, "ascending") for name in _LANDING])
        new = rows.filter(rows["is_new"])
        known = rows.filter(pc.invert(rows["is_new"]))
        details = find_duplicates(
            _to_landed_transactions(known), _to_landed_transactions(new), _to_microseconds(horizon)
        )
        duplicates = new.select(list(POSITION_COLUMNS)).append_column("detail", pa.array(details, pa.string()))
        yield from duplicates.filter(pc.is_valid(duplicates["detail"])).cast(_DUPLICATES).to_batches()

    return candidates.mapInArrow(find, from_arrow_schema(_DUPLICATES))


def _to_landed_transactions(rows: pa.Table) -> Iterator[LandedTransaction]:
    times = rows["ingested_at"].cast(pa.int64()).to_pylist()
    columns = (rows[name].to_pylist() for name in ("transaction_id", "topic", "partition", "offset"))
    for transaction_id, topic, partition, offset, landed_us in zip(*columns, times, strict=True):
        yield LandedTransaction(transaction_id, landed_us, topic, partition, offset)


def _read_duplicates(spark: SparkSession, batch: FeatureBatch, duplicates: DataFrame) -> DataFrame:
    """Reads the original messages of the duplicates, as rows of `quarantined_transactions`."""
    from pyspark.sql import functions as F  # noqa: N812

    def convert(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield from convert_headers_to_text(pa.Table.from_batches([rows])).to_batches()

    schema = replace_headers_field(raw_transactions.schema)
    messages = _map_messages(spark, batch.lake, batch.pending, batch.bounds, convert, schema)
    found = messages.join(duplicates, list(POSITION_COLUMNS)).withColumn("reason", F.lit(DUPLICATE))
    return found.select(*QUARANTINED_TRANSACTIONS.names)


def _read_history(
    spark: SparkSession, lake: Lake, features: DeltaTable, rows: DataFrame, since: datetime, last: datetime
) -> DataFrame | None:
    """Reads earlier transactions of the rows' customers and terminals, as far back as the windows reach."""
    near = find_files_within(features, {"tx_date": (since.date(), last.date()), "tx_datetime": (since, last)})
    if not near:
        return None
    columns = (*_LANDING, *TRANSACTION.names)
    within = (pc.field("tx_datetime") > pa.scalar(since, TIME)) & (pc.field("tx_datetime") <= pa.scalar(last, TIME))
    found = scan(spark, lake, transaction_features, features, near, columns, within)
    customers, terminals = (rows.select(name).distinct() for name in ("customer_id", "terminal_id"))
    of_terminals = found.join(terminals, "terminal_id", "left_semi")
    others = found.join(terminals, "terminal_id", "left_anti").join(customers, "customer_id", "left_semi")
    return of_terminals.select(*columns).unionByName(others.select(*columns))


def _compute_windows(
    spark: SparkSession,
    lake: Lake,
    settings: Settings,
    rows: DataFrame,
    history: DataFrame | None,
    span: tuple[datetime, datetime],
    keep: Callable[[DataFrame], DataFrame],
) -> DataFrame:
    """Computes TRANSACTION_FEATURES of the rows with the given history. `span` is the range that the windows cover."""
    from pyspark.sql import Window as W  # noqa: N817
    from pyspark.sql import functions as F  # noqa: N812

    known = rows.select(*_ARRIVAL, F.lit(True).alias("is_new"))
    if history is not None:
        known = known.unionByName(history.withColumn("is_new", F.lit(False)), allowMissingColumns=True)
    transactions = known.select(
        "transaction_id",
        "customer_id",
        "terminal_id",
        F.unix_micros("tx_datetime").alias("event_us"),
        F.struct(*_ARRIVAL).alias("arrival"),
        "tx_amount",
        "is_new",
    )
    labels = _read_labels(spark, lake, *span)
    arrival_type = transactions.schema["arrival"].dataType
    windows = window_features(transactions, labels, settings.feedback_delay_days, F, W, arrival_type, keep)
    table = windows.select("arrival.*", *(name for name in windows.columns if name != "arrival"))
    return table.withColumn("feature_version", F.lit(FEATURE_VERSION)).select(*TRANSACTION_FEATURES.names)


def _read_labels(spark: SparkSession, lake: Lake, since: datetime, last: datetime) -> DataFrame:
    """Reads all labels of transactions that ever had a fraud label, up to the newest transaction."""
    from pyspark.sql import functions as F  # noqa: N812

    handle = lake.open(fraud_labels)
    since -= CLOCKS_DIFFER
    files = find_files_within(handle, {"labelled_at": (since, last)})
    columns = ("transaction_id", "is_fraud", "labelled_at", *_LANDING)
    times = pc.field("labelled_at")
    within: Any = (times >= pa.scalar(since, TIME)) & (times <= pa.scalar(last, TIME))
    labels = scan(spark, lake, fraud_labels, handle, files, columns, within)
    ever_fraud = labels.where("is_fraud").select("transaction_id").distinct()
    return labels.join(ever_fraud, "transaction_id", "left_semi").select(
        "transaction_id",
        "is_fraud",
        F.unix_micros("labelled_at").alias("labelled_us"),
        F.struct(*_LANDING).alias("arrival"),
    )


def _pad(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns the rows with the schema's columns; missing columns are null."""
    columns = [
        rows[f.name].cast(f.type) if f.name in rows.column_names else pa.nulls(rows.num_rows, f.type) for f in schema
    ]
    return pa.table(columns, schema=pa.schema([field.with_nullable(True) for field in schema]))


def _to_microseconds(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1)
