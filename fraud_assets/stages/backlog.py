"""Finds the pending work between landing and predictions from the tables alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from deltalake import DeltaTable

from fraud_assets.core.schema import fraud_predictions, raw_transactions, transaction_features
from fraud_assets.errors import NoChampionError
from fraud_assets.lake.batches import Pending, find_pending
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.positions import committed_offset, digest
from fraud_assets.lake.tables import Lake
from fraud_assets.registry.champion import describe_lost_registry
from fraud_assets.registry.models import find_champion_version
from fraud_assets.settings import Settings
from fraud_assets.stages.training_window import find_newest_transaction, read_features

FEATURES: tuple[str, ...] = ("transaction_features", "quarantined_transactions")
MODEL: tuple[str, ...] = ("isolation_forest", "alert_thresholds")
PREDICTIONS: tuple[str, ...] = ("fraud_predictions",)


@dataclass(frozen=True)
class Backlog:
    """The pending work.

    Attributes:
        assets: The assets to materialize; empty if there is no work.
        reason: A sentence that explains the choice of assets.
        progress: The progress of each stage that has work. The text changes if the stage commits, but not if more
            messages land.
        target: A text that identifies the positions at which the work ends.
    """

    assets: tuple[str, ...]
    reason: str
    progress: Mapping[str, str] = field(default_factory=dict)
    target: str = ""

    @property
    def training(self) -> bool:
        """Whether the work includes the first training."""
        return MODEL[0] in self.assets


def has_champion(settings: Settings) -> bool:
    """Returns whether a champion exists.

    Raises:
        ModelRegistryError: The registry cannot be read.
    """
    try:
        find_champion_version(settings)
    except NoChampionError:
        return False
    return True


def find_backlog(lake: Lake, settings: Settings) -> Backlog:
    """Finds landed messages without features, features without a score, and a missing champion that can be trained.

    Raises:
        LakeError: A table cannot be read.
        ModelRegistryError: The registry cannot be read.
    """
    if not lake.exists(raw_transactions):
        return Backlog((), "Nothing has landed yet.")
    features, predictions = lake.open(transaction_features), lake.open(fraud_predictions)
    landed = find_pending(lake.open(raw_transactions), lambda source: committed_offset(features, source), settings)
    unscored = find_pending(features, lambda source: committed_offset(predictions, source), settings)
    if not landed.rows and not unscored.rows:
        return Backlog((), "Everything that landed is scored.")
    assets: tuple[str, ...] = FEATURES if landed.rows else ()
    trainable = 0
    is_ready = has_champion(settings)
    # Training does not start by itself if the registry was lost: the settings may name the wrong registry.
    lost = "" if is_ready else describe_lost_registry(lake, settings)
    if is_ready:
        assets += PREDICTIONS
    elif not lost:
        trainable = _count_trainable_rows(lake, settings)
        if trainable + landed.rows >= settings.train_min_rows:
            assets += MODEL + PREDICTIONS
    if not assets:
        return Backlog(
            (),
            f"{unscored.rows:,} transactions wait for a champion. {lost}"
            if lost
            else f"{unscored.rows:,} transactions wait for the first model. It needs {settings.train_min_rows:,} "
            f"transactions (FRAUD_TRAIN_MIN_ROWS) within {settings.train_days} days (FRAUD_TRAIN_DAYS); the lake holds "
            f"{trainable:,}.",
        )
    progress = {}
    if landed.rows:
        progress["features"] = _progress(features, landed)
    if PREDICTIONS[0] in assets:
        progress["predictions"] = _progress(predictions, unscored)
    return Backlog(
        assets,
        f"{landed.rows:,} landed and {unscored.rows:,} unscored rows are pending.",
        progress,
        f"{digest(landed.target)}-{digest(unscored.target)}",
    )


def _count_trainable_rows(lake: Lake, settings: Settings) -> int:
    """Counts the rows of the default training window."""
    newest = find_newest_transaction(lake)
    if newest is None:
        return 0
    end = newest + timedelta(microseconds=1)
    return read_features(
        lake, end - timedelta(days=settings.train_days), end, ("transaction_id", "tx_datetime")
    ).num_rows


def _progress(target: DeltaTable, pending: Pending) -> str:
    """Returns the id of the target, which changes if the lake is recreated, and its number of processed source rows."""
    return f"{str(target.metadata().id)[:8]}:{read_row_count(pending.source) - pending.rows}"
