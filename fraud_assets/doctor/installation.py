"""Settings, state folder and installed versions."""

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

_LEAST_FREE_BYTES = 1_000_000_000
_TIGHT_BYTES = 10_000_000_000
_NAME = re.compile(r"\s*(?:export\s+)?(FRAUD_\w+)\s*=")


def check_settings(settings: Settings) -> list[Finding]:
    """Which settings differ from their default, secrets masked, and names that no setting has."""
    changed = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if value != field.get_default(call_default_factory=True):
            changed.append(f"{environment_name(name)}={'***' if isinstance(value, SecretStr) else _shown(value)}")
    found = [ok("settings", ", ".join(changed) if changed else "all at their defaults")]
    known = {environment_name(name) for name in Settings.model_fields}
    for name in sorted({*_environment_names(), *_names_in_file()} - known):
        near = get_close_matches(name, known, 1)
        found.append(
            warn(
                "settings",
                f"{name} is no setting and has no effect",
                f"Did you mean {near[0]}?" if near else "Remove it; the README lists the settings.",
            )
        )
    return found


def check_home(settings: Settings) -> list[Finding]:
    """Whether the state folder can be written, and the free space there."""
    home = settings.home_path
    there = next(path for path in (home, *home.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return [
            fail("home", f"{home} cannot be written", "Correct its owner and mount, or point FRAUD_HOME elsewhere.")
        ]
    free = shutil.disk_usage(there).free
    text = f"{home}, {free / 1e9:,.1f} GB free"
    if free < _LEAST_FREE_BYTES:
        return [fail("home", text, "Free space on that disk, or point FRAUD_HOME to another.")]
    if free < _TIGHT_BYTES:
        return [warn("home", text, "Free space soon, or point FRAUD_HOME to another disk.")]
    if not home.exists():
        return [warn("home", f"{home} does not exist yet", "It is made when first used; `make setup` makes it now.")]
    return [ok("home", text)]


def check_versions(settings: Settings) -> list[Finding]:
    """Installed libraries against what this version of the platform asks for."""
    from packaging.requirements import Requirement

    wrong = []
    wanted = [Requirement(line) for line in requires("fraud_assets") or () if "extra ==" not in line]
    for requirement in wanted:
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, wanted {requirement.specifier}")
    python = ".".join(map(str, sys.version_info[:3]))
    if wrong:
        return [fail("versions", "; ".join(wrong), "Run `make setup`, which installs what pyproject.toml names.")]
    return [
        ok("versions", f"fraud_assets {version('fraud_assets')}, Python {python}, {len(wanted)} libraries as wanted")
    ]


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={entry}" for key, entry in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else _without_password(str(value))


def _without_password(text: str) -> str:
    return re.sub(r"(://[^/@:\s]*:)[^/@\s]+@", r"\1***@", text)


def _environment_names() -> set[str]:
    return {name for name in os.environ if name.startswith("FRAUD_")}


def _names_in_file() -> set[str]:
    try:
        lines = Path(".env").read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    return {match[1] for line in lines if (match := _NAME.match(line))}
