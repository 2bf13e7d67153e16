"""One message body: its bytes to a JSON object, or the reason why they are none."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from fraud_assets.core.field_paths import resolve

BODY_REASONS = {
    "tombstone": "The message has a null body: the deletion marker of a compacted topic, no transaction.",
    "empty_body": "The message has no body.",
    "body_too_large": "The message body is larger than FRAUD_MAX_BODY_BYTES allows.",
    "unknown_schema": "The schema registry has no schema that can be read under the id that the body names.",
    "invalid_avro": "The message body is not what its Avro schema says.",
    "invalid_utf8": "The message body is not UTF-8 text.",
    "invalid_json": "The message body is not JSON, or is nested too deeply.",
    "not_an_object": "The message body is JSON, but not an object.",
    "duplicate_key": "A key occurs more than once in the object, so that its value is ambiguous.",
    "wrong_type": "A field holds a value of the wrong type.",
}
"""Why a body gives no JSON object: each reason with one sentence for a person."""

FAST_DEPTH = 40
"""Levels of lists and objects, each, that the fast paths take; their sum stays below MAX_DEPTH."""

MAX_DEPTH = 100
"""Levels of lists and objects; a fixed limit, for the interpreter's own depends on how deep the caller is."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""UTF-8's byte order mark, which .NET and some editors write first. It is no part of the JSON and is ignored."""

WITHHELD = b"withheld "
"""How a body starts whose bytes were not kept (see `core.pseudonyms`); no JSON and no registry's frame does."""

MAGIC = b"\0"
"""How a body starts that a schema registry's serializer framed; four bytes with the schema's id follow."""

_SHOWN_CHARACTERS = 80


