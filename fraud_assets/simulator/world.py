"""The simulated world of a lake: who pays there, and up to when. Kept in FRAUD_HOME, so that every run continues it.

Traffic of other customers, or of the same customers at another rate, has no history in the lake. It looks unusual and
raises far more alerts than the budget allows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fraud_assets.errors import DiskError, FraudAssetsError, SettingError
from fraud_assets.settings import Settings
from fraud_assets.system.files import replaced_file

FILE = "simulated_world.json"
UNUSUAL_SHARE = 0.5
"""Traffic that adds more than this share to the customers' own payments deserves a warning."""


@dataclass(frozen=True)
class World:
    """A population, by what it is made of, and the time that its traffic covers.

    Attributes:
        seed: of the population.
        customers: size of the population.
        lived_until: its own traffic was sent up to this time; with a time zone.
    """

    seed: int
    customers: int
    lived_until: datetime

    def lived_to(self, moment: datetime) -> World:
        """The same world at a later moment."""
        return replace(self, lived_until=moment)

    def same_people(self, other: World) -> bool:
        """Whether both have the same population."""
        return (self.seed, self.customers) == (other.seed, other.customers)


def world_file(settings: Settings) -> Path:
    """Where a home keeps its world."""
    return settings.home_path / FILE


def load_world(settings: Settings) -> World | None:
    """The world of this home, or None if it has none yet.

    Raises:
        SettingError: the file cannot be read as a world.
    """
    path = world_file(settings)
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        world = World(int(entry["seed"]), int(entry["customers"]), datetime.fromisoformat(entry["lived_until"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_a_world(path, type(error).__name__) from None
    if world.seed < 0 or world.customers < 1 or world.lived_until.tzinfo is None:
        raise _not_a_world(path, "a value is out of range")
    return world


def _not_a_world(path: Path, reason: str) -> SettingError:
    return SettingError(
        f"{path} cannot be read as the simulated world of this home ({reason}). "
        "Remove the file; the next `fraud-assets simulate` then makes a new world."
    )


def save_world(world: World, settings: Settings) -> None:
    """Writes the world to its file, as a whole or not at all.

    Raises:
        DiskError: the file cannot be written.
    """
    path = world_file(settings)
    until = world.lived_until.astimezone(UTC).isoformat()
    entry = {"seed": world.seed, "customers": world.customers, "lived_until": until}
    try:
        with replaced_file(path) as part:
            part.write(json.dumps(entry).encode() + b"\n")
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror}. Set FRAUD_HOME to a writable folder.") from error


class WorldKeeper:
    """Keeps how far a world has lived.

    Args:
        world: where it stands now; kept at once, so that other commands continue it.
        settings: of the home.
        enabled: False for a world beside the home's own, which is not kept.
    """

    def __init__(self, world: World, settings: Settings, *, enabled: bool = True) -> None:
        self.world, self._settings, self._enabled = world, settings, enabled
        self.lived_to(world.lived_until)

    def lived_to(self, moment: datetime, at_least: timedelta = timedelta(0)) -> None:
        """Keeps the moment, if it is `at_least` so much later than the one kept last."""
        if moment - self.world.lived_until < at_least:
            return
        self.world = self.world.lived_to(moment)
        if self._enabled:
            save_world(self.world, self._settings)


def days_between(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The time (start, end] in pieces that end at midnight UTC, the last one at `end`.

    A whole day is always the same piece, so that its payments have the same ids when they are sent again.
    """
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    while start < end:
        midnight = start.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        yield start, min(midnight, end)
        start = midnight


def lake_is_empty(settings: Settings) -> bool:
    """Whether no transaction has landed yet; False also if the lake cannot be read now."""
    from fraud_assets.core.schema import raw_transactions
    from fraud_assets.lake.log import add_actions
    from fraud_assets.lake.tables import Lake

    try:
        lake = Lake.of(settings)
        return not lake.exists(raw_transactions) or add_actions(lake.open(raw_transactions)).num_rows == 0
    except FraudAssetsError:
        return False


def why_unusual(
    known: World | None, world: World, added_per_day: float, own_per_day: float, settings: Settings
) -> str | None:
    """A sentence with its remedy if traffic will alert more often than the budget allows; else None.

    Args:
        known: the world of this home before this traffic; None if it had none.
        world: who pays in this traffic.
        added_per_day: payments of this traffic that come on top of the people's own.
        own_per_day: what the people pay by themselves.
        settings: of the home.
    """
    remedy = "expect more alerts than the budget. To avoid that, {}set FRAUD_HOME to a new folder."
    if known is None and not lake_is_empty(settings):
        return (
            f"The lake holds transactions, but not of a simulated world ({world_file(settings)} is missing). The "
            "simulated customers have no history there: " + remedy.format("")
        )
    if known is not None and not known.same_people(world):
        return (
            f"The simulated world of this home has {known.customers:,} customers, not {world.customers:,}. Customers "
            "of another world have no history in the lake: " + remedy.format("leave out --customers, or ")
        )
    if added_per_day > UNUSUAL_SHARE * own_per_day:
        return (
            f"This adds {added_per_day:,.0f} payments a day to the {own_per_day:,.0f} that these {world.customers:,} "
            "customers make by themselves: " + remedy.format("send fewer or spread them over more days, or ")
        )
    return None
