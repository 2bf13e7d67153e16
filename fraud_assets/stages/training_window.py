"""The features of a span of time, and work on them that may be done in parts, here or on other machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import FEATURE_VERSION, TIME, transaction_features
from fraud_assets.lake.scan import files_within
from fraud_assets.lake.tables import Lake, add_actions, batches
from fraud_assets.settings import Settings

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyarrow.dataset import Expression

_COUNT = pa.schema([pa.field("rows", pa.int64()), pa.field("newest", TIME)])


@dataclass(frozen=True)
class Window:
    """The features of [start, end) and this FEATURE_VERSION in a pinned version of their table.

    `files` are the only ones that can hold them; they hold `most_rows`, by the log.
    """

    lake: Lake
    settings: Settings
    handle: DeltaTable
    start: datetime
    end: datetime
    files: tuple[str, ...]
    most_rows: int

    @classmethod
    def of(
        cls, lake: Lake, settings: Settings, start: datetime, end: datetime, handle: DeltaTable | None = None
    ) -> Window:
        """That window of the newest version, or of the handle's; no file is read. Raises `LakeError`."""
        handle = handle or lake.open(transaction_features)
        days = (start.astimezone(UTC).date(), end.astimezone(UTC).date())
        files = tuple(files_within(handle, {"tx_date": days, "tx_datetime": (start, end)}))
        actions = add_actions(handle)
        held = dict(zip(actions["path"].to_pylist(), actions["num_records"].to_pylist(), strict=True))
        return cls(lake, settings, handle, start, end, files, sum(held[path] for path in files))

    @property
    def where(self) -> Expression:
        """What its rows meet, by columns that are in the files themselves."""
        return (
            (pc.field("tx_datetime") >= pa.scalar(self.start, TIME))
            & (pc.field("tx_datetime") < pa.scalar(self.end, TIME))
            & (pc.field("feature_version") == FEATURE_VERSION)
        )


Work: TypeAlias = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]
Gather: TypeAlias = Callable[[Window, Sequence[str], Work, pa.Schema], pa.Table]
"""Does some work on the rows (these columns) of a window, in as many parts as it likes, and gathers what comes of it.

Work must not depend on how the rows are split and ordered, and must be fit for pickling.
"""


def gather_here(window: Window, columns: Sequence[str], work: Work, schema: pa.Schema) -> pa.Table:
    """The work on the whole window in this process, a few batches of rows in memory at a time."""
    rows = batches(window.handle, columns, window.files, window.where)
    return pa.Table.from_batches([batch.cast(schema) for batch in work(rows)], schema)


def gather_for(window: Window, engine: Gather) -> Gather:
    """The engine, or this process for a window that fits into its memory: no more than FRAUD_TRAIN_MAX_ROWS."""
    return engine if window.most_rows > window.settings.train_max_rows else gather_here


def count(window: Window, gather: Gather) -> tuple[int, datetime | None]:
    """How many rows the window has, and the `tx_datetime` of the newest."""

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            found = {"rows": [batch.num_rows], "newest": [pc.max(batch["tx_datetime"]).as_py()]}
            yield pa.RecordBatch.from_pydict(found, schema=_COUNT)

    counts = gather(window, ["tx_datetime"], work, _COUNT)
    return pc.sum(counts["rows"]).as_py() or 0, pc.max(counts["newest"]).as_py()
