"""How fast messages go out, and telling how far they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from fraud_assets.kafka.producer import Message

TELL_SECONDS = 5.0
TELL_SECONDS_WITHOUT_END = 60.0


def pace_messages(messages: Iterator[Message], rate: float | None) -> Iterator[Message]:
    """The messages at no more than `rate` a second on average; as fast as they are taken without a rate."""
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
    """Gives a function to call per message; shows a bar on a terminal, else a line every few seconds, on stderr."""
    if total and sys.stderr.isatty():
        with click.progressbar(length=total, label=label, file=sys.stderr, update_min_steps=1 + total // 200) as bar:
            yield lambda: bar.update(1)
        return
    pause = TELL_SECONDS if total else TELL_SECONDS_WITHOUT_END
    began = told = time.monotonic()
    sent = 0

    def tick() -> None:
        nonlocal sent, told
        sent += 1
        if sent % 100 and time.monotonic() - told < pause:
            return
        now = time.monotonic()
        if now - told >= pause:
            told = now
            share = f" ({sent / total:.0%})" if total else ""
            click.echo(f"{label}: {sent:,} messages{share}, {_pace(sent / (now - began))}", err=True)

    yield tick


def _pace(per_second: float) -> str:
    """The rate in words: per minute when it is below one a second, so that a slow stream does not read as stopped."""
    return f"{per_second:,.0f} a second" if per_second >= 1 else f"{per_second * 60:,.1f} a minute"
