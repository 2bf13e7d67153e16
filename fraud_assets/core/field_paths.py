"""Where a field is in an object: under its own key, or within other objects, as `after.id` is `id` within `after`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

MISSING: Final = object()
"""What `value_at` gives where nothing is."""


def resolve(keys: Collection[str], path: str) -> tuple[str, str] | None:
    """The key that a path names and the path below it, which is empty for the key itself; None where there is none.

    A key that is written like the whole path comes first, then the one with the fewest parts.
    """
    if path in keys:
        return path, ""
    dot = path.find(".")
    while dot >= 0:
        if path[:dot] in keys:
            return path[:dot], path[dot + 1 :]
        dot = path.find(".", dot + 1)
    return None


def value_at(payload: Any, path: str) -> Any:
    """The value under a path of an object, `MISSING` where there is none."""
    while type(payload) is dict:
        found = resolve(payload, path)
        if found is None:
            return MISSING
        key, path = found
        payload = payload[key]
        if not path:
            return payload
    return MISSING
