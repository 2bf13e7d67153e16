"""Limits the rate of messages and shows progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from fraud_assets.kafka.producer import Message

PROGRESS_SECONDS = 5.0
ENDLESS_PROGRESS_SECONDS = 60.0


def pace_messages(messages: Iterator[Message], rate: float | None) -> Iterator[Message]:
    """Yields the messages at no more than `rate` per second on average, or without a limit if `rate` is None or 0."""
    if not rate:
        yield from messages
        return
    began = time.monotonic()
    for number, message in enumerate(messages):
        if (ahead := number / rate - (time.monotonic() - began)) > 0:
            time.sleep(ahead)
        yield message


@contextmanager
def show_progress(total: int | None, label: str) -> Iterator[Callable[[], None]]:
    """Shows progress on standard error: a bar on a terminal, else a line every few seconds.

    Args:
        total: expected number of messages; None if there is no end.
        label: start of each line.

    Yields:
        A function to call after each message.
    """
    if total and sys.stderr.isatty():
        with click.progressbar(length=total, label=label, file=sys.stderr, update_min_steps=1 + total // 200) as bar:
            yield lambda: bar.update(1)
        return
    pause = PROGRESS_SECONDS if total else ENDLESS_PROGRESS_SECONDS
    began = shown = time.monotonic()
    sent = 0

    def tick() -> None:
        nonlocal sent, shown
        sent += 1
        if sent % 100 and time.monotonic() - shown < pause:
            return
        now = time.monotonic()
        if now - shown >= pause:
            shown = now
            share = f" ({sent / total:.0%})" if total else ""
            click.echo(f"{label}: {sent:,} messages{share}, {_describe_rate(sent / (now - began))}", err=True)

    yield tick


def _describe_rate(per_second: float) -> str:
    """Returns the rate in words, per minute if it is below one per second, so that slow traffic is not shown as 0."""
    return f"{per_second:,.0f} a second" if per_second >= 1 else f"{per_second * 60:,.1f} a minute"
