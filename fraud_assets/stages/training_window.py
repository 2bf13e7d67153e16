"""Which engine reads a training window, and how many rows it has."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import TIME
from fraud_assets.engines.base import Engine, TrainingWindow
from fraud_assets.engines.local.engine import LocalEngine
from fraud_assets.settings import Settings

_COUNT = pa.schema([pa.field("rows", pa.int64()), pa.field("newest", TIME)])


def choose_window_engine(window: TrainingWindow, settings: Settings, engine: Engine | None) -> Engine:
    """Returns the engine, or this process for a window that fits into its memory: FRAUD_TRAIN_MAX_ROWS at most."""
    if engine is None or window.max_rows <= settings.train_max_rows:
        return LocalEngine(settings)
    return engine


def measure_window(window: TrainingWindow, engine: Engine) -> tuple[int, datetime | None]:
    """How many rows the window has, and the `tx_datetime` of the newest."""

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            found = {"rows": [batch.num_rows], "newest": [pc.max(batch["tx_datetime"]).as_py()]}
            yield pa.RecordBatch.from_pydict(found, schema=_COUNT)

    counts = engine.map_window(window, ["tx_datetime"], work, _COUNT)
    return pc.sum(counts["rows"]).as_py() or 0, pc.max(counts["newest"]).as_py()
