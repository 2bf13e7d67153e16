"""Resolves dotted field paths: `after.id` is the key `after.id`, or the key `id` of the object `after`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

MISSING: Final = object()
"""Returned by `get_value` if the path does not exist."""


def resolve(keys: Collection[str], path: str) -> tuple[str, str] | None:
    """Finds the key of an object at which a path starts.

    A key equal to the whole path takes precedence, then the key with the fewest parts.

    Returns:
        The key and the rest of the path, which is empty for the key itself; None if no key matches.
    """
    if path in keys:
        return path, ""
    dot = path.find(".")
    while dot >= 0:
        if path[:dot] in keys:
            return path[:dot], path[dot + 1 :]
        dot = path.find(".", dot + 1)
    return None


def get_value(payload: Any, path: str) -> Any:
    """Returns the value at a path of an object, or `MISSING` if the path does not exist."""
    while type(payload) is dict:
        found = resolve(payload, path)
        if found is None:
            return MISSING
        key, path = found
        payload = payload[key]
        if not path:
            return payload
    return MISSING
