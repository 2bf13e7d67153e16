"""Replaces named payload fields by keyed HMAC-SHA-256 before any part of a message is written.

A value has the same pseudonym as a number and as text, and in every topic, field, key and file. Rows of the same
customer or card can therefore still be joined. A body is parsed and encoded again, never edited in place: a repeated
key, an escape or an unusual spelling could hide the value from an edit. A body that cannot be parsed is replaced by its
HMAC and length.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pyarrow as pa

from fraud_assets.core.bodies import (
    FAST_DEPTH,
    WITHHELD,
    LongInteger,
    Rejected,
    bound_pair_counts,
    build_withheld_body,
    check_size,
    count_pairs,
    parse_json_object,
    read_buffers,
)
from fraud_assets.core.formats import Decoder, find_schema_ids
from fraud_assets.settings import PseudonymPolicy

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def pseudonymise(messages: pa.Table, policy: PseudonymPolicy, decoder: Decoder | None = None) -> pa.Table:
    """Pseudonymizes bodies, keys and header values. Without FRAUD_PSEUDONYMISE, messages stay unchanged.

    Every key and header value is replaced by the HMAC of its bytes. A key that equals the text of a named field
    therefore gets that field's pseudonym. Names of fields and headers, null bodies and empty bodies stay unchanged.

    Args:
        messages: Rows with `key`, `value` and `headers`, from Kafka or a dropped file.
        policy: The fields and the key.
        decoder: Decodes bodies that a schema registry's serializer framed; they become JSON.

    Raises:
        SchemaRegistryError: The decoder cannot reach the schema registry.
    """
    if not policy.fields:
        return messages
    pseudonyms = _Pseudonyms.of(policy)
    columns = {
        "key": pa.array((pseudonyms.of_bytes(key) for key in messages["key"].to_pylist()), pa.binary()),
        "value": pa.array(_replace_bodies(messages, pseudonyms, policy.contract.max_body_bytes, decoder), pa.binary()),
        "headers": _replace_headers(messages["headers"], pseudonyms),
    }
    for name, column in columns.items():
        messages = messages.set_column(messages.column_names.index(name), messages.schema.field(name), column)
    return messages


def compute_hmac(data: bytes, policy: PseudonymPolicy) -> str:
    """Returns the HMAC-SHA-256 of bytes with FRAUD_PSEUDONYM_KEY, in hexadecimal digits."""
    return _Pseudonyms.of(policy).text_of(data)


@dataclass
class _Pseudonyms:
    """Computes HMACs with one key and applies them to the named fields. It caches them, because values repeat."""

    key: bytes = field(repr=False)
    paths: tuple[str, ...]
    _known: dict[bytes, str] = field(default_factory=dict, repr=False)
    _shapes: dict[tuple[str, ...], list[tuple[str, str]]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, policy: PseudonymPolicy) -> _Pseudonyms:
        names = (name.lower() for name in policy.fields)
        payloads = (policy.contract.payload_field(name).lower() for name in policy.fields)
        return cls(policy.key, tuple(dict.fromkeys((*names, *payloads))))

    def text_of(self, data: bytes) -> str:
        known = self._known.get(data)
        if known is None:
            known = self._known[data] = hmac.digest(self.key, data, "sha256").hex()
        return known

    def of_bytes(self, data: bytes | None) -> bytes | None:
        return self.text_of(data).encode() if data else data

    def treat(self, payload: dict[str, Any], paths: tuple[str, ...] | None = None) -> None:
        """Replaces the named fields of an object in place. The case of field names is ignored."""
        if paths is not None:
            found = _find_named_keys(payload, paths)
        else:
            shape = tuple(payload)
            known = self._shapes.get(shape)
            found = self._shapes[shape] = _find_named_keys(payload, self.paths) if known is None else known
        for name, rest in found:
            if not rest:
                payload[name] = self._replace(payload[name])
            else:
                for item in _iterate_objects(payload[name]):
                    self.treat(item, (rest,))

    def _replace(self, value: Any) -> Any:
        """Returns the pseudonym of a value. An invalid identifier stays invalid, so the parser still rejects it."""
        if type(value) is str:
            return self.text_of(value.encode("utf-8", "surrogatepass")) if value and not value.isspace() else value
        if type(value) is int:
            return self.text_of(str(value).encode())
        if value is None or type(value) is bool:
            return value
        if type(value) is list:
            return [self._replace(item) for item in value]
        if type(value) is float:
            digits = str(int(value)) if value.is_integer() else repr(value)
            return {"number": self.text_of(digits.encode())}
        return {"object": self.text_of(json.dumps(value, sort_keys=True).encode())}


def _find_named_keys(payload: dict[str, Any], paths: tuple[str, ...]) -> list[tuple[str, str]]:
    """Finds the keys of an object at which a path starts.

    The path `card.number` names the key `card.number` and also the key `number` of the object `card`.

    Returns:
        The keys, each with the rest of its path, which is empty for the key itself.
    """
    found = []
    for name in payload:
        lowered = name.lower()
        for path in paths:
            if path == lowered:
                found.append((name, ""))
            elif path.startswith(f"{lowered}."):
                found.append((name, path[len(lowered) + 1 :]))
    # Keys that are replaced as a whole come first. Afterwards they contain no objects to search.
    return sorted(found, key=lambda pair: pair[1] != "")


def _iterate_objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yields the object itself, or all objects of an array and of nested arrays."""
    if type(value) is dict:
        yield value
    elif type(value) is list:
        for item in value:
            yield from _iterate_objects(item)


