"""`fraud-assets simulate`: produces simulated card transactions and their fraud labels."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fraud_assets.commands.stop_signal import StopSignal
from fraud_assets.settings import Settings, load_settings
from fraud_assets.simulator.destination import Via, via_option
from fraud_assets.simulator.world import locate_world_file

if TYPE_CHECKING:
    import pyarrow as pa

    from fraud_assets.kafka.producer import Message
    from fraud_assets.simulator.generator import Population
    from fraud_assets.simulator.live import LiveTraffic
    from fraud_assets.simulator.world import World

LIVE_CUSTOMERS = 5_000
"""The population of the handbook. It makes 10,000 payments a day: 1 to 12 per minute, depending on the time of day."""
LIVE_BAD_EVERY = 50
KEEP_SECONDS = 30.0


@click.command("simulate", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--count",
    type=click.IntRange(min=1),
    help="Number of transactions. Default: 5000, or with --days or --customers the usual number of these customers.",
)
@click.option(
    "--days",
    type=click.IntRange(min=1),
    help="Number of whole days before today that the transactions cover.  [default: 50]",
)
@click.option(
    "--customers",
    type=click.IntRange(min=1),
    help="Number of customers. Default: those of the world in FRAUD_HOME, else 5000 with --live, else set by --count.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=42,
    show_default=True,
    help="Random seed of the payments and of a new world.",
)
@click.option(
    "--end",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="Latest possible time of a transaction (UTC). Default: now.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Maximum number of messages per second. With --live: the rate, instead of the customers' own.",
)
@click.option("--live", is_flag=True, help="Produce transactions with the current time until Ctrl-C.")
@click.option(
    "--history-days",
    type=click.IntRange(min=0),
    default=0,
    help="With --live: first produce the payments of this many past days that the lake lacks.",
)
@click.option(
    "--drop-history", is_flag=True, help="Drop that history as a file into FRAUD_HOME/incoming, which is faster."
)
@click.option(
    "--label-delay",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="With --live: seconds from a transaction to its label.",
)
@click.option(
    "--bad", type=click.IntRange(min=0), default=0, help="Number of broken messages to mix in, of a dozen kinds."
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the transactions to this Parquet file instead of producing them.",
)
@via_option
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
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
    """Produce simulated card transactions to Kafka, with about 1 % frauds of three kinds, and the labels of the frauds.

    A label is dated FRAUD_FEEDBACK_DELAY_DAYS after its transaction and is sent only if that time has passed. The same
    seed, count, days and end give the same messages: a repeated run adds duplicates, which go to quarantine.

    The first run creates a population, the world, and saves it in FRAUD_HOME/simulated_world.json. Later runs are
    payments of the same customers. With --live the customers pay at their own rate, mostly around noon UTC. With
    --history-days they also make the payments that the lake lacks: in the first run those of all these days, in later
    runs those since the last run.

    \b
    Example: fraud-assets simulate --count 5000 --seed 7 --bad 20
             fraud-assets simulate --live --history-days 45
    """
    settings = load_settings()
    if out and (live or bad or rate or via):
        raise click.UsageError("--out cannot be used with --live, --bad, --rate or --via, because it writes a file.")
    if live and (count or days or end):
        raise click.UsageError("--live cannot be used with --count, --days or --end. Use --history-days.")
    if history_days and not live:
        raise click.UsageError("--history-days needs --live. Without --live use --days.")
    if drop_history and not history_days:
        raise click.UsageError("--drop-history needs --history-days.")
    began = time.monotonic()
    if live:
        plan = _LivePlan(seed, customers, rate, history_days, drop_history, timedelta(seconds=label_delay), bad)
        summary = _run_live(settings, plan, via)
    else:
        # The time of the option has no zone and is UTC.
        until = datetime.now(UTC) if end is None else end if end.tzinfo else end.replace(tzinfo=UTC)
        transactions = _simulate(settings, count, days, customers, seed, until, keep=out is None)
        summary = _write_file(transactions, out) if out else _produce(settings, transactions, rate, bad, via)
    summary["seconds"] = round(time.monotonic() - began, 3)
    click.echo(json.dumps(summary) if as_json else _format_summary(summary))


def _simulate(
    settings: Settings,
    count: int | None,
    days: int | None,
    customers: int | None,
    seed: int,
    end: datetime,
    *,
    keep: bool,
) -> pa.Table:
    """Returns transactions of the world in FRAUD_HOME. If it has none, creates one, and saves it if `keep` is true."""
    from fraud_assets.simulator.generator import (
        DEFAULT_DAYS,
        PAYMENTS_PER_CUSTOMER_DAY,
        draw_population,
        estimate_customers,
        simulate,
    )
    from fraud_assets.simulator.world import World, explain_unusual_traffic, load_world, save_world

    known = load_world(settings)
    if count is None:
        # With only --days, the number of transactions is what the population usually makes in that time.
        count = 5000 if days is None and customers is None else 0
        count = count or round((customers or 50) * PAYMENTS_PER_CUSTOMER_DAY * (days or DEFAULT_DAYS))
    days = days or DEFAULT_DAYS
    if known is not None and customers in (None, known.customers):
        world, added = known, count / days
    else:
        world, added = World(seed, customers or estimate_customers(count, days), end), 0.0
    people = draw_population(world.customers, world.seed)
    if warning := explain_unusual_traffic(known, world, added, people.payments_per_day, settings):
        click.echo(warning, err=True)
    if keep and known is None:
        save_world(world, settings)
    return simulate(count, seed=seed, end=end, days=days, people=people)


def _write_file(transactions: pa.Table, out: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    from fraud_assets.errors import FraudAssetsError

    try:
        pq.write_table(transactions, out, compression="zstd")
    except OSError as error:
        raise FraudAssetsError(f"File {out} cannot be written: {error}. Name another file with --out.") from error
    return {"file": str(out), **_describe(transactions)}


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
    """Simulates transactions, produces them to Kafka and returns the summary.

    Args:
        settings: define the broker, the topics and the world.
        count: number of transactions.
        days: number of days before `end` that they cover.
        seed: random seed of the payments and of a new world.
        bad: number of broken messages to mix in.
        end: latest possible time of a transaction; default: now.
        on_wait: called if the embedded broker is full, to land messages.
    """
    transactions = _simulate(settings, count, days, None, seed, end or datetime.now(UTC), keep=True)
    return _produce(settings, transactions, None, bad, "kafka", on_wait)


def _produce(
    settings: Settings,
    transactions: pa.Table,
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
    messages: Iterable[Message] = order.messages(transactions.to_batches(20_000))
    if bad:
        messages = mix_in_bad_messages(messages, bad, max(1, transactions.num_rows // bad), settings)
    with open_producer(settings, via, on_wait) as producer, show_progress(transactions.num_rows, "simulate") as tick:
        for message in pace_messages(iter(messages), rate):
            producer.send(message)
            tick()
    return {
        **_describe(transactions),
        "labels": order.labels,
        "labels_not_due": order.labels_not_due,
        "bad": producer.delivered - order.transactions - order.labels,
        "delivered": producer.delivered,
    }


@dataclass(frozen=True)
class _LivePlan:
    """The options of `--live`."""

    seed: int
    customers: int | None
    rate: float | None
    history_days: int
    drop_history: bool
    label_delay: timedelta
    bad: int


def _run_live(settings: Settings, plan: _LivePlan, via: Via | None) -> dict[str, Any]:
    from fraud_assets.simulator.bad_messages import mix_in_bad_messages
    from fraud_assets.simulator.destination import open_producer
    from fraud_assets.simulator.event_order import EventOrder
    from fraud_assets.simulator.generator import draw_population
    from fraud_assets.simulator.live import LiveTraffic
    from fraud_assets.simulator.pace import show_progress
    from fraud_assets.simulator.world import WorldKeeper

    stop = StopSignal()

    def pause() -> None:
        # The same Ctrl-C may have stopped the lander. Waiting for the lander would then never end.
        stop.raise_if_set()
        time.sleep(0.1)

    known, world = _choose_world(settings, plan)
    people = draw_population(world.customers, world.seed)
    order = EventOrder(settings)
    traffic = LiveTraffic(people, settings, plan.rate, plan.label_delay, stop.is_set)
    _print_traffic(settings, known, world, people, traffic)
    keeper = WorldKeeper(world, settings, enabled=known is None or known.same_people(world))
    dropped = 0
    with stop, open_producer(settings, via, on_wait=pause) as producer:
        start, now = world.simulated_until, datetime.now(UTC)
        if plan.drop_history:
            dropped = _drop_past(
                _generate_past(people, start, now, plan.label_delay, lambda _: stop.raise_if_set()), settings, pause
            )
        elif plan.history_days:
            past = _generate_past(people, start, now, plan.label_delay, keeper.advance_to)
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


def _drop_past(past: Iterator[pa.Table], settings: Settings, pause: Callable[[], None]) -> int:
    """Drops the past payments as a file and waits until it has landed, so that live payments have their history.

    Returns:
        The number of dropped transactions.
    """
    from fraud_assets.simulator.history import drop_history, wait_until_landed

    file, rows = drop_history(past, settings)
    if file is None:
        return 0
    click.echo(f"Dropped {rows:,} past transactions as {file}.", err=True)
    if not wait_until_landed(file, pause):
        click.echo(f"{file} has not landed. Check that `fraud-assets land` is running with this FRAUD_HOME.", err=True)
    return rows


def _generate_past(
    people: Population,
    start: datetime,
    end: datetime,
    label_delay: timedelta,
    on_day_done: Callable[[datetime], object],
) -> Iterator[pa.Table]:
    """Yields the payments of (start, end], one table per day, and calls `on_day_done` after each day."""
    from fraud_assets.simulator.live import simulate_past_traffic
    from fraud_assets.simulator.world import split_into_days

    for first, last in split_into_days(start, end):
        yield simulate_past_traffic(people, first, last, label_delay)
        on_day_done(last)


def _choose_world(settings: Settings, plan: _LivePlan) -> tuple[World | None, World]:
    """Returns the saved world, if any, and the world to use, with the time from which its traffic is missing."""
    from fraud_assets.simulator.world import World, is_lake_empty, load_world

    known = load_world(settings)
    start = datetime.now(UTC) - timedelta(days=plan.history_days)
    if known is None or plan.customers not in (None, known.customers):
        return known, World(plan.seed, plan.customers or LIVE_CUSTOMERS, start)
    # An empty lake lacks all traffic: the lake was removed, or the broker stopped before anything landed.
    is_all_missing = plan.history_days > 0 and is_lake_empty(settings)
    return known, known.advance_to(start if is_all_missing else max(known.simulated_until, start))


def _print_traffic(
    settings: Settings, known: World | None, world: World, people: Population, traffic: LiveTraffic
) -> None:
    from fraud_assets.simulator.payment_times import DAY
    from fraud_assets.simulator.world import explain_unusual_traffic

    own, rate = people.payments_per_day, traffic.rate_at(datetime.now(UTC))
    added = traffic.rate * DAY - own if traffic.rate else 0.0
    if warning := explain_unusual_traffic(known, world, added, own, settings):
        click.echo(warning, err=True)
    click.echo(
        f"{world.customers:,} customers ({locate_world_file(settings)}) make {added + own:,.0f} payments a day, and "
        f"at this time of day {rate * 60:.1f} a minute.",
        err=True,
    )


def _describe(transactions: pa.Table) -> dict[str, Any]:
    times = transactions["tx_datetime"]
    return {
        "transactions": transactions.num_rows,
        "frauds": transactions["is_fraud"].to_pylist().count(True),
        "first": times[0].as_py().isoformat(),
        "last": times[-1].as_py().isoformat(),
    }


def _format_summary(summary: dict[str, Any]) -> str:
    if "file" in summary:
        return f"Wrote {summary['transactions']:,} transactions, {summary['frauds']:,} frauds, to {summary['file']}."
    return (
        f"Produced {summary['transactions']:,} transactions, {summary['labels']:,} labels and {summary['bad']:,} bad "
        f"messages in {summary['seconds']:.1f} s; {summary['labels_not_due']:,} labels are not due yet."
    )
