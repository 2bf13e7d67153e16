"""Simulated card transactions with three kinds of fraud, after the handbook's published model (chapter 3).

Customers and terminals are points on a square. A customer pays at the terminals within reach, with an own mean
amount and number of payments per day, mostly around noon. Frauds are amounts above 220 (scenario 1), everything
at a compromised terminal for 28 days (2), and a third of a leaked customer's payments, times five, for 14 days (3).

The book's world has 5,000 customers and 10,000 terminals, and compromises 2 terminals and 3 customers a day. A
smaller population keeps the book's *rates*: the events come at even distances of time, in proportion to the
population (50 customers: a terminal every 50 days, a customer every 33), began before the first day, and hit
terminals and customers of ordinary traffic. So about 1 % are frauds whatever the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fraud_assets.core.schema import LABELS_PARSED, TIME, TRANSACTION
from fraud_assets.simulator.rhythm import times_between, times_of_days

BOOK_CUSTOMERS, BOOK_TERMINALS, BOOK_RADIUS, SIDE = 5_000, 10_000, 5.0, 100.0
TERMINALS_PER_CUSTOMER = BOOK_TERMINALS // BOOK_CUSTOMERS
MEAN_AMOUNT = (5.0, 100.0)
DAILY_PAYMENTS = (0.0, 4.0)
PAYMENTS_PER_CUSTOMER_DAY = sum(DAILY_PAYMENTS) / 2
FRAUD_AMOUNT = 220.0
LEAKED_SHARE, LEAKED_FACTOR = 1 / 3, 5.0
DEFAULT_DAYS = 50
FEWEST_CUSTOMERS = 50

SIMULATED = pa.schema([*TRANSACTION, pa.field("is_fraud", pa.bool_(), False), pa.field("scenario", pa.int8(), False)])
"""A transaction of the contract, and the truth about it: `scenario` is 0 for a genuine one, else 1, 2 or 3."""

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outbreak:
    """One kind of event that makes frauds: how many begin per day, for how long, and whom they may hit."""

    kind: int
    per_day: float
    days: int
    eligible: Integers

    def active(self, seed: int, day: int) -> Integers:
        """Who is hit on a day (since 1970). The same seed and day give the same answer in any run."""
        phase = np.random.default_rng((seed, self.kind)).random()
        first = int(np.ceil((day - self.days + 1) * self.per_day - phase))
        last = int(np.ceil((day + 1) * self.per_day - phase))
        hit = [
            # Generators take no negative seeds; days before 1970 have negative numbers.
            self.eligible[np.random.default_rng((seed, self.kind, abs(number))).integers(len(self.eligible))]
            for number in range(first, last)
        ]
        return np.array(hit, np.int64)


@dataclass(frozen=True)
class Population:
    """Customers, the terminals that each can reach (`reach[starts[i]:starts[i + 1]]`), and what befalls them."""

    seed: int
    mean_amount: Floats
    daily_payments: Floats
    reach: Integers
    starts: Integers
    compromised: Outbreak
    leaked: Outbreak

    @property
    def customers(self) -> int:
        """Number of customers."""
        return len(self.daily_payments)

    def seeds_unlike(self, seed: int) -> tuple[int, ...]:
        """The population's seed where it is another one; transaction ids then differ as well."""
        return () if self.seed == seed else (self.seed,)

    @property
    def payments_per_day(self) -> float:
        """Expected transactions of all customers in a day."""
        return float(self.daily_payments.sum())


def population(customers: int, seed: int) -> Population:
    """A population of so many customers and twice as many terminals; the same for the same arguments."""
    rng = np.random.default_rng((seed, customers))
    terminals = customers * TERMINALS_PER_CUSTOMER
    mean_amount = _spread(rng, customers, *MEAN_AMOUNT)
    daily_payments = _spread(rng, customers, *DAILY_PAYMENTS)
    # The radius grows as terminals get sparse, so that a customer reaches as many of them as in the book.
    radius = BOOK_RADIUS * np.sqrt(BOOK_TERMINALS / terminals)
    reach, starts = _within(rng.random((customers, 2)) * SIDE, rng.random((terminals, 2)) * SIDE, radius)
    owners = np.repeat(np.arange(customers), np.diff(starts))
    traffic = np.bincount(reach, weights=(daily_payments / np.diff(starts))[owners], minlength=terminals)
    return Population(
        seed=seed,
        mean_amount=mean_amount,
        daily_payments=daily_payments,
        reach=reach,
        starts=starts,
        compromised=Outbreak(2, 2 * terminals / BOOK_TERMINALS, 28, _ordinary(traffic)),
        leaked=Outbreak(3, 3 * customers / BOOK_CUSTOMERS, 14, _ordinary(daily_payments)),
    )


def simulate(
    count: int,
    *,
    seed: int,
    end: datetime,
    days: int = DEFAULT_DAYS,
    customers: int | None = None,
    people: Population | None = None,
) -> pa.Table:
    """Exactly `count` transactions of the last `days` whole days and of `end`'s day until `end`, in time order.

    The same arguments give the same table; other arguments give other transaction ids.

    Args:
        count: number of transactions.
        seed: of the payments, and of the population where none is given.
        end: no transaction is later; with a time zone.
        days: whole days before `end`'s day.
        customers: size of the population; without it the population is as large as pays so often by the book.
        people: a population to take instead.

    Returns:
        A table of the schema SIMULATED.
    """
    if people is None:
        people = population(customers or customers_for(count, days), seed)
    rng = np.random.default_rng((seed, count, days))
    times = times_of_days(rng, count, days, end)
    run = run_name(seed, count, people.customers, days, end.astimezone(UTC), *people.seeds_unlike(seed))
    return transactions(people, rng, times, run)


