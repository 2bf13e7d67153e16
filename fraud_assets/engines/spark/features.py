"""Features and quarantine of a batch on Spark: parsed by the one parser, windowed by the one definition."""

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
from fraud_assets.engines.spark.headers import text_headers, with_text
from fraud_assets.engines.spark.tables import group_slices, run_tasks, scan, write
from fraud_assets.kafka.schemas import transaction_decoder
from fraud_assets.lake.batches import Bounds, Pending
from fraud_assets.lake.data_files import Slice, list_slices, read_slices
from fraud_assets.lake.positions import rows_between
from fraud_assets.lake.scan import files_within
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyspark.sql import DataFrame, SparkSession

_LANDING = ("ingested_at", *POSITION_COLUMNS)
_ARRIVAL = (*_LANDING, *TRANSACTION.names, "tx_during_weekend", "tx_during_night", "tx_date")
"""What comes before the first difference orders the arrival; the rest travels with its row through the windows."""
_QUARANTINED = text_headers(QUARANTINED_TRANSACTIONS)
_JUDGED = pa.schema(
    [*VALID_TRANSACTIONS, *(field for field in _QUARANTINED if field.name not in VALID_TRANSACTIONS.names)]
)
"""A parsed message: the columns of a good one, or those of a rejected one, whose `reason` is not null."""
_DOUBLES = pa.schema(
    [*(VALID_TRANSACTIONS.field(name) for name in POSITION_COLUMNS), QUARANTINED_TRANSACTIONS.field("detail")]
)


def recompute_features(
    spark: SparkSession, lake: Lake, handle: DeltaTable, low: datetime, high: datetime, settings: Settings
) -> RecomputedRange:
    """Computes the features of `tx_datetime` in [low, high) again and writes the days that hold them."""
    from pyspark.sql import functions as F  # noqa: N812

    low, high = low.astimezone(UTC), high.astimezone(UTC)
    days = (low.date(), (high - timedelta(microseconds=1)).date())
    files = files_within(handle, {"tx_date": days})
    if not files:
        return RecomputedRange([], 0)
    with ExitStack() as kept:
        stored = _kept(scan(spark, lake, transaction_features, handle, files), kept)
        again = (F.col("tx_datetime") >= F.lit(low)) & (F.col("tx_datetime") < F.lit(high))
        rows = stored.where(again)
        edges = rows.agg(F.min("tx_datetime"), F.max("tx_datetime"), F.count("*").alias("rows")).toArrow()
        first, last, count = edges.to_pylist()[0].values()
        if not count:
            return RecomputedRange([], 0)
        since, until = find_history_span(pa.chunked_array([pa.array([first, last], TIME)]), settings.window_policy)
        history = _history(spark, lake, handle, rows, since, until)
        history = None if history is None else history.where(~again)
        table = _windowed(spark, lake, settings, rows, history, (since, until), partial(_kept, kept=kept))
        table = table.unionByName(stored.where(~again).select(*TRANSACTION_FEATURES.names))
        written = write(table.hint("rebalance", "tx_date"), lake, transaction_features)
    held = sorted({date.fromisoformat(str(file.partition)) for file in written})
    return RecomputedRange(written, int(count), held)


def compute_features(spark: SparkSession, batch: FeatureBatch, settings: Settings) -> FeatureResult:
    """Parses the messages of a batch, sets duplicates apart, computes the features and writes data files."""
    from pyspark.sql import functions as F  # noqa: N812

    lake = batch.lake
    with ExitStack() as kept:
        judged = _judged(spark, batch, settings)
        held = _held(spark, batch)
        if held is not None:
            judged = judged.join(held, list(POSITION_COLUMNS), "left_anti")
        judged = _kept(judged, kept)
        by_reason = judged.groupBy("reason").agg(
            F.count("*").alias("rows"),
            F.min("tx_datetime").alias("first"),
            F.max("tx_datetime").alias("last"),
            F.min("ingested_at").alias("landed"),
        )
        found = {row["reason"]: row for row in by_reason.toArrow().to_pylist()}
        good = found.pop(None, None)
        reasons = {reason: row["rows"] for reason, row in found.items()}
        rejected = judged.where("reason is not null").select(*QUARANTINED_TRANSACTIONS.names)
        valid = judged.where("reason is null").select(*VALID_TRANSACTIONS.names)
        if good is not None:
            doubles = _kept(_doubles(spark, batch, valid, good["landed"], settings), kept)
            if repeats := doubles.count():
                valid = valid.join(doubles, list(POSITION_COLUMNS), "left_anti")
                rejected = rejected.unionByName(_bodies(spark, batch, doubles))
                reasons[DUPLICATE] = repeats
        waiting = write(rejected, lake, quarantined_transactions) if reasons else []
        features = []
        if good is not None and good["rows"] > reasons.get(DUPLICATE, 0):
            times = pa.chunked_array([pa.array([good["first"], good["last"]], TIME)])
            since, last = find_history_span(times, settings.window_policy)
            history = _history(spark, lake, batch.features, valid, since, last)
            rows = _windowed(spark, lake, settings, valid, history, (since, last), partial(_kept, kept=kept))
            features = write(rows.hint("rebalance", "tx_date"), lake, transaction_features)
        if held is not None:
            for row in held.groupBy("reason").count().toArrow().to_pylist():
                reasons[row["reason"]] = reasons.get(row["reason"], 0) + row["count"]
        landed = sum(file.rows for file in features) + sum(reasons.values())
    return FeatureResult(landed, features, waiting, reasons)


