"""The interface of a compute engine.

A stage reads the pending rows of its source table, gives a batch to an `Engine` and commits the result. Engines differ
in speed, never in results: `engines.local` computes in this process, `engines.spark` on Spark's executors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Protocol, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import FEATURE_VERSION, TIME, transaction_features
from fraud_assets.core.scoring import Scorer
from fraud_assets.engines.landing_report import LandingReport
from fraud_assets.lake.batches import Bounds, Pending
from fraud_assets.lake.data_files import Rows
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.scan import find_files_within
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import BatchLimits

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyarrow.dataset import Expression

RowFunction: TypeAlias = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]
"""A function on rows. It can be pickled, and its result does not depend on how the rows are split into batches."""


class Engine(Protocol):
    """Lands topics, computes features, scores rows and reads training windows.

    Attributes:
        limits: Maximum size of a batch.
        recompute_days: Maximum number of days of one call of `recompute_features`.
    """

    limits: BatchLimits
    recompute_days: int

    def land_topics(
        self, lake: Lake, *, transactions: bool = True, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, LandingReport]:
        """Drains both topics up to their ends at the time of the call, labels first.

        Args:
            lake: The lake to land into.
            transactions: Whether to drain the transactions topic. If false, only the labels topic is drained.
            stop: Called between commits. Once it returns true, landing ends; committed batches stay.

        Returns:
            A report for each landing table, by table name.

        Raises:
            BrokerError, MessagesLostError, LakeError, EngineError: Nothing is skipped, and committed batches stay.
        """
        ...

    def compute_features(self, batch: FeatureBatch) -> FeatureResult:
        """Computes the features and the quarantine of a batch.

        Raises:
            LakeError: A table cannot be read, or memory and disk do not suffice.
            EngineError: A job failed.
        """
        ...

    def recompute_features(self, lake: Lake, handle: DeltaTable, start: datetime, end: datetime) -> RecomputedRange:
        """Recomputes the features of `tx_datetime` in [start, end) with the current history and labels.

        Args:
            lake: The lake with the labels.
            handle: The version of the features that the result replaces.
            start: Start of the range (inclusive), with time zone.
            end: End of the range (exclusive).

        Raises:
            LakeError: A table cannot be read, or memory and disk do not suffice.
            EngineError: A job failed.
        """
        ...

    def score(self, batch: ScoringBatch) -> ScoringResult:
        """Scores a batch.

        Raises:
            LakeError: A table cannot be read.
            EngineError: A job failed.
        """
        ...

    def map_window(
        self, window: TrainingWindow, columns: Sequence[str], function: RowFunction, schema: pa.Schema
    ) -> pa.Table:
        """Runs a function on the rows of a training window and collects its output.

        Args:
            window: The rows.
            columns: The columns that the function needs.
            function: Called once or more, each time with a part of the rows.
            schema: The schema of the batches that the function yields.

        Returns:
            The rows that all calls yielded, in any order.

        Raises:
            LakeError: A file cannot be read.
            EngineError: A job failed.
        """
        ...


@dataclass(frozen=True)
class FeatureBatch:
    """Landed messages whose features are computed.

    Attributes:
        lake: The lake.
        pending: All pending messages.
        bounds: The part of them that belongs to this batch.
        features: The handle that commits the features.
        quarantine: The handle that commits the quarantine.
        quarantined: Rows of the batch that quarantine already holds, if a run was killed between its two commits.
    """

    lake: Lake
    pending: Pending
    bounds: Bounds
    features: DeltaTable
    quarantine: DeltaTable
    quarantined: Pending | None

    @property
    def quarantined_bounds(self) -> Bounds:
        """The part of the bounds in which quarantine already holds rows."""
        held = self.quarantined.target if self.quarantined else ()
        partitions = [source for source in held if source in self.bounds.target]
        return Bounds({p: self.bounds.start[p] for p in partitions}, {p: self.bounds.target[p] for p in partitions})


@dataclass(frozen=True)
class FeatureResult:
    """Features and quarantine of a batch, ready to commit.

    Attributes:
        landed: Number of messages of the batch.
        features: New rows of `transaction_features`.
        rejected: New rows of `quarantined_transactions`.
        reasons: Number of quarantined messages by reason, including those that quarantine already held.
    """

    landed: int
    features: Rows
    rejected: Rows
    reasons: dict[str, int]


@dataclass(frozen=True)
class RecomputedRange:
    """Features that replace those of a range.

    Attributes:
        rows: A table with the rows of the range, or data files with all rows of `days`.
        count: Number of rows in the range.
        days: Values of `tx_date` that the data files replace.
    """

    rows: Rows
    count: int
    days: Sequence[date] = ()


@dataclass(frozen=True)
class ScoringBatch:
    """Feature rows to score: the rows of `pending` within `bounds`."""

    lake: Lake
    pending: Pending
    bounds: Bounds
    scorer: Scorer


@dataclass(frozen=True)
class ScoringResult:
    """Predictions, ready to commit.

    Attributes:
        rows: New rows of `fraud_predictions`.
        alerts: Number of rows that alert.
        other_versions: Feature versions that the model does not support. If there are any, the rows are incomplete.
    """

    rows: Rows
    alerts: int
    other_versions: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TrainingWindow:
    """The features of `tx_datetime` in [start, end) with the current FEATURE_VERSION, in a pinned table version.

    Attributes:
        lake: The lake.
        handle: The pinned version of `transaction_features`.
        start: Start of the range (inclusive), with time zone.
        end: End of the range (exclusive).
        files: The files that can hold such rows.
        max_rows: Number of rows in `files`, from the table's log.
    """

    lake: Lake
    handle: DeltaTable
    start: datetime
    end: datetime
    files: tuple[str, ...]
    max_rows: int

    @classmethod
    def of(cls, lake: Lake, start: datetime, end: datetime, handle: DeltaTable | None = None) -> TrainingWindow:
        """Creates the window from the table's log. It reads no data file.

        Args:
            lake: The lake.
            start: Start of the range (inclusive), with time zone.
            end: End of the range (exclusive).
            handle: The version of `transaction_features`; default: the newest.

        Raises:
            LakeError: The table cannot be read.
        """
        handle = handle or lake.open(transaction_features)
        days = (start.astimezone(UTC).date(), end.astimezone(UTC).date())
        files = tuple(find_files_within(handle, {"tx_date": days, "tx_datetime": (start, end)}))
        actions = add_actions(handle)
        rows = dict(zip(actions["path"].to_pylist(), actions["num_records"].to_pylist(), strict=True))
        return cls(lake, handle, start, end, files, sum(rows[path] for path in files))

    @property
    def where(self) -> Expression:
        """The condition that the rows meet. It uses only columns that the files themselves contain."""
        return (
            (pc.field("tx_datetime") >= pa.scalar(self.start, TIME))
            & (pc.field("tx_datetime") < pa.scalar(self.end, TIME))
            & (pc.field("feature_version") == FEATURE_VERSION)
        )
