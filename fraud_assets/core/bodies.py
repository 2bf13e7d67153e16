"""Parses one message body to a JSON object, or gives the reason why it is rejected."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from fraud_assets.core.field_paths import resolve

TOMBSTONE = "tombstone"
"""Reason of a message with a null body."""
BODY_REASONS = {
    TOMBSTONE: "The message has a null body: a deletion marker of a compacted topic, not a transaction.",
    "empty_body": "The message has no body.",
    "body_too_large": "The message body is larger than FRAUD_MAX_BODY_BYTES allows.",
    "unknown_schema": "The schema registry has no readable schema with the id in the message.",
    "invalid_avro": "The message body does not follow its Avro schema.",
    "invalid_utf8": "The message body is not UTF-8 text.",
    "invalid_json": "The message body is not JSON, or is nested too deeply.",
    "not_an_object": "The message body is JSON, but not an object.",
    "duplicate_key": "A key occurs more than once in the object, so its value is ambiguous.",
    "wrong_type": "A field holds a value of the wrong type.",
}
"""Reasons to reject a body, each with a sentence for operators."""

FAST_DEPTH = 40
"""Maximum levels of lists, and of objects, that the fast paths accept. The sum stays below MAX_DEPTH."""

MAX_DEPTH = 100
"""Maximum levels of lists and objects. It is fixed, because the interpreter's limit depends on the caller's depth."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Byte order mark of UTF-8, which .NET and some editors write first. It is not part of the JSON and is ignored."""

WITHHELD = b"withheld "
"""Prefix of a stored body without its bytes (see `core.pseudonyms`). No JSON and no framed body starts with it."""

MAGIC = b"\0"
"""First byte of a body framed by a schema registry's serializer. Four bytes with the schema's id follow."""

_SHOWN_CHARACTERS = 80