def _kept(frame: DataFrame, kept: ExitStack) -> DataFrame:
    """The rows, computed once and held on the executors' disks until the batch is done."""
    from pyspark.storagelevel import StorageLevel

    # In memory it is no faster, and read back from the disk a piece of some hundred megabytes ends the executor.
    frame = frame.persist(StorageLevel.DISK_ONLY)
    kept.callback(frame.unpersist)
    return frame


def _judged(spark: SparkSession, batch: FeatureBatch, settings: Settings) -> DataFrame:
    """Every message of the batch as a row of `_JUDGED`."""

    def parse(raw: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        good, bad = parse_transactions(pa.Table.from_batches([raw]), settings.contract, transaction_decoder(settings))
        for rows in (good, with_text(bad)):
            yield from _padded(rows, _JUDGED).to_batches()

    return _within(spark, batch.lake, batch.pending, batch.bounds, parse, _JUDGED)


def _within(
    spark: SparkSession,
    lake: Lake,
    work: Pending,
    bounds: Bounds,
    change: Callable[[pa.RecordBatch], Iterator[pa.RecordBatch]],
    schema: pa.Schema,
) -> DataFrame:
    """What `change` makes of the landed messages within the bounds."""
    table = raw_transactions
    place = lake.location(table)

    def read(slices: Sequence[Slice]) -> Iterator[pa.RecordBatch]:
        for rows in read_slices(place, slices, table.schema, table.partition_by):
            chosen = rows_between(rows, bounds.start, bounds.target)
            if chosen.num_rows:
                yield from change(chosen)

    return run_tasks(spark, group_slices(spark, list_slices(work.source, work.files, table)), read, schema)


def _held(spark: SparkSession, batch: FeatureBatch) -> DataFrame | None:
    """Position and reason of what quarantine holds of the batch."""
    if batch.quarantined is None or not batch.quarantined.target:
        return None
    bounds = batch.quarantined_bounds
    columns = (*POSITION_COLUMNS, "reason")
    table = quarantined_transactions
    schema = pa.schema([table.schema.field(name) for name in columns])
    place = batch.lake.location(table)

    def read(slices: Sequence[Slice]) -> Iterator[pa.RecordBatch]:
        for rows in read_slices(place, slices, schema, table.partition_by):
            yield rows_between(rows, bounds.start, bounds.target)

    return run_tasks(
        spark, group_slices(spark, list_slices(batch.quarantined.source, batch.quarantined.files, table)), read, schema
    )


def _doubles(
    spark: SparkSession, batch: FeatureBatch, valid: DataFrame, landed: datetime, settings: Settings
) -> DataFrame:
    """Position of every repeated id of the batch, and the sentence that says where it landed first."""
    from pyspark.sql import Window as W  # noqa: N817
    from pyspark.sql import functions as F  # noqa: N812
    from pyspark.sql.pandas.types import from_arrow_schema

    horizon = timedelta(days=settings.duplicate_horizon_days)
    columns = ("transaction_id", *_LANDING)
    ids = valid.select(*columns, F.lit(True).alias("is_new"))
    files = files_within(batch.features, {"ingested_at": (landed - horizon, None)})
    if files:
        known = scan(spark, batch.lake, transaction_features, batch.features, files, columns)
        known = known.join(ids.select("transaction_id").distinct(), "transaction_id", "left_semi")
        ids = ids.unionByName(known.select(*columns, F.lit(False).alias("is_new")))
    more = F.count("*").over(W.partitionBy("transaction_id"))
    candidates = ids.withColumn("more", more).where("more > 1").drop("more")

    def judge(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        # The window left all rows of an id in one partition.
        held = [rows for rows in batches if rows.num_rows]
        if not held:
            return
        rows = pa.Table.from_batches(held).sort_by([(name, "ascending") for name in _LANDING])
        new = rows.filter(rows["is_new"])
        verdicts = find_duplicates(
            _landed(rows.filter(pc.invert(rows["is_new"]))), _landed(new), _microseconds(horizon)
        )
        doubles = new.select(list(POSITION_COLUMNS)).append_column("detail", pa.array(verdicts, pa.string()))
        yield from doubles.filter(pc.is_valid(doubles["detail"])).cast(_DOUBLES).to_batches()

    return candidates.mapInArrow(judge, from_arrow_schema(_DOUBLES))


def _landed(rows: pa.Table) -> Iterator[LandedTransaction]:
    times = rows["ingested_at"].cast(pa.int64()).to_pylist()
    columns = (rows[name].to_pylist() for name in ("transaction_id", "topic", "partition", "offset"))
    for transaction_id, topic, partition, offset, landed_us in zip(*columns, times, strict=True):
        yield LandedTransaction(transaction_id, landed_us, topic, partition, offset)


def _bodies(spark: SparkSession, batch: FeatureBatch, doubles: DataFrame) -> DataFrame:
    """The repeated messages as they came, for quarantine."""
    from pyspark.sql import functions as F  # noqa: N812

    def as_is(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield from with_text(pa.Table.from_batches([rows])).to_batches()

    messages = _within(spark, batch.lake, batch.pending, batch.bounds, as_is, text_headers(raw_transactions.schema))
    found = messages.join(doubles, list(POSITION_COLUMNS)).withColumn("reason", F.lit(DUPLICATE))
    return found.select(*QUARANTINED_TRANSACTIONS.names)


def _history(
    spark: SparkSession, lake: Lake, features: DeltaTable, rows: DataFrame, since: datetime, last: datetime
) -> DataFrame | None:
    """Earlier transactions of the rows' customers and terminals, as far back as their windows reach."""
    near = files_within(features, {"tx_date": (since.date(), last.date()), "tx_datetime": (since, last)})
    if not near:
        return None
    columns = (*_LANDING, *TRANSACTION.names)
    when = (pc.field("tx_datetime") > pa.scalar(since, TIME)) & (pc.field("tx_datetime") <= pa.scalar(last, TIME))
    found = scan(spark, lake, transaction_features, features, near, columns, when)
    customers, terminals = (rows.select(name).distinct() for name in ("customer_id", "terminal_id"))
    of_terminals = found.join(terminals, "terminal_id", "left_semi")
    others = found.join(terminals, "terminal_id", "left_anti").join(customers, "customer_id", "left_semi")
    return of_terminals.select(*columns).unionByName(others.select(*columns))


def _windowed(
    spark: SparkSession,
    lake: Lake,
    settings: Settings,
    rows: DataFrame,
    history: DataFrame | None,
    span: tuple[datetime, datetime],
    keep: Callable[[DataFrame], DataFrame],
) -> DataFrame:
    """TRANSACTION_FEATURES of the rows, with the history given; `span` is how far their windows reach."""
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
    labels = _labels(spark, lake, *span)
    kind = transactions.schema["arrival"].dataType
    windows = window_features(transactions, labels, settings.feedback_delay_days, F, W, kind, keep)
    table = windows.select("arrival.*", *(name for name in windows.columns if name != "arrival"))
    return table.withColumn("feature_version", F.lit(FEATURE_VERSION)).select(*TRANSACTION_FEATURES.names)


def _labels(spark: SparkSession, lake: Lake, since: datetime, last: datetime) -> DataFrame:
    """All labels of transactions that were called fraud, up to the newest transaction."""
    from pyspark.sql import functions as F  # noqa: N812

    handle = lake.open(fraud_labels)
    since -= CLOCKS_DIFFER
    files = files_within(handle, {"labelled_at": (since, last)})
    columns = ("transaction_id", "is_fraud", "labelled_at", *_LANDING)
    when: Any = (pc.field("labelled_at") >= pa.scalar(since, TIME)) & (pc.field("labelled_at") <= pa.scalar(last, TIME))
    labels = scan(spark, lake, fraud_labels, handle, files, columns, when)
    ever_fraud = labels.where("is_fraud").select("transaction_id").distinct()
    return labels.join(ever_fraud, "transaction_id", "left_semi").select(
        "transaction_id",
        "is_fraud",
        F.unix_micros("labelled_at").alias("labelled_us"),
        F.struct(*_LANDING).alias("arrival"),
    )


def _padded(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with nulls for the columns that they do not have."""
    columns = [
        rows[f.name].cast(f.type) if f.name in rows.column_names else pa.nulls(rows.num_rows, f.type) for f in schema
    ]
    return pa.table(columns, schema=pa.schema([field.with_nullable(True) for field in schema]))


def _microseconds(span: timedelta) -> int:
    return span // timedelta(microseconds=1)