class Rejected(Exception):
    """A message cannot be taken; `reason` is a key of `REASONS` before any `label_`, `detail` a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class LongInteger(str):
    """Digits of an integer that is too long for Python to convert."""


def json_object(body: bytes | None, max_body_bytes: int, paths: Iterable[str] = ()) -> dict[str, Any]:
    """The JSON object that a body holds.

    Args:
        body: the message's bytes.
        max_body_bytes: a larger body is refused.
        paths: fields that are read; no key on the way to one of them may occur twice.

    Raises:
        Rejected: with the first thing that is wrong; the detail may quote the body.
    """
    check_size(body, max_body_bytes)
    assert body is not None
    if body.startswith(WITHHELD):
        raise _withheld(body)
    if body.startswith(MAGIC):
        detail = "it has a schema registry's frame; expected JSON (FRAUD_TRANSACTIONS_FORMAT, FRAUD_LABELS_FORMAT)"
        raise Rejected("invalid_json", detail)
    content = strip_byte_order_mark(body)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        place = error.start + len(body) - len(content)
        detail = f"byte {place} of the body is 0x{content[error.start]:02x}; expected UTF-8"
        raise Rejected("invalid_utf8", detail) from None

    repeated: list[tuple[dict[str, Any], list[tuple[str, Any]]]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            repeated.append((made, pairs))
        return made

    too_deep = Rejected("invalid_json", f"the body is nested too deeply; expected at most {MAX_DEPTH} levels")
    try:
        payload = json.loads(text, object_pairs_hook=keep, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise Rejected("invalid_json", f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise too_deep from None
    if count_pairs(payload, MAX_DEPTH) is None:
        raise too_deep
    if not isinstance(payload, dict):
        raise Rejected("not_an_object", f"the body is {describe(payload)}; expected an object")
    if repeated:
        _refuse_repeated(payload, repeated, paths)
    return payload


def _refuse_repeated(
    payload: dict[str, Any], repeated: list[tuple[dict[str, Any], list[tuple[str, Any]]]], paths: Iterable[str]
) -> None:
    """Raises `Rejected` where the object, or one on the way to a path, has a key more than once."""
    read: list[Any] = [payload]
    for path in paths:
        inner: Any = payload
        below = path
        while type(inner) is dict and (found := resolve(inner, below)) is not None and found[1]:
            inner, below = inner[found[0]], found[1]
            read.append(inner)
    for made, pairs in repeated:
        if any(item is made for item in read):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise Rejected("duplicate_key", f"the key {_cut(_storable(json.dumps(key)))} occurs more than once")
                seen.add(key)


def strip_byte_order_mark(body: bytes) -> bytes:
    """The body without a byte order mark at its start."""
    return body.removeprefix(BYTE_ORDER_MARK)


def check_size(body: bytes | None, max_body_bytes: int) -> None:
    """Raises `Rejected` for a body that is not there, is empty or is too large to be looked at."""
    if body is None:
        raise Rejected("tombstone", "the message has a null body: a deletion marker")
    if not body:
        raise Rejected("empty_body", "the message has no body")
    if len(body) > max_body_bytes:
        raise Rejected("body_too_large", f"the body has {len(body)} bytes; expected at most {max_body_bytes}")


def count_pairs(payload: Any, deepest: int) -> int | None:
    """Number of key-value pairs at all levels, None beyond `deepest` levels. No recursion: the input is hostile."""
    pairs, depth = 0, 0
    level = [payload] if type(payload) in (dict, list) else []
    while level:
        depth += 1
        if depth > deepest:
            return None
        below: list[Any] = []
        for item in level:
            children = item
            if type(item) is dict:
                pairs += len(item)
                children = item.values()
            below += [child for child in children if type(child) in (dict, list)]
        level = below
    return pairs


def read_buffers(bodies: Any) -> tuple[np.ndarray, np.ndarray]:
    """All bytes of a binary array, and where each row starts and the last ends."""
    _, starts, content = bodies.buffers()
    offsets = np.frombuffer(starts, dtype=np.int32)[bodies.offset : bodies.offset + len(bodies) + 1]
    offsets = offsets.astype(np.int64)
    if content is None:
        return np.zeros(0, dtype=np.uint8), offsets - offsets[0]
    return np.frombuffer(content, dtype=np.uint8)[offsets[0] : offsets[-1]], offsets - offsets[0]


def bound_pair_counts(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """How many key-value pairs each body has at the most, from its bytes alone.

    A colon that ends a key follows a quote or white space. So the colons that do are at least as many as the
    pairs written, and a body that has that many pairs after decoding lost none to a repeated key.
    """
    colons = np.flatnonzero(data == ord(":"))
    before = data[colons - 1]
    colons = colons[(before == ord('"')) | (before <= ord(" "))]
    return np.diff(np.searchsorted(colons, offsets))


def describe(value: Any) -> str:
    """A value and its type for a person, short and storable."""
    if value is None:
        return "null"
    if isinstance(value, LongInteger):
        return f"{_cut(value)}, an integer of {len(value.lstrip('-'))} digits"
    kinds = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array"}
    return f"{_cut(_storable(json.dumps(value, ensure_ascii=False)))}, {kinds.get(type(value), 'an object')}"


def build_withheld_body(reason: str, hmac: str, length: int) -> bytes:
    """What is stored in place of a body that must not be kept: why it could not be read, its HMAC and its length."""
    return WITHHELD + json.dumps({"reason": reason, "bytes": length, "hmac_sha256": hmac}).encode()


def _withheld(body: bytes) -> Rejected:
    try:
        marker = json.loads(body.removeprefix(WITHHELD))
        reason, length = marker["reason"], int(marker["bytes"])
        sentence = BODY_REASONS[reason]
    except (ValueError, TypeError, KeyError, RecursionError):  # somebody else's bytes that start alike
        return Rejected("invalid_json", "the body is not JSON: it starts like one that was withheld")
    return Rejected(reason, f"{sentence} Its {length} bytes were withheld, as FRAUD_PSEUDONYMISE says")


def _integer(digits: str) -> int | LongInteger:
    try:
        return int(digits)
    except ValueError:  # Python converts no more than about 4300 digits
        return LongInteger(digits)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
