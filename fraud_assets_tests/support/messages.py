"""Messages and labels as landed rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from fraud_assets.core.schema import RAW_TRANSACTIONS

INGESTED = datetime(2024, 6, 1, 12, tzinfo=UTC)


GOOD: dict[str, Any] = {
    "transaction_id": 1,
    "tx_datetime": "2018-04-01T00:00:31",
    "customer_id": 596,
    "terminal_id": 3156,
    "tx_amount": 57.16,
}


GOOD_LABEL: dict[str, Any] = {"transaction_id": 1, "is_fraud": True, "labelled_at": "2018-04-08T00:00:31Z"}


def raw_table(bodies: Sequence[bytes | None], ingested: datetime | list[datetime] = INGESTED) -> pa.Table:
    """Raw transactions with these bodies."""
    count = len(bodies)
    times = ingested if isinstance(ingested, list) else [ingested] * count
    columns = {
        "topic": ["transactions"] * count,
        "topic_id": ["a"] * count,
        "partition": [0] * count,
        "offset": list(range(count)),
        "timestamp": times,
        "key": [b"\xff%d" % index for index in range(count)],
        "value": bodies,
        "headers": [[{"key": "k", "value": b"\x00"}]] * count,
        "ingested_at": times,
        "ingest_date": [time.date() for time in times],
    }
    return pa.table(columns, schema=RAW_TRANSACTIONS)


def label_table(bodies: Sequence[bytes | None]) -> pa.Table:
    """Label messages with these bodies."""
    return raw_table(bodies).drop_columns(["ingested_at", "ingest_date"])


def body(**changes: Any) -> bytes:
    """A valid transaction with changes; the value `...` removes a field."""
    return json.dumps({key: value for key, value in {**GOOD, **changes}.items() if value is not ...}).encode()


def label(**changes: Any) -> bytes:
    """A valid label with changes; the value `...` removes a field."""
    return json.dumps({key: value for key, value in {**GOOD_LABEL, **changes}.items() if value is not ...}).encode()


def text(field: str, value: str) -> bytes:
    """A valid transaction in which this JSON text is the value of a field."""
    return body(**{field: "@"}).replace(b'"@"', value.encode())


REJECTED = [
    (None, "tombstone", "deletion marker"),
    (b"", "empty_body", "no body"),
    (body(note="x" * 100_000), "body_too_large", "expected at most 100000"),
    (b'{"transaction_id":"\xff"}', "invalid_utf8", "byte 19 of the body is 0xff"),
    (b'"\xed\xa0\x80"', "invalid_utf8", "0xed"),
    (b" ", "invalid_json", "not JSON"),
    (b"{", "invalid_json", "not JSON"),
    (body() + b"x", "invalid_json", "Extra data"),
    (body() + body(), "invalid_json", "Extra data"),
    (text("note", '"\x01"'), "invalid_json", "control character"),
    (b"[" * 50_000, "invalid_json", "nested too deeply"),
    (text("note", "[" * 101 + "]" * 101), "invalid_json", "nested too deeply"),
    (text("note", '{"a":' * 101 + "1" + "}" * 101), "invalid_json", "nested too deeply"),
    (b"null", "not_an_object", "the body is null"),
    (b"[1, 2]", "not_an_object", "[1, 2], an array"),
    (b"NaN", "not_an_object", "NaN"),
    (body()[:-1] + b', "tx_amount": 1}', "duplicate_key", '"tx_amount" occurs more than once'),
    (body()[:-1] + b', "tx_amount" : 1}', "duplicate_key", "tx_amount"),
    (body()[:-1] + b',"tx\\u005famount":1}', "duplicate_key", "tx_amount"),
    (body()[:-1] + b',"x":1,"x":1}', "duplicate_key", '"x"'),
    (b'{"a":1,"a" :2}', "duplicate_key", '"a"'),
    (body(tx_amount=...), "missing_field", "tx_amount is missing"),
    (b"{}", "missing_field", "transaction_id is missing"),
    (body(transaction_id=None), "wrong_type", "transaction_id is null; expected an integer or a string"),
    (body(transaction_id=True), "wrong_type", "transaction_id is true, a boolean"),
    (body(customer_id=596.0), "wrong_type", "customer_id is 596.0, a number"),
    (body(terminal_id=[1]), "wrong_type", "terminal_id is [1], an array"),
    (body(terminal_id={"a": "é"}), "wrong_type", 'terminal_id is {"a": "é"}, an object'),
    (text("terminal_id", "1" + "0" * 5000), "wrong_type", "an integer of 5001 digits"),
    (text("terminal_id", "-" + "9" * 5000), "wrong_type", "an integer of 5000 digits"),
    (text("terminal_id", "NaN"), "wrong_type", "terminal_id is NaN"),
    (body(customer_id=""), "invalid_id", "not blank"),
    (body(customer_id=" \t\u3000"), "invalid_id", "not blank"),
    (body(customer_id="a\0"), "invalid_id", "NUL"),
    (text("customer_id", '"\\ud800"'), "invalid_id", "lone surrogates"),
    (body(tx_amount=True), "wrong_type", "tx_amount is true, a boolean; expected a number"),
    (body(tx_amount=None), "wrong_type", "tx_amount is null; expected a number"),
    (body(tx_amount="1_000"), "wrong_type", '"1_000", a string'),
    (body(tx_amount=" 1"), "wrong_type", '" 1", a string'),
    (body(tx_amount="1\n"), "wrong_type", "a string"),
    (body(tx_amount="12,50"), "wrong_type", "a string"),
    (body(tx_amount="٣"), "wrong_type", "a string"),
    (body(tx_amount=""), "wrong_type", "a string"),
    (body(tx_amount="x" * 200), "wrong_type", "x" * 79 + "…, a string"),
    (text("tx_amount", "NaN"), "not_finite", "tx_amount is NaN, a number; expected a finite number"),
    (text("tx_amount", "-Infinity"), "not_finite", "-Infinity"),
    (text("tx_amount", "1e400"), "not_finite", "Infinity"),
    (text("tx_amount", "1" + "0" * 400), "not_finite", "expected a finite number"),
    (text("tx_amount", "1" + "0" * 5000), "not_finite", "an integer of 5001 digits"),
    (body(tx_amount="nan"), "not_finite", '"nan"'),
    (body(tx_amount="-INF"), "not_finite", '"-INF"'),
    (body(tx_amount="1e400"), "not_finite", '"1e400"'),
    (body(tx_amount=-0.01), "negative_amount", "tx_amount is -0.01, a number; expected zero or more"),
    (body(tx_amount="-5"), "negative_amount", '"-5"'),
    (body(tx_datetime=1522540831), "wrong_type", "tx_datetime is 1522540831, an integer"),
    (body(tx_datetime="2018-04-01"), "invalid_time", "time of day"),
    (body(tx_datetime="20180401T000031"), "invalid_time", "ISO 8601"),
    (body(tx_datetime="2018-04-01T00:00:31\n"), "invalid_time", "ISO 8601"),
    (body(tx_datetime="2018-04-01x00:00:31"), "invalid_time", "ISO 8601"),
    (body(tx_datetime="٢018-04-01T00:00:31"), "invalid_time", "ISO 8601"),
    (text("tx_datetime", '"2018-04-01T00:00:31\\ud800"'), "invalid_time", "ISO 8601"),
    (body(tx_datetime="2018-02-30T00:00:31"), "invalid_time", "that exist"),
    (body(tx_datetime="2018-13-01T00:00:31"), "invalid_time", "that exist"),
    (body(tx_datetime="2018-04-01T24:00:00"), "invalid_time", "that exist"),
    (body(tx_datetime="2018-04-01T23:59:60"), "invalid_time", "that exist"),
    (body(tx_datetime="0000-04-01T00:00:00"), "invalid_time", "that exist"),
    (body(tx_datetime="2018-04-01T00:00:31+24:00"), "invalid_time", "offset"),
    (body(tx_datetime="2018-04-01T00:00:31+01:60"), "invalid_time", "offset"),
    (body(tx_datetime="0001-01-01T00:00:00+01:00"), "invalid_time", "year from 1 to 9999"),
    (body(tx_datetime="9999-12-31T23:59:59-01:00"), "invalid_time", "year from 1 to 9999"),
    (body(tx_datetime="0001-01-01T00:00:00"), "invalid_time", "a year from 1900 to 2199"),
    (body(tx_datetime="1899-12-31T23:59:59.999999Z"), "invalid_time", "a year from 1900 to 2199"),
    (body(tx_datetime="2024-06-01T12:10:00.000001"), "future_time", "at most 600 s after its landing"),
    (body(tx_datetime="9999-12-31T23:59:59Z"), "future_time", "2024-06-01T12:00:00Z"),
]
