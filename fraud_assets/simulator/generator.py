"""Simulates card transactions with three kinds of fraud, as the Fraud Detection Handbook specifies (chapter 3).

Customers and terminals are points on a square. Each customer pays at the terminals within a radius, with an individual
mean amount and number of payments per day, mostly around noon. Frauds are all payments above 220 (scenario 1), all
payments at a compromised terminal for 28 days (scenario 2), and a third of the payments of a leaked customer for 14
days, with five times the amount (scenario 3).

The handbook has 5,000 customers and 10,000 terminals, and compromises 2 terminals and 3 customers per day. A smaller
population keeps these *rates*. The events come at even intervals, in proportion to the population (with 50 customers, a
terminal every 50 days and a customer every 33 days). They begin before the first simulated day and hit terminals
and customers with ordinary traffic. For any size, about 1 % of the transactions are therefore frauds.
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
from fraud_assets.simulator.payment_times import draw_times_between, draw_times_of_days

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
"""Schema: a transaction of the contract and its ground truth. `scenario` is 0 if it is genuine, else 1, 2 or 3."""

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outbreak:
    """One kind of event that causes frauds.

    Attributes:
        kind: the scenario, 2 or 3.
        per_day: number of events that begin per day.
        days: duration of an event.
        eligible: indexes of the terminals or customers that an event can hit (int64).
    """

    kind: int
    per_day: float
    days: int
    eligible: Integers

    def active(self, seed: int, day: int) -> Integers:
        """Returns the indexes (int64) that events hit on a day (days since 1970), reproducible for the same seed."""
        phase = np.random.default_rng((seed, self.kind)).random()
        first = int(np.ceil((day - self.days + 1) * self.per_day - phase))
        last = int(np.ceil((day + 1) * self.per_day - phase))
        hit = [
            # Random generators reject negative seeds; events before 1970 have negative numbers.
            self.eligible[np.random.default_rng((seed, self.kind, abs(number))).integers(len(self.eligible))]
            for number in range(first, last)
        ]
        return np.array(hit, np.int64)


@dataclass(frozen=True)
class Population:
    """Customers, the terminals within their reach, and the events that cause frauds.

    Attributes:
        seed: random seed with which the population was drawn.
        mean_amount: mean amount of each customer's payments, shape (customers,), float64.
        daily_payments: mean number of each customer's payments per day, shape (customers,), float64.
        reach: indexes of terminals; customer i pays at `reach[starts[i]:starts[i + 1]]` (int64).
        starts: start of each customer's terminals in `reach`, shape (customers + 1,), int64.
        compromised: events of scenario 2.
        leaked: events of scenario 3.
    """

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
        """Returns the population's seed if it is not `seed`, so that the transaction ids differ too."""
        return () if self.seed == seed else (self.seed,)

    @property
    def payments_per_day(self) -> float:
        """Expected transactions of all customers in a day."""
        return float(self.daily_payments.sum())


def draw_population(customers: int, seed: int) -> Population:
    """Draws a population with twice as many terminals as customers; the same for the same arguments."""
    rng = np.random.default_rng((seed, customers))
    terminals = customers * TERMINALS_PER_CUSTOMER
    mean_amount = _spread(rng, customers, *MEAN_AMOUNT)
    daily_payments = _spread(rng, customers, *DAILY_PAYMENTS)
    # The radius grows as terminals become sparse, so that a customer reaches as many of them as in the handbook.
    radius = BOOK_RADIUS * np.sqrt(BOOK_TERMINALS / terminals)
    reach, starts = _points_within(rng.random((customers, 2)) * SIDE, rng.random((terminals, 2)) * SIDE, radius)
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
    """Simulates exactly `count` transactions of the last `days` whole days and of `end`'s day until `end`.

    The same arguments give the same table; other arguments give other transaction ids.

    Args:
        count: number of transactions.
        seed: random seed of the payments, and of the population if `people` is None.
        end: latest time of a transaction; with a time zone.
        days: number of whole days before `end`'s day.
        customers: size of the population. The default is the size that makes `count` payments at the handbook's rate.
        people: the population that pays; the default is a new one.

    Returns:
        A table of the schema SIMULATED, in time order.
    """
    if people is None:
        people = draw_population(customers or estimate_customers(count, days), seed)
    rng = np.random.default_rng((seed, count, days))
    times = draw_times_of_days(rng, count, days, end)
    run = name_run(seed, count, people.customers, days, end.astimezone(UTC), *people.seeds_unlike(seed))
    return simulate_transactions(people, rng, times, run)


