"""Bytes in a field that may be an identifier, as Avro and Parquet store them: text where they are text."""

from __future__ import annotations

import re
from uuid import UUID

_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Control characters: bytes that hold them are a number or a code that is valid UTF-8 by chance."""


def text_of_bytes(data: bytes) -> str | None:
    """The bytes as UTF-8 text, None where they are no text."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if _NOT_TEXT.search(text) else text


def json_of_bytes(data: bytes) -> str | dict[str, str]:
    """What stands in JSON for bytes: their text, or an object with their hexadecimal digits.

    An object is no identifier, so that the parser refuses it and its detail shows the digits.
    """
    text = text_of_bytes(data)
    return {"bytes": data.hex()} if text is None else text


def uuid_text(data: bytes) -> str:
    """The text of a UUID of 16 bytes."""
    return str(UUID(bytes=data))
