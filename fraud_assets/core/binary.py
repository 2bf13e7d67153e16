"""Converts binary values of Avro and Parquet, which may be identifiers, to text or JSON."""

from __future__ import annotations

import re
from uuid import UUID

_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Control characters. Bytes with one of them are a number or a code that happens to be valid UTF-8."""


def bytes_to_text(data: bytes) -> str | None:
    """Decodes bytes as UTF-8 text. Returns None if they are not text."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if _NOT_TEXT.search(text) else text


def bytes_to_json(data: bytes) -> str | dict[str, str]:
    """Converts bytes to a JSON value: their text, or an object with their hexadecimal digits.

    The parser rejects an object as an identifier, and the detail of the rejection shows the digits.
    """
    text = bytes_to_text(data)
    return {"bytes": data.hex()} if text is None else text


def format_uuid(data: bytes) -> str:
    """Returns the text of a UUID from its 16 bytes."""
    return str(UUID(bytes=data))
