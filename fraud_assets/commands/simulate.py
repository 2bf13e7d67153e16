"""`fraud-assets simulate`: produce simulated transactions and their late fraud labels."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fraud_assets.settings import Settings, load_settings
from fraud_assets.simulator.destination import Via, via_option

if TYPE_CHECKING:
    import pyarrow as pa

    from fraud_assets.kafka.producer import Message
    from fraud_assets.simulator.generator import Population
    from fraud_assets.simulator.live import LiveTraffic
    from fraud_assets.simulator.world import World

LIVE_CUSTOMERS = 5_000
"""The handbook's own population. It pays 10,000 times a day: one to 12 payments a minute, by the time of day."""
LIVE_BAD_EVERY = 50
KEEP_SECONDS = 30.0


@click.command("simulate", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--count", type=click.IntRange(min=1), help="Transactions; 5000 without --days.")
@click.option("--days", type=click.IntRange(min=1), help="Whole days before today that they spread over; 50.")
@click.option(
    "--customers",
    type=click.IntRange(min=1),
    help="Population; by default the home's world, else by count, live 5000.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=42, show_default=True, help="Of the payments, and of a new world."
)
@click.option(
    "--end", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="No transaction is later (UTC); now."
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Messages a second, at most; --live: in place of the customers' own.",
)
@click.option("--live", is_flag=True, help="Transactions stamped now, until Ctrl-C.")
@click.option(
    "--history-days", type=click.IntRange(min=0), default=0, help="Before --live: what the lake lacks of the last days."
)
@click.option("--drop-history", is_flag=True, help="Drop that history as a file into FRAUD_HOME/incoming: quicker.")
@click.option(
    "--label-delay", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds to a --live label."
)
@click.option("--bad", type=click.IntRange(min=0), default=0, help="Broken messages to mix in, of a dozen kinds.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a Parquet file; produce nothing.")
@via_option
@click.option("--json", "as_json", is_flag=True, help="Summary as one JSON object.")
def command(
    count: int | None,
    days: int | None,
    customers: int | None,
    seed: int,
    end: datetime | None,
    rate: float | None,
    live: bool,
    history_days: int,
    drop_history: bool,
    label_delay: float,
    bad: int,
    out: Path | None,
    via: Via | None,
    as_json: bool,
) -> None:
    """Produce simulated card transactions, about 1 % frauds of three kinds, and the frauds' labels.

    A label is FRAUD_FEEDBACK_DELAY_DAYS later than its transaction and sent only once it is due. The same seed, count,
    days and end give the same messages, so that a repeated run adds duplicates, which the platform drops.

    The first run makes a population and keeps it in FRAUD_HOME/simulated_world.json; later runs are payments of the
    same customers. With --live they pay at their own rate, mostly around noon UTC; --history-days sends what the
    lake lacks of so many days: all of them at first, and after a break the time of the break.

    \b
    Example: fraud-assets simulate --count 5000 --seed 7 --bad 20
             fraud-assets simulate --live --history-days 45
    """
    settings = load_settings()
    if out and (live or bad or rate or via):
        raise click.UsageError("--out writes a file: --live, --bad, --rate and --via do not go with it.")
    if live and (count or days or end):
        raise click.UsageError("--live goes by the clock: use --history-days instead of --count, --days and --end.")
    if history_days and not live:
        raise click.UsageError("--history-days goes with --live: use --days.")
    if drop_history and not history_days:
        raise click.UsageError("--drop-history goes with --history-days.")
    began = time.monotonic()
    if live:
        plan = _LivePlan(seed, customers, rate, history_days, drop_history, timedelta(seconds=label_delay), bad)
        summary = _live(settings, plan, via)
    else:
        # The option's time has no zone, and means UTC.
        until = datetime.now(UTC) if end is None else end if end.tzinfo else end.replace(tzinfo=UTC)
        made = _made(settings, count, days, customers, seed, until, keep=out is None)
        summary = _written(made, out) if out else _produced(settings, made, rate, bad, via)
    summary["seconds"] = round(time.monotonic() - began, 3)
    click.echo(json.dumps(summary) if as_json else _in_words(summary))


def _made(
    settings: Settings,
    count: int | None,
    days: int | None,
    customers: int | None,
    seed: int,
    end: datetime,
    *,
    keep: bool,
) -> pa.Table:
    """Transactions of the home's world. A first one is kept there if `keep`."""
    from fraud_assets.simulator.generator import (
        DEFAULT_DAYS,
        PAYMENTS_PER_CUSTOMER_DAY,
        customers_for,
        population,
        simulate,
    )
    from fraud_assets.simulator.world import World, load_world, save_world, why_unusual

    known = load_world(settings)
    if count is None:
        # Days alone mean the traffic of the default population, or of the given one.
        count = 5000 if days is None and customers is None else 0
        count = count or round((customers or 50) * PAYMENTS_PER_CUSTOMER_DAY * (days or DEFAULT_DAYS))
    days = days or DEFAULT_DAYS
    if known is not None and customers in (None, known.customers):
        world, added = known, count / days
    else:
        world, added = World(seed, customers or customers_for(count, days), end), 0.0
    people = population(world.customers, world.seed)
    if warning := why_unusual(known, world, added, people.payments_per_day, settings):
        click.echo(warning, err=True)
    if keep and known is None:
        save_world(world, settings)
    return simulate(count, seed=seed, end=end, days=days, people=people)


def _written(made: pa.Table, out: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    from fraud_assets.errors import FraudAssetsError

    try:
        pq.write_table(made, out, compression="zstd")
    except OSError as error:
        raise FraudAssetsError(f"File {out} cannot be written: {error}. Name another with --out.") from error
    return {"file": str(out), **_facts(made)}


def produce_simulated(
    settings: Settings,
    *,
    count: int,
    days: int,
    seed: int,
    bad: int = 0,
    end: datetime | None = None,
    on_wait: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Simulate until `end` (now) and produce it all; gives the facts of the run.

    Args:
        on_wait: lands something, when the embedded broker can take no more before that.
    """
    made = _made(settings, count, days, None, seed, end or datetime.now(UTC), keep=True)
    return _produced(settings, made, None, bad, "kafka", on_wait)


def _produced(
    settings: Settings,
    made: pa.Table,
    rate: float | None,
    bad: int,
    via: Via | None,
    on_wait: Callable[[], object] | None = None,
) -> dict[str, Any]:
    from fraud_assets.simulator.bad_messages import mix_in_bad_messages
    from fraud_assets.simulator.destination import open_producer
    from fraud_assets.simulator.event_order import EventOrder
    from fraud_assets.simulator.pace import pace_messages, show_progress

    order = EventOrder(settings)
    messages: Iterable[Message] = order.messages(made.to_batches(20_000))
    if bad:
        messages = mix_in_bad_messages(messages, bad, max(1, made.num_rows // bad), settings)
    with open_producer(settings, via, on_wait) as producer, show_progress(made.num_rows, "simulate") as tick:
        for message in pace_messages(iter(messages), rate):
            producer.send(message)
            tick()
    return {
        **_facts(made),
        "labels": order.labels,
        "labels_not_due": order.labels_not_due,
        "bad": producer.delivered - order.transactions - order.labels,
        "delivered": producer.delivered,
    }


@dataclass(frozen=True)
class _LivePlan:
    """What `--live` was asked for."""

    seed: int
    customers: int | None
    rate: float | None
    history_days: int
    drop_history: bool
    label_delay: timedelta
    bad: int


def _live(settings: Settings, plan: _LivePlan, via: Via | None) -> dict[str, Any]:
    from fraud_assets.simulator.bad_messages import mix_in_bad_messages
    from fraud_assets.simulator.destination import open_producer
    from fraud_assets.simulator.event_order import EventOrder
    from fraud_assets.simulator.generator import population
    from fraud_assets.simulator.live import LiveTraffic
    from fraud_assets.simulator.pace import show_progress
    from fraud_assets.simulator.world import WorldKeeper

    stop = _StopSignal()

    def pause() -> None:
        # The lander may have been stopped by the same Ctrl-C, and would then be waited for in vain.
        stop.raise_if_set()
        time.sleep(0.1)

    known, world = _live_world(settings, plan)
    people = population(world.customers, world.seed)
    order = EventOrder(settings)
    traffic = LiveTraffic(people, settings, plan.rate, plan.label_delay, stop.is_set)
    _tell_live(settings, known, world, people, traffic)
    keeper = WorldKeeper(world, settings, enabled=known is None or known.same_people(world))
    dropped = 0
    with stop, open_producer(settings, via, on_wait=pause) as producer:
        start, now = world.simulated_until, datetime.now(UTC)
        if plan.drop_history:
            dropped = _drop(_past(people, start, now, plan.label_delay, lambda _: stop.raise_if_set()), settings, pause)
        elif plan.history_days:
            past = _past(people, start, now, plan.label_delay, keeper.advance_to)
            with show_progress(round(people.payments_per_day * ((now - start) / timedelta(days=1))), "history") as tick:
                for message in order.messages(past):
                    stop.raise_if_set()
                    producer.send(message)
                    tick()
        keeper.advance_to(now)
        with show_progress(None, "live") as tick:
            for message in mix_in_bad_messages(traffic.messages(), plan.bad, LIVE_BAD_EVERY, settings):
                producer.send(message)
                tick()
                keeper.advance_to(datetime.now(UTC), timedelta(seconds=KEEP_SECONDS))
        keeper.advance_to(datetime.now(UTC))
        stop.raise_if_set()
    return {
        "transactions": dropped + order.transactions + traffic.transactions,
        "history": dropped + order.transactions,
        "live": traffic.transactions,
        "frauds_live": traffic.frauds,
        "labels": order.labels + traffic.labels,
        "labels_not_due": order.labels_not_due + traffic.labels_not_due,
        "bad": max(0, producer.delivered - order.transactions - order.labels - traffic.transactions - traffic.labels),
        "delivered": producer.delivered,
    }


def _drop(past: Iterator[pa.Table], settings: Settings, pause: Callable[[], None]) -> int:
    """Drops the past as a file and waits until it has landed, so that live traffic meets its history."""
    from fraud_assets.simulator.history import drop_history, wait_until_landed

    file, rows = drop_history(past, settings)
    if file is None:
        return 0
    click.echo(f"Dropped {rows:,} transactions of the past as {file}.", err=True)
    if not wait_until_landed(file, pause):
        click.echo(f"{file} has not landed. Is `fraud-assets land` running with this FRAUD_HOME?", err=True)
    return rows


def _past(
    people: Population, start: datetime, end: datetime, label_delay: timedelta, lived_to: Callable[[datetime], object]
) -> Iterator[pa.Table]:
    """What people paid in (start, end], a day at a time; `lived_to` is called after each day that was taken."""
    from fraud_assets.simulator.live import past_traffic
    from fraud_assets.simulator.world import days_between

    for first, last in days_between(start, end):
        yield past_traffic(people, first, last, label_delay)
        lived_to(last)


def _live_world(settings: Settings, plan: _LivePlan) -> tuple[World | None, World]:
    """The world that the home has, and the one to live in, with the time from which on its traffic is missing."""
    from fraud_assets.simulator.world import World, lake_is_empty, load_world

    known = load_world(settings)
    start = datetime.now(UTC) - timedelta(days=plan.history_days)
    if known is None or plan.customers not in (None, known.customers):
        return known, World(plan.seed, plan.customers or LIVE_CUSTOMERS, start)
    # An empty lake has nothing of what was sent: it was removed, or the broker ended before anything landed.
    lacks_all = plan.history_days > 0 and lake_is_empty(settings)
    return known, known.advance_to(start if lacks_all else max(known.simulated_until, start))


def _tell_live(settings: Settings, known: World | None, world: World, people: Population, traffic: LiveTraffic) -> None:
    from fraud_assets.simulator.payment_times import DAY
    from fraud_assets.simulator.world import why_unusual, world_file

    own, rate = people.payments_per_day, traffic.rate_at(datetime.now(UTC))
    added = traffic.rate * DAY - own if traffic.rate else 0.0
    if warning := why_unusual(known, world, added, own, settings):
        click.echo(warning, err=True)
    click.echo(
        f"{world.customers:,} customers ({world_file(settings)}) make {added + own:,.0f} payments a day, at this time "
        f"of day {rate * 60:.1f} a minute.",
        err=True,
    )


def _facts(made: pa.Table) -> dict[str, Any]:
    times = made["tx_datetime"]
    return {
        "transactions": made.num_rows,
        "frauds": made["is_fraud"].to_pylist().count(True),
        "first": times[0].as_py().isoformat(),
        "last": times[-1].as_py().isoformat(),
    }


def _in_words(summary: dict[str, Any]) -> str:
    if "file" in summary:
        return f"Wrote {summary['transactions']:,} transactions, {summary['frauds']:,} frauds, to {summary['file']}."
    return (
        f"Produced {summary['transactions']:,} transactions, {summary['labels']:,} labels and {summary['bad']:,} bad "
        f"messages in {summary['seconds']:.1f} s; {summary['labels_not_due']:,} labels are not due yet."
    )


class _StoppedError(Exception):
    """Ctrl-C or SIGTERM came while waiting."""


class _StopSignal:
    """Notes Ctrl-C and SIGTERM while its block runs, and ends the block quietly when they were raised as an error."""

    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def raise_if_set(self) -> None:
        if self._set:
            raise _StoppedError

    def __enter__(self) -> _StopSignal:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return kind is not None and issubclass(kind, _StoppedError)

    def _note(self, number: int, frame: object) -> None:
        self._set = True
