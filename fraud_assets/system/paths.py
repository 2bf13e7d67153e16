"""Which paths can hold the platform's state. They are checked before anything is opened.

Delta tables, the SQLite databases of MLflow and Dagster, and DuckDB each give some characters of a path a meaning of
their own. Such a path would lead to another folder, or to a panic.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from urllib.request import url2pathname

_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_FILE = "file://"
_MEANINGS = {
    "?": "starts the query of a database address",
    "[": "makes delta-rs fail",
    "]": "makes delta-rs fail",
    "^": "makes delta-rs fail",
    "|": "makes delta-rs fail",
    "\\": "is read as / by delta-rs",
}
_UNPRINTABLE = {
    "Cc": "a control character",
    "Cs": "a byte that is not UTF-8",
    "Zl": "a line break",
    "Zp": "a line break",
}


def is_uri(place: str) -> bool:
    """Whether a place is the URI of an object store, rather than a folder or a `file://` URI of one."""
    return "://" in place and not place.startswith(_FILE)


def plain_path(uri: str) -> str:
    """The folder that a `file://` URI names, as its plain path; any other text as it is.

    delta-rs names a table's folder by such a URI, in which a space is %20.
    """
    return url2pathname(uri.removeprefix(_FILE)) if uri.startswith(_FILE) else uri


def folder_path(place: str) -> Path:
    """The absolute folder that a path or `file://` URI names. `~` at its start is the home of the user.

    Raises:
        ValueError: the folder cannot hold the platform's state; the message is the reason and what to do.
    """
    place = plain_path(place)
    try:
        folder = Path(place).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{place.split('/')[0]} names no user of this machine; write the whole path") from error
    check_characters(str(folder))
    return folder


def check_characters(place: str) -> None:
    """Checks that every part of the platform reads the same place in this text.

    Args:
        place: an absolute folder, or the URI of an object store.

    Raises:
        ValueError: naming the first character that has another meaning somewhere, and what to do.
    """
    for character in place:
        reason = _MEANINGS.get(character) or _UNPRINTABLE.get(unicodedata.category(character))
        if character == "#" and is_uri(place):
            reason = "starts the fragment of a URI"
        if reason:
            raise ValueError(f"in {place!r} the character {character!r} {_verb(reason)}; choose a path without it")
    if escape := _ESCAPE.search(place):
        raise ValueError(
            f"in {place!r} the characters {escape[0]!r} are read as {chr(int(escape[0][1:], 16))!r} by delta-rs; "
            "choose a path without them"
        )
    if "${" in place:
        raise ValueError(
            f"in {place!r} the characters '${{' are read as a variable in `.env`; choose a path without them"
        )


def _verb(reason: str) -> str:
    return f"is {reason}" if reason.startswith("a ") else reason