def simulate_payments(people: Population, start: datetime, end: datetime) -> pa.Table:
    """Simulates the payments of a population in (start, end] at its own rate; the same for the same arguments.

    Args:
        people: the population that pays.
        start: all transactions are later; with a time zone.
        end: latest time of a transaction; with a time zone.

    Returns:
        A table of the schema SIMULATED, in time order.
    """
    edges = (int(start.timestamp()), int(end.timestamp()))
    # Random generators reject negative seeds; times before 1970 are negative.
    rng = np.random.default_rng((people.seed, people.customers, *map(abs, edges)))
    times = draw_times_between(rng, people.payments_per_day, start, end)
    return simulate_transactions(people, rng, times, name_run("between", people.seed, people.customers, *edges))


def estimate_customers(count: int, days: int) -> int:
    """Returns the number of customers that make about `count` payments in `days` days."""
    return max(FEWEST_CUSTOMERS, round(count / (PAYMENTS_PER_CUSTOMER_DAY * max(days, 1))))


def name_run(*parts: object) -> str:
    """Returns a short prefix that makes the transaction ids of different runs distinct."""
    return sha256(" ".join(map(str, parts)).encode()).hexdigest()[:10]


def simulate_transactions(
    people: Population, rng: np.random.Generator, times: NDArray[np.datetime64], run: str, first: int = 0
) -> pa.Table:
    """Simulates one transaction at each of the times.

    Args:
        people: the population that pays.
        rng: random generator of customers, terminals and amounts.
        times: ascending times, datetime64, UTC.
        run: prefix of the transaction ids, which are `<run>-<number>`.
        first: number of the first transaction.

    Returns:
        A table of the schema SIMULATED, with a row for each time.
    """
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


def select_fraud_labels(simulated: pa.Table, delay: timedelta, until: datetime | None = None) -> pa.Table:
    """Returns the labels of the frauds, each `delay` after its transaction; with `until`, only those until then."""
    frauds = simulated.filter(simulated["is_fraud"])
    labelled_at = pc.add(frauds["tx_datetime"], pa.scalar(delay, pa.duration("us")))
    labels = pa.table([frauds["transaction_id"], frauds["is_fraud"], labelled_at], schema=LABELS_PARSED)
    if until is None:
        return labels
    return labels.filter(pc.less_equal(labels["labelled_at"], pa.scalar(until, TIME)))


def _spread(rng: np.random.Generator, count: int, low: float, high: float) -> Floats:
    """Draws one uniform value from each of `count` equal slices, so that a small population covers the range too."""
    return low + (high - low) * (rng.permutation(count) + rng.random(count)) / count


def _points_within(centers: Floats, points: Floats, radius: float) -> tuple[Integers, Integers]:
    """Finds the points within the radius of each center.

    Returns:
        The indexes of the points, center by center (int64), and the start of each center's indexes, shape
        (centers + 1,), int64.
    """
    reach: list[Integers] = [np.empty(0, np.int64)] * len(centers)
    # Neighboring centers are compared only with the points of their strip, not with all points.
    for part in np.array_split(np.argsort(centers[:, 0]), max(1, len(centers) // 100)):
        across = centers[part, 0]
        strip = np.nonzero((points[:, 0] >= across.min() - radius) & (points[:, 0] <= across.max() + radius))[0]
        near = _squared_distances(centers[part], points[strip]) <= radius * radius
        for center, row in zip(part, near, strict=True):
            reach[center] = strip[row]
    # A customer without a terminal within the radius pays at the nearest one.
    for center in [number for number, found in enumerate(reach) if not len(found)]:
        reach[center] = _squared_distances(centers[[center]], points).argmin(axis=1)
    return np.concatenate(reach), np.concatenate([[0], np.cumsum([len(found) for found in reach])]).astype(np.int64)


def _squared_distances(centers: Floats, points: Floats) -> Floats:
    distances: Floats = np.square(centers[:, None, :] - points[None, :, :]).sum(axis=2)
    return distances


def _ordinary(traffic: NDArray[Any]) -> Integers:
    """Returns the indexes with 0.5 to 1.5 times the mean traffic, because an event without payments makes no fraud."""
    mean = traffic.mean()
    return np.nonzero((traffic >= mean / 2) & (traffic <= mean * 1.5))[0]


def _hit(outbreak: Outbreak, seed: int, who: Integers, day: Integers) -> NDArray[np.bool_]:
    """Returns for each pair of `who` and `day`, which is ascending, whether an event hits it (bool)."""
    hit = np.zeros(len(who), np.bool_)
    for number in np.unique(day):
        rows = slice(*np.searchsorted(day, [number, number + 1]))
        hit[rows] = np.isin(who[rows], outbreak.active(seed, int(number)))
    return hit
