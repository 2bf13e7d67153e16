"""What is left to do between landing and predictions, derived from the tables alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from deltalake import DeltaTable

from fraud_assets.core.schema import fraud_predictions, raw_transactions, transaction_features
from fraud_assets.errors import NoChampionError
from fraud_assets.lake.batches import Pending, find_pending
from fraud_assets.lake.log import row_count
from fraud_assets.lake.positions import committed_offset, digest
from fraud_assets.lake.tables import Lake
from fraud_assets.registry.champion import describe_lost_registry
from fraud_assets.registry.models import champion_version
from fraud_assets.settings import Settings
from fraud_assets.stages.training import find_newest_transaction, read_features

FEATURES: tuple[str, ...] = ("transaction_features", "quarantined_transactions")
MODEL: tuple[str, ...] = ("isolation_forest", "alert_thresholds")
PREDICTIONS: tuple[str, ...] = ("fraud_predictions",)


@dataclass(frozen=True)
class Backlog:
    """Assets to materialize (empty: none) and why.

    `progress` says how far each stage with work is, as a text that changes when the stage commits and not when
    more lands; `target` names the positions that the work leads to.
    """

    assets: tuple[str, ...]
    reason: str
    progress: Mapping[str, str] = field(default_factory=dict)
    target: str = ""

    @property
    def training(self) -> bool:
        """Whether the first training is part of it."""
        return MODEL[0] in self.assets


def has_champion(settings: Settings) -> bool:
    """Whether any model can score yet. Raises `ModelRegistryError`."""
    try:
        champion_version(settings)
    except NoChampionError:
        return False
    return True


def find_backlog(lake: Lake, settings: Settings) -> Backlog:
    """Landed messages without features, features without a score, and a missing champion that could be trained."""
    if not lake.exists(raw_transactions):
        return Backlog((), "Nothing has landed yet.")
    features, predictions = lake.open(transaction_features), lake.open(fraud_predictions)
    landed = find_pending(lake.open(raw_transactions), lambda stream: committed_offset(features, stream), settings)
    unscored = find_pending(features, lambda stream: committed_offset(predictions, stream), settings)
    if not landed.rows and not unscored.rows:
        return Backlog((), "Everything that landed is scored.")
    assets: tuple[str, ...] = FEATURES if landed.rows else ()
    trainable = 0
    ready = has_champion(settings)
    # A person decides whether to train again: this may be the wrong registry.
    lost = "" if ready else describe_lost_registry(lake, settings)
    if ready:
        assets += PREDICTIONS
    elif not lost:
        trainable = _trainable(lake, settings)
        if trainable + landed.rows >= settings.train_min_rows:
            assets += MODEL + PREDICTIONS
    if not assets:
        return Backlog(
            (),
            f"{unscored.rows:,} transactions wait. {lost}"
            if lost
            else f"{unscored.rows:,} transactions wait for a first model, which needs {settings.train_min_rows:,} "
            f"(FRAUD_TRAIN_MIN_ROWS) within {settings.train_days} days (FRAUD_TRAIN_DAYS); there are {trainable:,}.",
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


def _trainable(lake: Lake, settings: Settings) -> int:
    """Rows of the default training window."""
    newest = find_newest_transaction(lake)
    if newest is None:
        return 0
    end = newest + timedelta(microseconds=1)
    return read_features(
        lake, end - timedelta(days=settings.train_days), end, ("transaction_id", "tx_datetime")
    ).num_rows


def _progress(target: DeltaTable, work: Pending) -> str:
    """The target's identity (a lake recreated starts anew) and the source rows that it has taken."""
    return f"{str(target.metadata().id)[:8]}:{row_count(work.source) - work.rows}"
