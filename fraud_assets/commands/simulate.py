"""`fraud-assets simulate`: produce simulated transactions and their late fraud labels."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fraud_assets.settings import Settings, load_settings
from fraud_assets.simulator.outlet import Via, via_option

if TYPE_CHECKING:
    import pyarrow as pa

    from fraud_assets.kafka.producer import Message

LIVE_CUSTOMERS = 1_000
LIVE_RATE = 2.0
LIVE_BAD_EVERY = 50


@click.command("simulate", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--count", type=click.IntRange(min=1), help="Transactions; 5000 without --days.")
@click.option("--days", type=click.IntRange(min=1), help="Whole days before today that they spread over; 50.")
@click.option("--customers", type=click.IntRange(min=1), help="Population; by default it fits the count, live 1000.")
@click.option("--seed", type=click.IntRange(min=0), default=42, show_default=True, help="Same seed, same world.")
@click.option(
    "--end", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="No transaction is later (UTC); now."
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Messages a second, at most; live 2.")
@click.option("--live", is_flag=True, help="Transactions stamped now, at --rate, until Ctrl-C.")
@click.option("--history-days", type=click.IntRange(min=0), default=0, help="Before --live: so many days of backlog.")
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
    label_delay: float,
    bad: int,
    out: Path | None,
    via: Via | None,
    as_json: bool,
) -> None:
    """Produce simulated card transactions, about 1 % frauds of three kinds, and the frauds' labels.

    A label is FRAUD_FEEDBACK_DELAY_DAYS later than its transaction and sent only once it is due. The same seed, count,
    days and end give the same messages, so that a repeated run adds duplicates, which the platform drops.

    \b
    Example: fraud-assets simulate --count 5000 --seed 7 --bad 20
             fraud-assets simulate --live --history-days 30 --rate 5
    """
    settings = load_settings()
    if out and (live or bad or rate or via):
        raise click.UsageError("--out writes a file: --live, --bad, --rate and --via do not go with it.")
    if live and (count or days or end):
        raise click.UsageError("--live goes by the clock: use --history-days instead of --count, --days and --end.")
    began = time.monotonic()
    if live:
        people = customers or LIVE_CUSTOMERS
        summary = _live(settings, seed, people, rate or LIVE_RATE, history_days, label_delay, bad, via)
    else:
        made = _made(count, days, customers, seed, end)
        summary = _written(made, out) if out else _produced(settings, made, rate, bad, via)
    summary["seconds"] = round(time.monotonic() - began, 3)
    click.echo(json.dumps(summary) if as_json else _in_words(summary))


def _made(count: int | None, days: int | None, customers: int | None, seed: int, end: datetime | None) -> pa.Table:
    from fraud_assets.simulator.generator import DEFAULT_DAYS, PAYMENTS_PER_CUSTOMER_DAY, simulate

    if count is None:
        # Days alone mean the traffic of the default population, or of the given one.
        count = 5000 if days is None and customers is None else 0
        count = count or round((customers or 50) * PAYMENTS_PER_CUSTOMER_DAY * (days or DEFAULT_DAYS))
    # The option's time has no zone, and means UTC.
    until = datetime.now(UTC) if end is None else end if end.tzinfo else end.replace(tzinfo=UTC)
    return simulate(count, seed=seed, end=until, days=days or DEFAULT_DAYS, customers=customers)


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
    return _produced(settings, _made(count, days, None, seed, end), None, bad, "kafka", on_wait)


def _produced(
    settings: Settings,
    made: pa.Table,
    rate: float | None,
    bad: int,
    via: Via | None,
    on_wait: Callable[[], object] | None = None,
) -> dict[str, Any]:
    from fraud_assets.simulator.bad import mixed_in
    from fraud_assets.simulator.event_order import EventOrder
    from fraud_assets.simulator.outlet import outlet
    from fraud_assets.simulator.pace import paced, progress

    order = EventOrder(settings)
    messages: Iterable[Message] = order.messages(made.to_batches(20_000))
    if bad:
        messages = mixed_in(messages, bad, max(1, made.num_rows // bad), settings)
    with outlet(settings, via, on_wait) as producer, progress(made.num_rows, "simulate") as tick:
        for message in paced(iter(messages), rate):
            producer.send(message)
            tick()
    return {
        **_facts(made),
        "labels": order.labels,
        "labels_not_due": order.labels_not_due,
        "bad": producer.delivered - order.transactions - order.labels,
        "delivered": producer.delivered,
    }


def _live(
    settings: Settings,
    seed: int,
    customers: int,
    rate: float,
    history_days: int,
    label_delay: float,
    bad: int,
    via: Via | None,
) -> dict[str, Any]:
    from fraud_assets.simulator.bad import mixed_in
    from fraud_assets.simulator.event_order import EventOrder
    from fraud_assets.simulator.generator import population, simulate
    from fraud_assets.simulator.live import LiveTraffic
    from fraud_assets.simulator.outlet import outlet
    from fraud_assets.simulator.pace import progress

    stop = _StopSignal()

    def pause() -> None:
        # The lander may have been stopped by the same Ctrl-C, and would then be waited for in vain.
        stop.raise_if_set()
        time.sleep(0.1)

    people = population(customers, seed)
    order = EventOrder(settings)
    traffic = LiveTraffic(people, settings, rate, timedelta(seconds=label_delay), stop.is_set)
    with stop, outlet(settings, via, on_wait=pause) as producer:
        if history_days:
            count = max(1, round(people.payments_per_day * history_days))
            backlog = simulate(count, seed=seed, end=datetime.now(UTC), days=history_days, customers=customers)
            with progress(count, "history") as tick:
                for message in order.messages(backlog.to_batches(20_000)):
                    stop.raise_if_set()
                    producer.send(message)
                    tick()
        with progress(None, "live") as tick:
            for message in mixed_in(traffic.messages(), bad, LIVE_BAD_EVERY, settings):
                producer.send(message)
                tick()
        stop.raise_if_set()
    return {
        "transactions": order.transactions + traffic.transactions,
        "history": order.transactions,
        "live": traffic.transactions,
        "frauds_live": traffic.frauds,
        "labels": order.labels + traffic.labels,
        "labels_not_due": order.labels_not_due + traffic.labels_not_due,
        "bad": max(0, producer.delivered - order.transactions - order.labels - traffic.transactions - traffic.labels),
        "delivered": producer.delivered,
    }


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
