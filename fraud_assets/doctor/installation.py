"""Checks settings, state folder and installed versions."""

from __future__ import annotations

import os
import re
import shutil
import sys
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from pydantic import SecretStr

from fraud_assets.doctor.finding import Finding, fail, ok, warn
from fraud_assets.settings import Settings, environment_name

_MIN_FREE_BYTES = 1_000_000_000
_LOW_FREE_BYTES = 10_000_000_000
_NAME = re.compile(r"\s*(?:export\s+)?(FRAUD_\w+)\s*=")


def check_settings(settings: Settings) -> list[Finding]:
    """Lists the settings that differ from their default, with secrets masked, and looks for unknown FRAUD_ names."""
    changed = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if value != field.get_default(call_default_factory=True):
            changed.append(
                f"{environment_name(name)}={'***' if isinstance(value, SecretStr) else _format_value(value)}"
            )
    found = [ok("settings", ", ".join(changed) if changed else "all at their defaults")]
    known = {environment_name(name) for name in Settings.model_fields}
    for name in sorted({*_environment_names(), *_names_in_env_file()} - known):
        near = get_close_matches(name, known, 1)
        found.append(
            warn(
                "settings",
                f"{name} is not a setting and has no effect",
                f"Did you mean {near[0]}?" if near else "Remove it. docs/settings.md lists the settings.",
            )
        )
    return found


def check_home(settings: Settings) -> list[Finding]:
    """Checks that the state folder can be written, and the free space on its disk."""
    home = settings.home_path
    existing = next(path for path in (home, *home.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        fix = "Correct its owner and mount, or set FRAUD_HOME to another folder."
        return [fail("home", f"{home} cannot be written", fix)]
    free = shutil.disk_usage(existing).free
    text = f"{home}, {free / 1e9:,.1f} GB free"
    if free < _MIN_FREE_BYTES:
        return [fail("home", text, "Free space on that disk, or set FRAUD_HOME to a folder on another disk.")]
    if free < _LOW_FREE_BYTES:
        return [warn("home", text, "Free space soon, or set FRAUD_HOME to a folder on another disk.")]
    if not home.exists():
        fix = "The first command that needs it creates it, and so does `fraud-assets setup`."
        return [warn("home", f"{home} does not exist yet", fix)]
    return [ok("home", text)]


def check_versions(settings: Settings) -> list[Finding]:
    """Compares the installed libraries with the requirements of this version of the platform."""
    from packaging.requirements import Requirement

    wrong = []
    required = [Requirement(line) for line in requires("fraud_assets") or () if "extra ==" not in line]
    for requirement in required:
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, but {requirement.specifier} is required")
    python = ".".join(map(str, sys.version_info[:3]))
    if wrong:
        fix = "Install the package again, with its constraints.txt (in a clone: `make setup`)."
        return [fail("versions", "; ".join(wrong), fix)]
    text = f"fraud_assets {version('fraud_assets')}, Python {python}, {len(required)} libraries as required"
    return [ok("versions", text)]


def _format_value(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={entry}" for key, entry in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else _without_password(str(value))


def _without_password(text: str) -> str:
    return re.sub(r"(://[^/@:\s]*:)[^/@\s]+@", r"\1***@", text)


def _environment_names() -> set[str]:
    return {name for name in os.environ if name.startswith("FRAUD_")}


def _names_in_env_file() -> set[str]:
    try:
        lines = Path(".env").read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    return {match[1] for line in lines if (match := _NAME.match(line))}
