"""Parses the times and half-open time ranges of run config and commands, written as ISO 8601 text."""

from datetime import UTC, datetime

from fraud_assets.errors import SettingError


def parse_time(text: str) -> datetime:
    """Returns the time of an ISO 8601 text. A time without a zone is UTC. Raises `SettingError`."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise SettingError(
            f"{text!r} is not a time. Write it in ISO 8601, for example 2026-01-31 or 2026-01-31T12:00:00Z."
        ) from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def parse_range(start: str | None, end: str | None) -> tuple[datetime, datetime] | None:
    """Returns the range [start, end), or None if both are None. Raises `SettingError` if only one of them is given."""
    if start is None and end is None:
        return None
    if start is None or end is None:
        raise SettingError(f"The range from {start} to {end} is incomplete. Give both its start and its end.")
    return parse_time(start), parse_time(end)
