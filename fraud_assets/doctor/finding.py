"""What a check found: one line, and the fix where one is needed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["OK", "WARN", "FAIL", "SKIP"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. `SKIP`: it could not be checked, because of what another line says."""

    name: str
    state: State
    text: str
    fix: str = ""

    def as_json(self) -> dict[str, str]:
        """As JSON values."""
        return asdict(self)


def ok(name: str, text: str) -> Finding:
    """All is well."""
    return Finding(name, "OK", text)


def warn(name: str, text: str, fix: str) -> Finding:
    """It works, but somebody should know."""
    return Finding(name, "WARN", text, fix)


def fail(name: str, text: str, fix: str) -> Finding:
    """It does not work."""
    return Finding(name, "FAIL", text, fix)


def skip(name: str, text: str) -> Finding:
    """It could not be checked."""
    return Finding(name, "SKIP", text)


def refused(name: str, error: Exception) -> Finding:
    """A failure that has its own sentence, the fix in its last part."""
    text, dot, fix = str(error).partition(". ")
    return fail(
        name, text + dot.strip() if fix else text, fix or "Correct what it names; the README lists the settings."
    )
