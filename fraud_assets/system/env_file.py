"""The `.env` of the current folder: its encoding, and how a value is quoted in it."""

from __future__ import annotations

import re
from pathlib import Path

from fraud_assets.errors import SettingError

_PLAIN_VALUE = re.compile(r"[\w@%+=:,./-]+")


def quote_value(value: str) -> str:
    """A value as python-dotenv (Dagster, pydantic) and honcho both read it."""
    if _PLAIN_VALUE.fullmatch(value):
        return value
    if "'" not in value:
        return f"'{value}'"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def check_env_file(file: Path) -> None:
    """Checks that a `.env`, if it exists, is readable text in UTF-8.

    Raises:
        SettingError: naming the file, its encoding as far as it shows, and how to convert it.
    """
    try:
        content = file.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return
    except OSError as error:
        raise SettingError(f"The settings file {file.absolute()} cannot be read: {error.strerror}.") from error
    encoding = _other_encoding(content)
    if encoding:
        raise SettingError(
            f"The settings file {file.absolute()} is not in UTF-8, it looks like {encoding}: save it as UTF-8, "
            f"for example with `iconv -f {encoding} -t UTF-8 {file.name} > new.env && mv new.env {file.name}`."
        )


def _other_encoding(content: bytes) -> str | None:
    """The name of the encoding that the text seems to have where it is not UTF-8."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    if b"\0" in content:
        # ASCII characters in UTF-16 have their zero byte in second (little-endian) or in first place.
        return "UTF-16LE" if content[1::2].count(0) >= content[::2].count(0) else "UTF-16BE"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "LATIN1"
    return None
