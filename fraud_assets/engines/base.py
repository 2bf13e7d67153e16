"""What an engine does: it lands topics, computes features, scores, and reads a training window.

A stage reads what is pending, hands a batch to the engine and commits the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Protocol, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import FEATURE_VERSION, TIME, transaction_features
from fraud_assets.core.scoring import Scorer
from fraud_assets.engines.landing_report import LandingReport
from fraud_assets.lake.batches import Bounds, Pending
from fraud_assets.lake.data_files import Rows
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.scan import files_within
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import BatchLimits, WindowPolicy

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyarrow.dataset import Expression

CLOCKS_DIFFER = timedelta(days=1)
"""A label is younger than its transaction, except if clocks differ by up to this."""


def find_history_span(times: pa.ChunkedArray, policy: WindowPolicy) -> tuple[datetime, datetime]:
    """Returns the time after which, and up to which, transactions are in a window of one at these times.

    Args:
        times: `tx_datetime` of one transaction or more, timestamp[us, UTC].
        policy: how far windows reach back.
    """
    first, last = (edge.as_py() for edge in pc.min_max(times).values())
    return first - timedelta(days=policy.history_days), last


@dataclass(frozen=True)
class FeatureBatch:
    """Landed messages to compute features of.

    Attributes:
        lake: the tables.
        work: the pending messages.
        bounds: the part of them that is in this batch.
        features: the handle that the features will be committed with.
        quarantine: the handle that the quarantine will be committed with.
        held: what quarantine already holds of the batch, if a run was killed between its two commits.
    """

    lake: Lake
    work: Pending
    bounds: Bounds
    features: DeltaTable
    quarantine: DeltaTable
    held: Pending | None

    @property
    def held_bounds(self) -> Bounds:
        """The part of the bounds in which quarantine holds rows."""
        partitions = [one for one in (self.held.target if self.held else ()) if one in self.bounds.target]
        return Bounds({p: self.bounds.start[p] for p in partitions}, {p: self.bounds.target[p] for p in partitions})


@dataclass(frozen=True)
class FeatureResult:
    """Features and quarantine of a batch, ready to be committed.

    Attributes:
        landed: number of messages of the batch.
        features: new rows of `transaction_features`.
        rejected: new rows of `quarantined_transactions`.
        reasons: number of quarantined messages by reason, those that quarantine held before included.
    """

    landed: int
    features: Rows
    rejected: Rows
    reasons: dict[str, int]


@dataclass(frozen=True)
class RecomputedRange:
    """Features that replace those of a range.

    Attributes:
        rows: a table of the range, or data files of the whole `days`.
        count: number of rows in the range.
        days: values of `tx_date` that data files replace.
    """

    rows: Rows
    count: int
    days: Sequence[date] = ()


@dataclass(frozen=True)
class ScoringBatch:
    """Feature rows to score: those within the `bounds` of `work`."""

    lake: Lake
    work: Pending
    bounds: Bounds
    scorer: Scorer


@dataclass(frozen=True)
class ScoringResult:
    """Predictions ready to be committed.

    Attributes:
        rows: new rows of `fraud_predictions`.
        alerts: how many of them alert.
        other_versions: feature versions that the model does not know; if there are any, the rows are incomplete.
    """

    rows: Rows
    alerts: int
    other_versions: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TrainingWindow:
    """The features of [start, end) and this FEATURE_VERSION, in a pinned version of their table.

    Attributes:
        lake: the tables.
        handle: that version.
        start: first moment, with zone.
        end: the moment after the last.
        files: the only files that can hold such rows.
        max_rows: number of rows in `files`, by the log.
    """

    lake: Lake
    handle: DeltaTable
    start: datetime
    end: datetime
    files: tuple[str, ...]
    max_rows: int

    @classmethod
    def of(cls, lake: Lake, start: datetime, end: datetime, handle: DeltaTable | None = None) -> TrainingWindow:
        """Returns the window of the newest version, or of the handle's. No file is read. Raises `LakeError`."""
        handle = handle or lake.open(transaction_features)
        days = (start.astimezone(UTC).date(), end.astimezone(UTC).date())
        files = tuple(files_within(handle, {"tx_date": days, "tx_datetime": (start, end)}))
        actions = add_actions(handle)
        held = dict(zip(actions["path"].to_pylist(), actions["num_records"].to_pylist(), strict=True))
        return cls(lake, handle, start, end, files, sum(held[path] for path in files))

    @property
    def where(self) -> Expression:
        """What the rows meet, by columns that are in the files themselves."""
        return (
            (pc.field("tx_datetime") >= pa.scalar(self.start, TIME))
            & (pc.field("tx_datetime") < pa.scalar(self.end, TIME))
            & (pc.field("feature_version") == FEATURE_VERSION)
        )


RowFunction: TypeAlias = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]
"""Work on rows that may be done in parts, on other machines: it can be pickled and ignores how rows are split."""


class Engine(Protocol):
    """Does the heavy work of a stage. Engines differ in speed, never in result.

    Attributes:
        limits: the largest batch that the engine takes.
        recompute_days: days that one call of `recompute_features` covers at most.
    """

    limits: BatchLimits
    recompute_days: int

    def land_topics(
        self, lake: Lake, *, transactions: bool = True, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, LandingReport]:
        """Drains both topics to the ends that they have at the start, labels first.

        Args:
            lake: the lake to land into.
            transactions: if false, only the labels topic is drained.
            stop: called between commits; once it returns true, what is committed stays and the rest waits.

        Returns:
            A report for each landing table, by table name.

        Raises:
            BrokerError, MessagesLostError, LakeError, EngineError: nothing is skipped; what was committed stays.
        """
        ...

    def compute_features(self, batch: FeatureBatch) -> FeatureResult:
        """Computes the features and the quarantine of a batch. Raises `LakeError` and `EngineError`."""
        ...

    def recompute_features(self, lake: Lake, handle: DeltaTable, start: datetime, end: datetime) -> RecomputedRange:
        """Computes the features of `tx_datetime` in [start, end) again. Raises `LakeError` and `EngineError`."""
        ...

    def score(self, batch: ScoringBatch) -> ScoringResult:
        """Scores a batch. Raises `LakeError` and `EngineError`."""
        ...

    def map_window(
        self, window: TrainingWindow, columns: Sequence[str], work: RowFunction, schema: pa.Schema
    ) -> pa.Table:
        """Does some work on the rows of a window and gathers what it yields.

        Args:
            window: the rows.
            columns: the columns that the work needs.
            work: called once or more, each time with a part of the rows.
            schema: schema of the batches that the work yields.

        Returns:
            The rows that all calls yielded, in any order.

        Raises:
            LakeError, EngineError: a file cannot be read, or a job failed.
        """
        ...
