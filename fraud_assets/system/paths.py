"""Checks that a path can hold the platform's state, before anything is opened.

delta-rs, DuckDB and the SQLite databases of MLflow and Dagster each interpret some characters of a path. A path with
such a character would lead to another folder or crash one of them.
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


def is_uri(location: str) -> bool:
    """Returns whether a location is the URI of an object store, and not a folder or its `file://` URI."""
    return "://" in location and not location.startswith(_FILE)


def strip_file_scheme(uri: str) -> str:
    """Returns the path of a `file://` URI, or the text unchanged if it is not such a URI.

    delta-rs reports the folder of a table as such a URI, in which a space is %20.
    """
    return url2pathname(uri.removeprefix(_FILE)) if uri.startswith(_FILE) else uri


def resolve_folder(location: str) -> Path:
    """Returns the absolute folder of a path or `file://` URI. A leading `~` stands for the user's home folder.

    Raises:
        ValueError: The folder cannot hold the platform's state. The message gives the reason and the fix.
    """
    location = strip_file_scheme(location)
    try:
        folder = Path(location).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{location.split('/')[0]} is not a user of this machine; write the absolute path") from error
    check_characters(str(folder))
    return folder


def check_characters(location: str) -> None:
    """Checks that all parts of the platform interpret a location in the same way.

    Args:
        location: An absolute folder, or the URI of an object store.

    Raises:
        ValueError: The location has a character with a special meaning. The message names the first one and the fix.
    """
    for character in location:
        reason = _MEANINGS.get(character) or _UNPRINTABLE.get(unicodedata.category(character))
        if character == "#" and is_uri(location):
            reason = "starts the fragment of a URI"
        if reason:
            raise ValueError(
                f"in {location!r} the character {character!r} {_as_predicate(reason)}; choose a path without it"
            )
    if escape := _ESCAPE.search(location):
        raise ValueError(
            f"in {location!r} the characters {escape[0]!r} are read as {chr(int(escape[0][1:], 16))!r} by delta-rs; "
            "choose a path without them"
        )
    if "${" in location:
        raise ValueError(
            f"in {location!r} the characters '${{' are read as a variable in `.env`; choose a path without them"
        )


def _as_predicate(reason: str) -> str:
    return f"is {reason}" if reason.startswith("a ") else reason
