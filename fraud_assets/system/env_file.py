"""Checks the encoding of the `.env` file in the current folder and quotes values for it."""

from __future__ import annotations

import re
from pathlib import Path

from fraud_assets.errors import SettingError

_PLAIN_VALUE = re.compile(r"[\w@%+=:,./-]+")


def quote_value(value: str) -> str:
    """Quotes a value so that python-dotenv (used by Dagster and pydantic) and honcho read the same text."""
    if _PLAIN_VALUE.fullmatch(value):
        return value
    if "'" not in value:
        return f"'{value}'"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def check_env_file(file: Path) -> None:
    """Checks that a `.env` file, if it exists, is readable UTF-8 text.

    Raises:
        SettingError: The file cannot be read, or it has another encoding. The message names the file, its probable
            encoding and the command that converts it.
    """
    try:
        content = file.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return
    except OSError as error:
        raise SettingError(
            f"The settings file {file.absolute()} cannot be read: {error.strerror}. Check its permissions."
        ) from error
    encoding = _guess_other_encoding(content)
    if encoding:
        raise SettingError(
            f"The settings file {file.absolute()} is not in UTF-8; its encoding is probably {encoding}. Save it as "
            f"UTF-8, for example with `iconv -f {encoding} -t UTF-8 {file.name} > new.env && mv new.env {file.name}`."
        )


def _guess_other_encoding(content: bytes) -> str | None:
    """Returns the probable encoding of text that is not UTF-8, or None if it is UTF-8."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    if b"\0" in content:
        # In UTF-16, an ASCII character has its zero byte second (little-endian) or first (big-endian).
        return "UTF-16LE" if content[1::2].count(0) >= content[::2].count(0) else "UTF-16BE"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "LATIN1"
    return None