def _replace_bodies(
    messages: pa.Table, pseudonyms: _Pseudonyms, max_body_bytes: int, decoder: Decoder | None
) -> list[bytes | None]:
    bodies = messages["value"].to_pylist()
    readable = bodies
    failed: dict[int, Rejected] = {}
    if decoder is not None:
        ids = find_schema_ids(messages["headers"])
        readable = list(bodies)
        for row, body in enumerate(bodies):
            try:
                check_size(body, max_body_bytes)
                readable[row] = decoder.json_body(body, ids.get(row))
            except Rejected as rejected:
                failed[row] = rejected
    pairs = bound_pair_counts(*read_buffers(pa.array(readable, pa.binary())))
    # A decoded body is larger than the received one, and the limit applies to the received body.
    limit = max_body_bytes if decoder is None else 2**31
    return [
        _replace_body(original, readable[row], int(pairs[row]), limit, pseudonyms, failed.get(row))
        if original
        else original
        for row, original in enumerate(bodies)
    ]


def _replace_body(
    original: bytes, body: bytes, pairs: int, limit: int, pseudonyms: _Pseudonyms, failed: Rejected | None
) -> bytes:
    try:
        if failed is not None:
            raise failed
        payload = _decode_plain_object(body, pairs) if len(body) <= limit else None
        if payload is not None:
            pseudonyms.treat(payload)
            return _encode(payload)
        return _replace_carefully(body, limit, pseudonyms)
    except Rejected as rejected:
        return build_withheld_body(rejected.reason, pseudonyms.text_of(original), len(original))
    except (OverflowError, ValueError):  # msgspec cannot encode one of the integers.
        return _replace_carefully(body, limit, pseudonyms)


def _decode_plain_object(body: bytes, pairs: int) -> dict[str, Any] | None:
    """Decodes a body that all JSON parsers read in the same way. Returns None for other bodies."""
    try:
        payload = _decode(body)
    except (ValueError, RecursionError):
        return None
    if type(payload) is not dict:
        return None
    if body.find(b"{", 1) < 0 and b"[" not in body:
        return payload if len(payload) == pairs else None
    return payload if count_pairs(payload, FAST_DEPTH) == pairs else None


def _replace_carefully(body: bytes, limit: int, pseudonyms: _Pseudonyms) -> bytes:
    """Pseudonymizes a body with the parser of single messages."""
    if body.startswith(WITHHELD):
        # Only the platform may write this prefix, so a producer's body with it is rejected.
        raise Rejected("invalid_json", "the body is not JSON")
    payload = parse_json_object(body, limit)
    if _has_long_integer(payload):
        raise Rejected("wrong_type", "the body has an integer of too many digits")
    pseudonyms.treat(payload)
    text = json.dumps(payload, ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # The text has a lone surrogate, which only an escape can represent.
        return json.dumps(payload).encode()


def _has_long_integer(payload: Any) -> bool:
    stack = [payload]
    while stack:
        item = stack.pop()
        if type(item) is LongInteger:
            return True
        stack += item.values() if type(item) is dict else item if type(item) is list else ()
    return False


def _replace_headers(headers: pa.ChunkedArray, pseudonyms: _Pseudonyms) -> pa.ChunkedArray | pa.Array:
    if headers.null_count == len(headers):
        return headers
    rows = [
        None if pairs is None else [{**pair, "value": pseudonyms.of_bytes(pair["value"])} for pair in pairs]
        for pairs in headers.to_pylist()
    ]
    return pa.array(rows, headers.type)
