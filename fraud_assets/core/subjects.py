"""Whose data a body holds, read as tolerantly as one can: for erasing what the parser itself would refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any


def ids_in(body: bytes | None, names: Collection[str]) -> set[str] | None:
    """The identifiers that an object has under the names, as text; of a repeated key all values.

    None where the body is no JSON object or has none of the names.
    """
    if not body:
        return None
    found: set[str] = set()
    named = False
    depth_pairs: list[list[tuple[str, Any]]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # The outermost object closes last.
        depth_pairs[:] = [pairs]
        return dict(pairs)

    try:
        payload = json.loads(body.decode("utf-8", "surrogateescape"), object_pairs_hook=keep)
    except (ValueError, RecursionError):
        return None
    if not isinstance(payload, dict) or not depth_pairs:
        return None
    for name, value in depth_pairs[0]:
        if name in names:
            named = True
            if type(value) in (str, int, float):
                found.add(str(int(value)) if type(value) is float and value.is_integer() else str(value))
    return found if named else None


def mention_of(ids: Collection[str]) -> re.Pattern[bytes]:
    """What finds one of the identifiers in bytes, standing alone: `42` not in `421` or `x42`."""
    words = b"|".join(re.escape(name.encode("utf-8", "surrogateescape")) for name in sorted(ids))
    return re.compile(rb"(?<![0-9A-Za-z_])(?:" + words + rb")(?![0-9A-Za-z_])")
