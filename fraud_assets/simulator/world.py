"""Stores the simulated world of a home in FRAUD_HOME: its population, and the time up to which it was simulated.

Each simulation continues the stored world. Traffic of other customers, or of the same customers at another rate, has no
history in the lake. It looks unusual and raises far more alerts than the budget allows.
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
"""Traffic that adds more than this share to the customers' own payments causes a warning."""


@dataclass(frozen=True)
class World:
    """A population, by the arguments that reproduce it, and the time up to which its traffic was sent.

    Attributes:
        seed: random seed of the population.
        customers: size of the population.
        simulated_until: time up to which the population's own traffic was sent; with a time zone.
    """

    seed: int
    customers: int
    simulated_until: datetime

    def advance_to(self, moment: datetime) -> World:
        """Returns the same world, simulated until `moment`."""
        return replace(self, simulated_until=moment)

    def same_people(self, other: World) -> bool:
        """Whether both worlds have the same population."""
        return (self.seed, self.customers) == (other.seed, other.customers)


def locate_world_file(settings: Settings) -> Path:
    """Returns the path of the file that stores a home's world."""
    return settings.home_path / FILE


def load_world(settings: Settings) -> World | None:
    """Loads the world of a home; None if it has none yet.

    Raises:
        SettingError: the file cannot be read as a world.
    """
    path = locate_world_file(settings)
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        world = World(int(entry["seed"]), int(entry["customers"]), datetime.fromisoformat(entry["lived_until"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _invalid_file(path, type(error).__name__) from None
    if world.seed < 0 or world.customers < 1 or world.simulated_until.tzinfo is None:
        raise _invalid_file(path, "a value is out of range")
    return world


def _invalid_file(path: Path, reason: str) -> SettingError:
    return SettingError(
        f"{path} cannot be read as the simulated world of this home ({reason}). "
        "Remove the file; the next `fraud-assets simulate` then makes a new world."
    )


def save_world(world: World, settings: Settings) -> None:
    """Saves the world to its file, atomically.

    Raises:
        DiskError: the file cannot be written.
    """
    path = locate_world_file(settings)
    until = world.simulated_until.astimezone(UTC).isoformat()
    entry = {"seed": world.seed, "customers": world.customers, "lived_until": until}
    try:
        with replaced_file(path) as part:
            part.write(json.dumps(entry).encode() + b"\n")
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror}. Set FRAUD_HOME to a writable folder.") from error


class WorldKeeper:
    """Saves the progress of a world.

    Args:
        world: the current world. It is saved at once, so that other commands continue it.
        settings: define the home.
        enabled: False for a world that is not the home's own, which is not saved.
    """

    def __init__(self, world: World, settings: Settings, *, enabled: bool = True) -> None:
        self.world, self._settings, self._enabled = world, settings, enabled
        self.advance_to(world.simulated_until)

    def advance_to(self, moment: datetime, at_least: timedelta = timedelta(0)) -> None:
        """Saves the moment if it is at least `at_least` later than the last saved one."""
        if moment - self.world.simulated_until < at_least:
            return
        self.world = self.world.advance_to(moment)
        if self._enabled:
            save_world(self.world, self._settings)


def split_into_days(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Splits (start, end] at each midnight UTC and yields the start and end of each part.

    A whole day is always one part, so its payments have the same ids each time they are sent.
    """
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    while start < end:
        midnight = start.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        yield start, min(midnight, end)
        start = midnight


def is_lake_empty(settings: Settings) -> bool:
    """Whether no transaction has landed yet; False if the lake cannot be read."""
    from fraud_assets.core.schema import raw_transactions
    from fraud_assets.lake.log import add_actions
    from fraud_assets.lake.tables import Lake

    try:
        lake = Lake.of(settings)
        return not lake.exists(raw_transactions) or add_actions(lake.open(raw_transactions)).num_rows == 0
    except FraudAssetsError:
        return False


def explain_unusual_traffic(
    known: World | None, world: World, added_per_day: float, own_per_day: float, settings: Settings
) -> str | None:
    """Explains why traffic will raise more alerts than the budget allows, and how to avoid it.

    Args:
        known: the world of the home before this traffic; None if it had none.
        world: the world of this traffic.
        added_per_day: payments per day that this traffic adds to the population's own.
        own_per_day: payments per day that the population makes by itself.
        settings: define the home.

    Returns:
        The explanation; None if the traffic is usual.
    """
    remedy = "expect more alerts than the budget. To avoid that, {}set FRAUD_HOME to a new folder."
    if known is None and not is_lake_empty(settings):
        return (
            "The lake contains transactions that are not from a simulated world "
            f"({locate_world_file(settings)} is missing). The simulated customers have no history there: "
            + remedy.format("")
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
