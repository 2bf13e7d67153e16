"""`fraud-assets quarantine`: lists and shows quarantined messages, and retries them after a fix."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from fraud_assets.settings import load_settings

if TYPE_CHECKING:
    from fraud_assets.operations.quarantine import QuarantinedMessage, Selection

_HELP = {"help_option_names": ["-h", "--help"]}
_LIMIT = 20


@click.group("quarantine", context_settings=_HELP)
def command() -> None:
    """List quarantined messages, show one message, and retry messages after a fix.

    \b
    Example: fraud-assets quarantine list
             fraud-assets quarantine list --reason missing_field
             fraud-assets quarantine show transactions/0/17
             fraud-assets quarantine retry --reason missing_field --dry-run
    """


def _add_selection_options(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that select messages for `list` and `retry`."""
    for option in reversed(
        (
            click.option("--reason", help="Only messages with this reason, as printed by `list`."),
            click.option(
                "--since", metavar="TIME", help="Only messages that landed at this time (ISO 8601, UTC) or later."
            ),
            click.option("--topic", help="Only messages of this topic, such as transactions or file:day.csv."),
        )
    ):
        function = option(function)
    return function


@command.command("list", context_settings=_HELP)
@_add_selection_options
@click.option(
    "--limit", type=click.IntRange(min=1), default=_LIMIT, show_default=True, help="Maximum number of messages to list."
)
@click.option("--all", "retried", is_flag=True, help="Include messages that were already retried.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def list_command(
    reason: str | None, since: str | None, topic: str | None, limit: int, retried: bool, as_json: bool
) -> None:
    """Count the open messages by reason. With --reason, list the messages, the newest first.

    A message is open if it was not retried.

    \b
    Example: fraud-assets quarantine list --since 2026-01-31 --json
             fraud-assets quarantine list --reason invalid_json --limit 5
    """
    from fraud_assets.core.quarantine_reasons import REASONS
    from fraud_assets.core.schema import quarantined_transactions
    from fraud_assets.lake.held_days import describe_held_days
    from fraud_assets.lake.tables import Lake
    from fraud_assets.operations.quarantine import count_reasons, list_messages
    from fraud_assets.operations.retries import count_waiting_retries

    settings = load_settings()
    lake = Lake.of(settings)
    selection = _make_selection(reason, since, topic, retried=retried)
    counts = count_reasons(lake, settings, selection)
    found = list_messages(lake, settings, selection, limit) if reason else []
    waiting = count_waiting_retries(lake, settings)
    if as_json:
        reasons = [
            {
                "reason": count.reason,
                "messages": count.messages,
                "newest": count.newest.isoformat(),
                "meaning": REASONS.get(count.reason, ""),
            }
            for count in counts
        ]
        click.echo(
            json.dumps({"reasons": reasons, "messages": [_to_json_values(m) for m in found], "waiting": waiting})
        )
        return
    total = sum(count.messages for count in counts)
    if not total:
        if selection == _make_selection():
            click.echo("No open messages are in quarantine.")
        else:
            click.echo(f"No open messages are selected; {describe_held_days(lake, quarantined_transactions)}.")
    elif reason:
        click.echo(f"{total:,} messages: {REASONS.get(reason, reason)}")
        for entry in found:
            again = f"  (retried as {entry.retried_as})" if entry.retried_as else ""
            click.echo(f"{entry.position:<40} {entry.ingested_at:%Y-%m-%d %H:%M:%S}  {entry.detail}{again}")
        if total > len(found):
            click.echo(f"… and {total - len(found):,} more (--limit).")
    else:
        for count in counts:
            click.echo(f"{count.messages:>12,}  {count.reason:<24} newest {count.newest:%Y-%m-%d %H:%M:%S}  "
                       f"{REASONS.get(count.reason, '')}")  # fmt: skip
    if waiting:
        click.echo(
            f"{waiting:,} messages of an interrupted retry are waiting. Run `fraud-assets quarantine retry` again."
        )


