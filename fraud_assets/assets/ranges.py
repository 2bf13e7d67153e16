"""Times and half-open time ranges as run config gives them: ISO 8601 text."""

from datetime import UTC, datetime

from fraud_assets.errors import SettingError


def parse_time(text: str) -> datetime:
    """ISO 8601 text as a time; without zone it is UTC. Raises `SettingError`."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise SettingError(
            f"{text!r} is no time: write it in ISO 8601, as 2026-01-31 or 2026-01-31T12:00:00Z."
        ) from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def parse_range(start: str | None, end: str | None) -> tuple[datetime, datetime] | None:
    """The range [start, end), or None where none is asked for. Raises `SettingError` for half a range."""
    if start is None and end is None:
        return None
    if start is None or end is None:
        raise SettingError(f"The range from {start} to {end} is only half given: give its start and its end.")
    return parse_time(start), parse_time(end)