class Rejected(Exception):
    """A message is rejected.

    Attributes:
        reason: A key of `core.quarantine_reasons.REASONS`, without the prefix `label_`.
        detail: A sentence with the rejected value and the expected one.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class LongInteger(str):
    """Digits of an integer that Python refuses to convert because it is too long."""


def parse_json_object(body: bytes | None, max_body_bytes: int, paths: Iterable[str] = ()) -> dict[str, Any]:
    """Parses a body to a JSON object.

    Args:
        body: The bytes of the message body.
        max_body_bytes: A larger body is rejected.
        paths: Paths of the fields that the caller reads. No key along these paths may occur twice.

    Raises:
        Rejected: The body is not acceptable. It gives the first problem; the detail may quote the body.
    """
    check_size(body, max_body_bytes)
    assert body is not None
    if body.startswith(WITHHELD):
        raise _read_withheld(body)
    if body.startswith(MAGIC):
        detail = (
            "the body has a schema registry's frame; expected JSON (FRAUD_TRANSACTIONS_FORMAT, FRAUD_LABELS_FORMAT)"
        )
        raise Rejected("invalid_json", detail)
    content = strip_byte_order_mark(body)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        index = error.start + len(body) - len(content)
        detail = f"byte {index} of the body is 0x{content[error.start]:02x}; expected UTF-8"
        raise Rejected("invalid_utf8", detail) from None

    repeated: list[tuple[dict[str, Any], list[tuple[str, Any]]]] = []

    def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        item = dict(pairs)
        if len(item) < len(pairs):
            repeated.append((item, pairs))
        return item

    too_deep = Rejected("invalid_json", f"the body is nested too deeply; expected at most {MAX_DEPTH} levels")
    try:
        payload = json.loads(text, object_pairs_hook=build_object, parse_int=_parse_integer)
    except json.JSONDecodeError as error:
        raise Rejected("invalid_json", f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise too_deep from None
    if count_pairs(payload, MAX_DEPTH) is None:
        raise too_deep
    if not isinstance(payload, dict):
        raise Rejected("not_an_object", f"the body is {describe(payload)}; expected an object")
    if repeated:
        _check_repeated_keys(payload, repeated, paths)
    return payload


def _check_repeated_keys(
    payload: dict[str, Any], repeated: list[tuple[dict[str, Any], list[tuple[str, Any]]]], paths: Iterable[str]
) -> None:
    """Raises `Rejected` if the object, or an object along one of the paths, has a repeated key."""
    read: list[Any] = [payload]
    for path in paths:
        inner: Any = payload
        rest = path
        while type(inner) is dict and (found := resolve(inner, rest)) is not None and found[1]:
            inner, rest = inner[found[0]], found[1]
            read.append(inner)
    for parsed, pairs in repeated:
        if any(item is parsed for item in read):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    shown = _shorten(_to_storable(json.dumps(key)))
                    raise Rejected("duplicate_key", f"the key {shown} occurs more than once")
                seen.add(key)


def strip_byte_order_mark(body: bytes) -> bytes:
    """Returns the body without a leading byte order mark."""
    return body.removeprefix(BYTE_ORDER_MARK)


def check_size(body: bytes | None, max_body_bytes: int) -> None:
    """Checks the size of a body before it is parsed.

    Raises:
        Rejected: The body is null, empty or too large.
    """
    if body is None:
        raise Rejected(TOMBSTONE, "the message has a null body: a deletion marker")
    if not body:
        raise Rejected("empty_body", "the message has no body")
    if len(body) > max_body_bytes:
        raise Rejected("body_too_large", f"the body has {len(body)} bytes; expected at most {max_body_bytes}")


def count_pairs(payload: Any, max_depth: int) -> int | None:
    """Counts the key-value pairs at all levels. Returns None if the payload has more than `max_depth` levels.

    It does not recurse, because the input may be hostile.
    """
    pairs, depth = 0, 0
    level = [payload] if type(payload) in (dict, list) else []
    while level:
        depth += 1
        if depth > max_depth:
            return None
        next_level: list[Any] = []
        for item in level:
            children = item
            if type(item) is dict:
                pairs += len(item)
                children = item.values()
            next_level += [child for child in children if type(child) in (dict, list)]
        level = next_level
    return pairs


def read_buffers(bodies: Any) -> tuple[np.ndarray, np.ndarray]:
    """Reads the buffers of a binary array without a copy.

    Returns:
        The bytes of all rows (uint8), and the offsets (int64, shape (rows + 1,)) at which each row starts and the last
        one ends.
    """
    _, starts, content = bodies.buffers()
    offsets = np.frombuffer(starts, dtype=np.int32)[bodies.offset : bodies.offset + len(bodies) + 1]
    offsets = offsets.astype(np.int64)
    if content is None:
        return np.zeros(0, dtype=np.uint8), offsets - offsets[0]
    return np.frombuffer(content, dtype=np.uint8)[offsets[0] : offsets[-1]], offsets - offsets[0]


def bound_pair_counts(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns an upper bound on the number of key-value pairs in each body, from its bytes alone.

    A colon that ends a key follows a quote or white space. The text has at least as many such colons as pairs.
    If a decoded body has that many pairs, it lost none to a repeated key.
    """
    colons = np.flatnonzero(data == ord(":"))
    before = data[colons - 1]
    colons = colons[(before == ord('"')) | (before <= ord(" "))]
    return np.diff(np.searchsorted(colons, offsets))


def describe(value: Any) -> str:
    """Describes a value and its type in a short text that can be stored."""
    if value is None:
        return "null"
    if isinstance(value, LongInteger):
        return f"{_shorten(value)}, an integer of {len(value.lstrip('-'))} digits"
    kinds = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array"}
    return f"{_shorten(_to_storable(json.dumps(value, ensure_ascii=False)))}, {kinds.get(type(value), 'an object')}"


def build_withheld_body(reason: str, hmac: str, length: int) -> bytes:
    """Builds the replacement of a body that must not be stored: the reason, its HMAC and its length."""
    return WITHHELD + json.dumps({"reason": reason, "bytes": length, "hmac_sha256": hmac}).encode()


def _read_withheld(body: bytes) -> Rejected:
    """Returns the rejection that a withheld body records."""
    try:
        marker = json.loads(body.removeprefix(WITHHELD))
        reason, length = marker["reason"], int(marker["bytes"])
        sentence = BODY_REASONS[reason]
    # A producer can send a body that starts with the same bytes.
    except (ValueError, TypeError, KeyError, RecursionError):
        return Rejected("invalid_json", "the body is not JSON: it starts like a withheld body")
    return Rejected(reason, f"{sentence} Its {length} bytes were withheld because of FRAUD_PSEUDONYMISE")


def _parse_integer(digits: str) -> int | LongInteger:
    try:
        return int(digits)
    except ValueError:  # Python converts at most about 4300 digits.
        return LongInteger(digits)


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _to_storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
