"""Defines the findings that checks report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["OK", "WARN", "FAIL", "SKIP"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: the checked part of the platform.
        state: OK, WARN, FAIL, or SKIP if the fault in another finding prevented the check.
        text: the result of the check.
        fix: what the user should do; empty for OK and SKIP.
    """

    name: str
    state: State
    text: str
    fix: str = ""

    def as_json(self) -> dict[str, str]:
        """Returns the fields as JSON values."""
        return asdict(self)


def ok(name: str, text: str) -> Finding:
    """Reports that the part works."""
    return Finding(name, "OK", text)


def warn(name: str, text: str, fix: str) -> Finding:
    """Reports that the part works but needs attention."""
    return Finding(name, "WARN", text, fix)


def fail(name: str, text: str, fix: str) -> Finding:
    """Reports that the part does not work."""
    return Finding(name, "FAIL", text, fix)


def skip(name: str, text: str) -> Finding:
    """Reports that the part could not be checked."""
    return Finding(name, "SKIP", text)


def fail_from_error(name: str, error: Exception) -> Finding:
    """Reports an error of the platform, whose message is a sentence that states the problem and then the fix."""
    text, dot, fix = str(error).partition(". ")
    return fail(
        name,
        text + dot.strip() if fix else text,
        fix or "Correct the setting or file that it names. docs/settings.md lists the settings.",
    )
