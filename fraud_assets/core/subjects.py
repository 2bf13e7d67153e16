"""Finds the identifiers in a body. It reads tolerantly, so that erasure also covers bodies that the parser rejects."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from fraud_assets.core.bodies import strip_byte_order_mark


class _Pairs(list[tuple[str, Any]]):
    """The pairs of an object, including all pairs of a repeated key."""


def find_ids(body: bytes | None, names: Collection[str]) -> set[str] | None:
    """Finds the identifiers that a body has under some names, including all values of a repeated key.

    Args:
        body: The bytes of the message body.
        names: Names of fields; case is ignored. `after.id` is also the key `id` of the object `after`.

    Returns:
        The identifiers as text, or None if the body is not a JSON object or has none of the names.
    """
    if not body:
        return None
    try:
        payload = json.loads(strip_byte_order_mark(body).decode("utf-8", "surrogateescape"), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None
    if type(payload) is not _Pairs:
        return None
    values = [value for name in {name.lower() for name in names} for value in _values_at(payload, name)]
    if not values:
        return None
    return {
        str(int(value)) if type(value) is float and value.is_integer() else str(value)
        for value in values
        if type(value) in (str, int, float)
    }


def _values_at(pairs: _Pairs, path: str) -> Iterator[Any]:
    for key, value in pairs:
        name = key.lower()
        if name == path:
            yield value
        elif path.startswith(f"{name}.") and type(value) is _Pairs:
            yield from _values_at(value, path[len(name) + 1 :])


def compile_id_pattern(ids: Collection[str]) -> re.Pattern[bytes]:
    """Compiles a pattern that finds the identifiers in bytes as whole words: `42`, but not in `421` or `x42`."""
    words = b"|".join(re.escape(name.encode("utf-8", "surrogateescape")) for name in sorted(ids))
    return re.compile(rb"(?<![0-9A-Za-z_])(?:" + words + rb")(?![0-9A-Za-z_])")
