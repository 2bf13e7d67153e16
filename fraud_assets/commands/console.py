"""How the commands log: sentences on standard error for a person, or JSON lines for a log collector."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from datetime import UTC, datetime

from fraud_assets.settings import LogSettings


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: `time` (ISO 8601, UTC), `level`, `logger`, `message` and, if any, `error`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            values["error"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False)


def configure_logging() -> None:
    """Sends the platform's log to standard error, in the format that FRAUD_LOG_FORMAT names.

    If the settings cannot be read the format is text; the command reports that error itself.
    """
    kind = "text"
    with suppress(ValueError, OSError):
        kind = LogSettings().log_format
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if kind == "json" else logging.Formatter("%(message)s"))
    platform = logging.getLogger("fraud_assets")
    platform.handlers = [handler]
    platform.setLevel(logging.INFO)
    platform.propagate = False


def show_warnings_only() -> None:
    """Keeps lines of level INFO off standard error, for a command that shows its progress itself."""
    for handler in logging.getLogger("fraud_assets").handlers:
        handler.setLevel(logging.WARNING)
