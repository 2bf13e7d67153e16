"""Configures the log of the commands on standard error: text for a person, or JSON lines for a log collector."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from datetime import UTC, datetime

import click

from fraud_assets.settings import LogSettings


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object: `time` (ISO 8601, UTC), `level`, `logger`, `message` and, if any, `error`."""

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
    """Sends the platform's log to standard error in the format named by FRAUD_LOG_FORMAT.

    If the settings cannot be read, the format is text. The command itself reports that error.
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
    # Some libraries log through the root logger, such as dagster-postgres. Others have handlers of their own.
    others = logging.StreamHandler(sys.stderr)
    others.setFormatter(handler.formatter)
    others.addFilter(lambda record: record.name == "root")
    logging.basicConfig(handlers=[others], level=logging.WARNING)


def report_error(message: str) -> None:
    """Writes the final error of a command to standard error, in the format of the log."""
    platform = logging.getLogger("fraud_assets")
    if any(isinstance(handler.formatter, JsonFormatter) for handler in platform.handlers):
        platform.error(message)
    else:
        click.echo(f"Error: {message}", err=True)


def show_warnings_only() -> None:
    """Hides log lines of level INFO, for a command that shows its own progress."""
    for handler in logging.getLogger("fraud_assets").handlers:
        handler.setLevel(logging.WARNING)