@command.command("show", context_settings=_HELP)
@click.argument("position")
@click.option("--raw", is_flag=True, help="Print only the exact bytes of the body.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with key, headers and body in base64.")
def show_command(position: str, raw: bool, as_json: bool) -> None:
    """Show one message: its source, the reason, key, headers and body.

    POSITION is topic/partition/offset, as printed by `list`. The output includes the content of the message, which can
    be customer data.

    \b
    Example: fraud-assets quarantine show transactions/0/17
             fraud-assets quarantine show transactions/0/17 --raw > body.bin
    """
    from fraud_assets.core.quarantine_reasons import REASONS
    from fraud_assets.lake.tables import Lake
    from fraud_assets.operations.quarantine import find_message

    if raw and as_json:
        raise click.UsageError("--raw and --json cannot be used together.")
    settings = load_settings()
    entry = find_message(Lake.of(settings), settings, position)
    if raw:
        sys.stdout.buffer.write(entry.value or b"")
    elif as_json:
        message = {
            **_to_json_values(entry),
            "timestamp": entry.timestamp.isoformat() if entry.timestamp else None,
            "key": _encode_base64(entry.key),
            "value": _encode_base64(entry.value),
            "headers": [{"key": key, "value": _encode_base64(value)} for key, value in entry.headers],
        }
        click.echo(json.dumps(message))
    else:
        for name, text in (
            ("position", entry.position),
            ("topic_id", entry.topic_id),
            ("landed", f"{entry.ingested_at:%Y-%m-%d %H:%M:%S} UTC"),
            ("reason", f"{entry.reason}: {REASONS.get(entry.reason, '')}"),
            ("detail", entry.detail),
            ("retried", entry.retried_as or "no"),
            ("timestamp", f"{entry.timestamp:%Y-%m-%d %H:%M:%S} UTC" if entry.timestamp else "none"),
            ("key", "none" if entry.key is None else _make_readable(entry.key)),
            *((f"header {key}", "none" if value is None else _make_readable(value)) for key, value in entry.headers),
            ("body", "none" if entry.value is None else f"{len(entry.value):,} bytes"),
        ):
            click.echo(f"{name:<14}{text}")
        if entry.value:
            click.echo(_make_readable(entry.value))


@command.command("retry", context_settings=_HELP)
@click.argument("positions", nargs=-1, metavar="[POSITION]…")
@_add_selection_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print how many messages would pass now and the reasons of the others, and change nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def retry_command(
    positions: tuple[str, ...], reason: str | None, since: str | None, topic: str | None, dry_run: bool, as_json: bool
) -> None:
    """Retry open messages: those that pass with the current settings land again, the others stay in quarantine.

    Without a selection, all open messages are retried except repeated ids; select those with --reason duplicate or by
    POSITION. A message that lands again is processed like any other, to features and predictions. Its bytes do not
    change, and it gets the header fraud-retry-of. If the command is interrupted, run it again.

    \b
    Example: fraud-assets quarantine retry --reason missing_field --dry-run
             fraud-assets quarantine retry transactions/0/17 transactions/2/4
    """
    from fraud_assets.core.schema import quarantined_transactions
    from fraud_assets.lake.held_days import describe_held_days
    from fraud_assets.lake.tables import Lake
    from fraud_assets.operations.retries import retry_messages

    settings = load_settings()
    selection = _make_selection(reason, since, topic, positions)
    lake = Lake.of(settings)
    report = retry_messages(lake, settings, selection, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(asdict(report)))
        return
    if report.resumed:
        click.echo(f"{report.resumed:,} messages of an interrupted retry have landed.")
    if not report.selected:
        click.echo(
            "No open messages are selected. Messages that were already retried are skipped; "
            f"{describe_held_days(lake, quarantined_transactions)}."
        )
        return
    if dry_run:
        click.echo(f"{report.passing:,} of {report.selected:,} messages would pass now.")
    else:
        click.echo(f"{report.transactions + report.labels:,} of {report.selected:,} messages landed again: "
                   f"{report.transactions:,} transactions, {report.labels:,} labels.")  # fmt: skip
    for name, count in sorted(report.failing.items(), key=lambda entry: -entry[1]):
        click.echo(f"{count:>12,}  remain in quarantine: {name}")


def _make_selection(
    reason: str | None = None,
    since: str | None = None,
    topic: str | None = None,
    positions: tuple[str, ...] = (),
    *,
    retried: bool = False,
) -> Selection:
    """Returns the selection of the options. Raises `UsageError` for an unknown reason."""
    from difflib import get_close_matches

    from fraud_assets.assets.ranges import parse_time
    from fraud_assets.core.quarantine_reasons import REASONS
    from fraud_assets.operations.quarantine import Selection

    if reason is not None and reason not in REASONS:
        near = get_close_matches(reason, REASONS, 1)
        hint = f"Did you mean {near[0]}?" if near else f"Use one of {', '.join(REASONS)}."
        raise click.UsageError(f"--reason {reason!r} is not a reason. {hint}")
    return Selection(reason, None if since is None else parse_time(since), topic, positions, retried)


def _to_json_values(entry: QuarantinedMessage) -> dict[str, Any]:
    return {
        "position": entry.position,
        "topic": entry.topic,
        "topic_id": entry.topic_id,
        "partition": entry.partition,
        "offset": entry.offset,
        "reason": entry.reason,
        "detail": entry.detail,
        "ingested_at": entry.ingested_at.isoformat(),
        "bytes": entry.size,
        "retried_as": entry.retried_as,
    }


def _encode_base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _make_readable(value: bytes) -> str:
    """Returns bytes as readable text: JSON is indented, and control characters and invalid bytes are escaped."""
    try:
        text = json.dumps(json.loads(value), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = value.decode("utf-8", "backslashreplace")
    # A terminal must show control characters and not execute them.
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
