"""Named payload fields to keyed HMAC-SHA-256, before anything of a message is written.

The same value has the same pseudonym as a number or as text, in every topic, field, key and file, so that customers
and cards still join. A body is read and written anew, never edited in place: a repeated key, an escape or an odd
spelling could carry the value past an edit. What cannot be read is replaced by its HMAC and length.
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
    json_object,
    read_buffers,
)
from fraud_assets.core.formats import Decoder, find_schema_ids
from fraud_assets.settings import PseudonymPolicy

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def pseudonymise(messages: pa.Table, policy: PseudonymPolicy, decoder: Decoder | None = None) -> pa.Table:
    """The same messages with treated bodies, keys and header values; as they are without FRAUD_PSEUDONYMISE.

    A key and a header value become the HMAC of their bytes, whatever they hold: a key that is the text of a named
    field has that field's pseudonym. Names of fields and headers stay. A null or empty body stays, too.

    Args:
        messages: rows with `key`, `value` and `headers`, as they come from Kafka or a dropped file.
        policy: the fields and the key.
        decoder: reads bodies that a schema registry's serializer framed; they become JSON.

    Raises:
        SchemaRegistryError: from the decoder.
    """
    if not policy.fields:
        return messages
    pseudonyms = _Pseudonyms.of(policy)
    treated = {
        "key": pa.array((pseudonyms.of_bytes(key) for key in messages["key"].to_pylist()), pa.binary()),
        "value": pa.array(_bodies(messages, pseudonyms, policy.contract.max_body_bytes, decoder), pa.binary()),
        "headers": _headers(messages["headers"], pseudonyms),
    }
    for name, column in treated.items():
        messages = messages.set_column(messages.column_names.index(name), messages.schema.field(name), column)
    return messages


def keyed_hmac(data: bytes, policy: PseudonymPolicy) -> str:
    """HMAC-SHA-256 of bytes under FRAUD_PSEUDONYM_KEY, in hexadecimal."""
    return _Pseudonyms.of(policy).text_of(data)


@dataclass
class _Pseudonyms:
    """HMACs under one key, and which fields of a payload want them. Remembers them, for values repeat."""

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
        """Replaces the named fields of an object, in place. Field names are compared without their case."""
        if paths is not None:
            found = _named(payload, paths)
        else:
            shape = tuple(payload)
            known = self._shapes.get(shape)
            found = self._shapes[shape] = _named(payload, self.paths) if known is None else known
        for name, below in found:
            if not below:
                payload[name] = self._value(payload[name])
            else:
                for item in _objects(payload[name]):
                    self.treat(item, (below,))

    def _value(self, value: Any) -> Any:
        """The pseudonym of a value. What is no identifier does not become one: the parser judges it as before."""
        if type(value) is str:
            return self.text_of(value.encode("utf-8", "surrogatepass")) if value and not value.isspace() else value
        if type(value) is int:
            return self.text_of(str(value).encode())
        if value is None or type(value) is bool:
            return value
        if type(value) is list:
            return [self._value(item) for item in value]
        if type(value) is float:
            digits = str(int(value)) if value.is_integer() else repr(value)
            return {"number": self.text_of(digits.encode())}
        return {"object": self.text_of(json.dumps(value, sort_keys=True).encode())}


def _named(payload: dict[str, Any], paths: tuple[str, ...]) -> list[tuple[str, str]]:
    """The keys of an object that a path names, each with what the path names below it (nothing: the key itself).

    A path `card.number` names the key `card.number` as well as `number` within `card`.
    """
    found = []
    for name in payload:
        lowered = name.lower()
        for path in paths:
            if path == lowered:
                found.append((name, ""))
            elif path.startswith(f"{lowered}."):
                found.append((name, path[len(lowered) + 1 :]))
    # The whole first: nothing of what it holds is left to look for.
    return sorted(found, key=lambda pair: pair[1] != "")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """The object, or all objects of an array, or of arrays in it."""
    if type(value) is dict:
        yield value
    elif type(value) is list:
        for item in value:
            yield from _objects(item)


def _bodies(
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
    # What is decoded is larger than what came; the limit is one of what came.
    limit = max_body_bytes if decoder is None else 2**31
    return [
        _body(original, readable[row], int(pairs[row]), limit, pseudonyms, failed.get(row)) if original else original
        for row, original in enumerate(bodies)
    ]


def _body(
    original: bytes, body: bytes, pairs: int, limit: int, pseudonyms: _Pseudonyms, failed: Rejected | None
) -> bytes:
    try:
        if failed is not None:
            raise failed
        payload = _plain_object(body, pairs) if len(body) <= limit else None
        if payload is not None:
            pseudonyms.treat(payload)
            return _encode(payload)
        return _examined(body, limit, pseudonyms)
    except Rejected as rejected:
        return build_withheld_body(rejected.reason, pseudonyms.text_of(original), len(original))
    except (OverflowError, ValueError):  # an integer that msgspec cannot write
        return _examined(body, limit, pseudonyms)


def _plain_object(body: bytes, pairs: int) -> dict[str, Any] | None:
    """The object of a body that is surely read alike by every reader, None for one to look at more closely."""
    try:
        payload = _decode(body)
    except (ValueError, RecursionError):
        return None
    if type(payload) is not dict:
        return None
    if body.find(b"{", 1) < 0 and b"[" not in body:
        return payload if len(payload) == pairs else None
    return payload if count_pairs(payload, FAST_DEPTH) == pairs else None


def _examined(body: bytes, limit: int, pseudonyms: _Pseudonyms) -> bytes:
    if body.startswith(WITHHELD):
        raise Rejected("invalid_json", "the body is not JSON")  # nobody outside says what was withheld
    payload = json_object(body, limit)
    if _has_long_integer(payload):
        raise Rejected("wrong_type", "the body has an integer of too many digits")
    pseudonyms.treat(payload)
    text = json.dumps(payload, ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can carry
        return json.dumps(payload).encode()


def _has_long_integer(payload: Any) -> bool:
    waiting = [payload]
    while waiting:
        item = waiting.pop()
        if type(item) is LongInteger:
            return True
        waiting += item.values() if type(item) is dict else item if type(item) is list else ()
    return False


def _headers(headers: pa.ChunkedArray, pseudonyms: _Pseudonyms) -> pa.ChunkedArray | pa.Array:
    if headers.null_count == len(headers):
        return headers
    rows = [
        None if pairs is None else [{**pair, "value": pseudonyms.of_bytes(pair["value"])} for pair in pairs]
        for pairs in headers.to_pylist()
    ]
    return pa.array(rows, headers.type)
