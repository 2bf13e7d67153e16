"""Chooses the range of a training window and the engine that reads it, and reads features of a range."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import FEATURE_VERSION, TIME, transaction_features
from fraud_assets.engines.base import Engine, TrainingWindow
from fraud_assets.engines.local.engine import LocalEngine
from fraud_assets.errors import NotEnoughDataError, SettingError
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.tables import Lake, read
from fraud_assets.settings import Settings

_COUNT = pa.schema([pa.field("rows", pa.int64()), pa.field("newest", TIME)])


def choose_window_engine(window: TrainingWindow, settings: Settings, engine: Engine | None) -> Engine:
    """Returns the given engine, or a local one if the window fits into memory (at most FRAUD_TRAIN_MAX_ROWS rows)."""
    if engine is None or window.max_rows <= settings.train_max_rows:
        return LocalEngine(settings)
    return engine


def measure_window(window: TrainingWindow, engine: Engine) -> tuple[int, datetime | None]:
    """Returns the number of rows of the window and its newest `tx_datetime`, which is None if there are no rows."""

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            found = {"rows": [batch.num_rows], "newest": [pc.max(batch["tx_datetime"]).as_py()]}
            yield pa.RecordBatch.from_pydict(found, schema=_COUNT)

    counts = engine.map_window(window, ["tx_datetime"], work, _COUNT)
    return pc.sum(counts["rows"]).as_py() or 0, pc.max(counts["newest"]).as_py()


def read_features(lake: Lake, start: datetime, end: datetime, columns: Sequence[str]) -> pa.Table:
    """Reads the features of `tx_datetime` in [start, end) with the current FEATURE_VERSION, in time order.

    The order is fixed, because the samples of a forest depend on it.

    Args:
        lake: The lake.
        start: Start of the range (inclusive), with time zone.
        end: End of the range (exclusive).
        columns: The columns to read; they include `tx_datetime` and `transaction_id`.

    Raises:
        LakeError: A file cannot be read.
    """
    low, high = pa.scalar(start, TIME), pa.scalar(end, TIME)
    within = (
        (pc.field("tx_date") >= start.astimezone(UTC).date())
        & (pc.field("tx_date") <= end.astimezone(UTC).date())
        & (pc.field("tx_datetime") >= low)
        & (pc.field("tx_datetime") < high)
        & (pc.field("feature_version") == FEATURE_VERSION)
    )
    return sort_by_time(read(lake.open(transaction_features), columns, within))


def sort_by_time(rows: pa.Table) -> pa.Table:
    """Sorts rows by time and transaction id."""
    return rows.sort_by([("tx_datetime", "ascending"), ("transaction_id", "ascending")])


def find_newest_transaction(lake: Lake) -> datetime | None:
    """Returns the latest `tx_datetime` of all features, or None if there are no features."""
    handle = lake.open(transaction_features)
    actions = add_actions(handle)
    if not actions.num_rows:
        return None
    last = pc.max(actions["partition.tx_date"]).as_py()
    times = read(handle, ["tx_datetime"], pc.field("tx_date") == last)
    return pc.max(times["tx_datetime"]).as_py()


def choose_range(
    lake: Lake, settings: Settings, start: datetime | None, end: datetime | None
) -> tuple[datetime, datetime]:
    """Returns the range [start, end) of the training window. Defaults depend on the newest transaction."""
    if any(edge is not None and edge.tzinfo is None for edge in (start, end)):
        raise SettingError(f"The window from {start} to {end} has no time zone. Give UTC times.")
    if end is None:
        newest = find_newest_transaction(lake)
        if newest is None:
            raise NotEnoughDataError(
                f"Training needs {settings.train_min_rows:,} transactions (FRAUD_TRAIN_MIN_ROWS); the lake holds 0. "
                "Land some first."
            )
        end = newest + timedelta(microseconds=1)
    if start is None:
        start = end - timedelta(days=settings.train_days)
    if start >= end:
        raise SettingError(f"The window from {start} to {end} is empty. Give start < end.")
    return start, end