def payments_between(people: Population, start: datetime, end: datetime) -> pa.Table:
    """What a population pays in (start, end], at its own rate: the same table for the same arguments.

    Args:
        people: who pays.
        start: the first transaction is later; with a time zone.
        end: no transaction is later; with a time zone.

    Returns:
        A table of the schema SIMULATED, in time order.
    """
    edges = (int(start.timestamp()), int(end.timestamp()))
    # Generators take no negative seeds; times before 1970 are negative.
    rng = np.random.default_rng((people.seed, people.customers, *map(abs, edges)))
    times = times_between(rng, people.payments_per_day, start, end)
    return transactions(people, rng, times, run_name("between", people.seed, people.customers, *edges))


def customers_for(count: int, days: int) -> int:
    """How many customers make about `count` payments in so many days."""
    return max(FEWEST_CUSTOMERS, round(count / (PAYMENTS_PER_CUSTOMER_DAY * max(days, 1))))


def run_name(*parts: object) -> str:
    """Short prefix that keeps the transaction ids of different runs apart."""
    return sha256(" ".join(map(str, parts)).encode()).hexdigest()[:10]


def transactions(
    people: Population, rng: np.random.Generator, times: NDArray[np.datetime64], run: str, first: int = 0
) -> pa.Table:
    """One transaction at each of the (ascending) times, with ids `<run>-<number>` counted from `first`."""
    count = len(times)
    likelihood = np.cumsum(people.daily_payments)
    customer = np.searchsorted(likelihood, rng.random(count) * likelihood[-1], side="right")
    reachable = np.diff(people.starts)[customer]
    terminal = people.reach[people.starts[customer] + (rng.random(count) * reachable).astype(np.int64)]

    mean = people.mean_amount[customer]
    amount = rng.normal(mean, mean / 2)
    amount = np.round(np.where(amount < 0, rng.random(count) * 2 * mean, amount), 2)

    day = times.astype("datetime64[D]").astype(np.int64)
    scenario = np.where(amount > FRAUD_AMOUNT, 1, 0)
    scenario[_hit(people.compromised, people.seed, terminal, day)] = 2
    leaked = _hit(people.leaked, people.seed, customer, day) & (rng.random(count) < LEAKED_SHARE)
    scenario[leaked] = 3
    amount[leaked] = np.round(amount[leaked] * LEAKED_FACTOR, 2)

    numbers = pc.cast(pa.array(np.arange(first, first + count)), pa.string())
    return pa.table(
        [
            pc.binary_join_element_wise(run, numbers, "-"),
            pa.array(times.astype("datetime64[us]"), pa.timestamp("us")).cast(TIME),
            pc.cast(pa.array(customer), pa.string()),
            pc.cast(pa.array(terminal), pa.string()),
            pa.array(amount),
            pa.array(scenario > 0),
            pa.array(scenario.astype(np.int8)),
        ],
        schema=SIMULATED,
    )


def fraud_labels(simulated: pa.Table, delay: timedelta, until: datetime | None = None) -> pa.Table:
    """The labels of the frauds, each `delay` after its transaction; with `until` only those known by then."""
    frauds = simulated.filter(simulated["is_fraud"])
    labelled_at = pc.add(frauds["tx_datetime"], pa.scalar(delay, pa.duration("us")))
    labels = pa.table([frauds["transaction_id"], frauds["is_fraud"], labelled_at], schema=LABELS_PARSED)
    if until is None:
        return labels
    return labels.filter(pc.less_equal(labels["labelled_at"], pa.scalar(until, TIME)))


def _spread(rng: np.random.Generator, count: int, low: float, high: float) -> Floats:
    """Uniform draws, one from each of `count` equal slices, so that a small population has the whole range too."""
    return low + (high - low) * (rng.permutation(count) + rng.random(count)) / count


def _within(centres: Floats, points: Floats, radius: float) -> tuple[Integers, Integers]:
    """Indexes of the points within the radius of each centre, one after the other, and where each centre's begin."""
    reach: list[Integers] = [np.empty(0, np.int64)] * len(centres)
    # Centres that lie side by side are compared with the points of their strip only, not with all.
    for part in np.array_split(np.argsort(centres[:, 0]), max(1, len(centres) // 100)):
        across = centres[part, 0]
        strip = np.nonzero((points[:, 0] >= across.min() - radius) & (points[:, 0] <= across.max() + radius))[0]
        near = _squared_distances(centres[part], points[strip]) <= radius * radius
        for centre, row in zip(part, near, strict=True):
            reach[centre] = strip[row]
    # Nobody is without a terminal: who has none in reach takes the nearest.
    for centre in [number for number, found in enumerate(reach) if not len(found)]:
        reach[centre] = _squared_distances(centres[[centre]], points).argmin(axis=1)
    return np.concatenate(reach), np.concatenate([[0], np.cumsum([len(found) for found in reach])]).astype(np.int64)


def _squared_distances(centres: Floats, points: Floats) -> Floats:
    distances: Floats = np.square(centres[:, None, :] - points[None, :, :]).sum(axis=2)
    return distances


def _ordinary(traffic: NDArray[Any]) -> Integers:
    """Indexes of those with half to one and a half times the mean traffic: a fraud where nobody pays is none."""
    mean = traffic.mean()
    return np.nonzero((traffic >= mean / 2) & (traffic <= mean * 1.5))[0]


def _hit(outbreak: Outbreak, seed: int, who: Integers, day: Integers) -> NDArray[np.bool_]:
    """Which of the (who, day) pairs, in order of days, fall under an outbreak."""
    hit = np.zeros(len(who), np.bool_)
    for number in np.unique(day):
        rows = slice(*np.searchsorted(day, [number, number + 1]))
        hit[rows] = np.isin(who[rows], outbreak.active(seed, int(number)))
    return hit
