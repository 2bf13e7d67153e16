"""What is left to do between landing and predictions, derived from the tables alone."""

from __future__ import annotations

from dataclasses import dataclass

from fraud_assets.core.schema import fraud_predictions, raw_transactions, transaction_features
from fraud_assets.errors import NoChampionError
from fraud_assets.lake.batches import pending
from fraud_assets.lake.positions import digest, stored
from fraud_assets.lake.tables import Lake, row_count
from fraud_assets.registry import champion_version
from fraud_assets.settings import Settings

FEATURES = ("transaction_features", "quarantined_transactions")
MODEL = ("isolation_forest", "alert_thresholds")
PREDICTIONS = ("fraud_predictions",)


@dataclass(frozen=True)
class Backlog:
    """Assets to materialize (empty: none), why, and the positions the work starts from and leads to."""

    assets: tuple[str, ...]
    reason: str
    start: str = ""
    target: str = ""

    @property
    def training(self) -> bool:
        """Whether the first training is part of it."""
        return MODEL[0] in self.assets


def backlog(lake: Lake, settings: Settings) -> Backlog:
    """Landed messages without features, features without a score, and a missing champion that could be trained."""
    features, predictions = lake.open(transaction_features), lake.open(fraud_predictions)
    landed = pending(lake.open(raw_transactions), lambda stream: stored(features, stream), settings)
    unscored = pending(features, lambda stream: stored(predictions, stream), settings)
    try:
        champion_version(settings)
        has_champion = True
    except NoChampionError:
        has_champion = False
    enough = row_count(features) + landed.rows >= settings.train_min_rows
    assets: tuple[str, ...] = FEATURES if landed.rows else ()
    if (landed.rows or unscored.rows) and has_champion:
        assets += PREDICTIONS
    elif (landed.rows or unscored.rows) and enough:
        assets += MODEL + PREDICTIONS
    if not assets:
        reason = (
            f"{unscored.rows:,} transactions wait for a first model, which needs {settings.train_min_rows:,}."
            if unscored.rows
            else "Everything that landed is scored."
        )
        return Backlog((), reason)
    start = digest({**landed.start, **{s._replace(topic=f"scored:{s.topic}"): o for s, o in unscored.start.items()}})
    target = digest({**landed.target, **{s._replace(topic=f"scored:{s.topic}"): o for s, o in unscored.target.items()}})
    return Backlog(assets, f"{landed.rows:,} landed and {unscored.rows:,} unscored rows are pending.", start, target)
