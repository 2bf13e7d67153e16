"""The accepted forms of transactions and labels; the fast path agrees with the reference parser."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fraud_assets.core import columnar_parsing
from fraud_assets.core.bodies import Rejected
from fraud_assets.core.columnar_parsing import parse_messages
from fraud_assets.core.message_contract import MessageContract, build_label_contract, build_transaction_contract
from fraud_assets.core.message_reader import read_message
from fraud_assets.core.parsing import (
    REJECTED_LABELS,
    VALID_LABELS,
    VALID_TRANSACTIONS,
    parse_labels,
    parse_transactions,
)
from fraud_assets.core.quarantine_reasons import REASONS
from fraud_assets.core.schema import POSITION_COLUMNS, QUARANTINED_TRANSACTIONS
from fraud_assets.settings import Settings, load_settings
from fraud_assets_tests.support.messages import (
    GOOD,
    GOOD_LABEL,
    INGESTED,
    REJECTED,
    body,
    label,
    label_table,
    raw_table,
    text,
)

SETTINGS = load_settings(_env_file=None)


def parse_one(message: bytes | None, **overrides: Any) -> dict[str, Any]:
    """Parses one message and returns its only row, valid or rejected."""
    valid, rejected = parse_transactions(raw_table([message]), load_settings(_env_file=None, **overrides).contract)
    rows: list[dict[str, Any]] = (valid.to_pylist() or []) + rejected.to_pylist()
    assert len(rows) == 1
    return rows[0]


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "among good ones"])
@pytest.mark.parametrize(("message", "reason", "detail"), REJECTED, ids=[f"{r}-{d[:30]}" for _, r, d in REJECTED])
def test_a_bad_transaction_is_rejected_with_its_reason(
    message: bytes | None, reason: str, detail: str, alone: bool
) -> None:
    """The detail names the field and its value, and the bytes of the message stay unchanged."""
    bodies = [message] if alone else [body(), message, body(transaction_id="2")]
    raw = raw_table(bodies)
    valid, rejected = parse_transactions(raw, SETTINGS.contract)
    assert valid["offset"].to_pylist() == ([] if alone else [0, 2])
    (row,) = rejected.to_pylist()
    assert (row["reason"], row["value"]) == (reason, message)
    assert detail in row["detail"]
    assert len(row["detail"]) < 300
    (landed,) = raw.slice(0 if alone else 1, 1).to_pylist()
    assert {name: row[name] for name in landed} == landed
    assert reason in REASONS


ACCEPTED = [
    ({"transaction_id": 42}, "transaction_id", "42"),
    ({"transaction_id": "42"}, "transaction_id", "42"),
    ({"transaction_id": -(2**63)}, "transaction_id", str(-(2**63))),
    ({"transaction_id": 2**64}, "transaction_id", str(2**64)),
    ({"transaction_id": 10**4000}, "transaction_id", str(10**4000)),
    ({"transaction_id": " a "}, "transaction_id", " a "),
    ({"transaction_id": "007"}, "transaction_id", "007"),
    ({"customer_id": "Zoë 😀"}, "customer_id", "Zoë 😀"),
    ({"tx_amount": 0}, "tx_amount", 0.0),
    ({"tx_amount": "12.50"}, "tx_amount", 12.5),
    ({"tx_amount": "+.5e1"}, "tx_amount", 5.0),
    ({"tx_amount": 2**64 + 1}, "tx_amount", float(2**64)),
    ({"tx_datetime": "2018-04-01 00:00:31"}, "tx_datetime", datetime(2018, 4, 1, 0, 0, 31, tzinfo=UTC)),
    ({"tx_datetime": "2018-04-01t00:00"}, "tx_datetime", datetime(2018, 4, 1, tzinfo=UTC)),
    ({"tx_datetime": "2018-04-01T00:00:31Z"}, "tx_datetime", datetime(2018, 4, 1, 0, 0, 31, tzinfo=UTC)),
    ({"tx_datetime": "2018-04-01T00:00:31+02:00"}, "tx_datetime", datetime(2018, 3, 31, 22, 0, 31, tzinfo=UTC)),
    ({"tx_datetime": "2018-04-01T00:00:31.5-0130"}, "tx_datetime", datetime(2018, 4, 1, 1, 30, 31, 500000, UTC)),
    ({"tx_datetime": "2018-04-01T00:00:31.123456789"}, "tx_datetime", datetime(2018, 4, 1, 0, 0, 31, 123456, UTC)),
    ({"tx_datetime": "1900-01-01T00:00:00"}, "tx_datetime", datetime(1900, 1, 1, tzinfo=UTC)),
    ({"tx_datetime": "1969-12-31T23:59:59.999999"}, "tx_date", date(1969, 12, 31)),
    ({"tx_datetime": "2024-06-01T12:10:00"}, "tx_datetime", datetime(2024, 6, 1, 12, 10, tzinfo=UTC)),
    ({"note": {"a": [{"b": 1}], "c": "x\":y"}}, "transaction_id", "1"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "column", "expected"), ACCEPTED)
def test_a_valid_transaction_is_accepted(changes: dict[str, Any], column: str, expected: Any) -> None:
    """The values are exact in every notation."""
    assert parse_one(body(**changes))[column] == expected


def test_negative_zero_becomes_zero() -> None:
    """A value of -0.0 would print and compare unexpectedly in later stages."""
    for spelling in ("-0.0", "-0", '"-0"', '"-1e-999"'):
        assert str(parse_one(text("tx_amount", spelling))["tx_amount"]) == "0.0"


def test_extra_fields_are_ignored_whatever_their_value() -> None:
    """A field that the features do not use never rejects a message."""
    for value in ("NaN", "1e999", "9" * 5000, '"\\ud800"', "[" * 90 + "]" * 90, '{"a":1,"a":2}'):
        assert parse_one(text("note", value))["transaction_id"] == "1"


def test_all_results_keep_their_schema_with_and_without_rows() -> None:
    for bodies in ([], [body()], [b"x"], [body(), b"x"]):
        valid, rejected = parse_transactions(raw_table(bodies), SETTINGS.contract)
        assert (valid.schema, rejected.schema) == (VALID_TRANSACTIONS, QUARANTINED_TRANSACTIONS)
        good, bad = parse_labels(label_table(bodies), SETTINGS.contract)
        assert (good.schema, bad.schema) == (VALID_LABELS, REJECTED_LABELS)
        assert len(valid) + len(rejected) == len(good) + len(bad) == len(bodies)


def test_order_is_kept_across_chunks_and_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The input has several chunks, several sets of keys, and bad rows in between."""
    monkeypatch.setattr(columnar_parsing, "_CHUNK_ROWS", 300)
    kinds: list[Callable[[int], bytes]] = [
        lambda i: body(transaction_id=i),
        lambda i: body(transaction_id=i, a=1),
        lambda i: body(transaction_id=str(i), b={"c": 1}),
        lambda i: text("note", "NaN").replace(b'"transaction_id": 1', b'"transaction_id": %d' % i),
        lambda i: b"bad",
        lambda i: body(transaction_id=i, tx_amount=None),
    ]
    bodies = [kinds[index * index % 7 % 6](index) for index in range(2_000)]
    raw = pa.concat_tables([raw_table(bodies).slice(0, 700), raw_table(bodies).slice(700)])
    valid, rejected = parse_transactions(raw, SETTINGS.contract)
    assert valid["transaction_id"].to_pylist() == [str(offset) for offset in valid["offset"].to_pylist()]
    for table in (valid, rejected):
        assert table["offset"].to_pylist() == sorted(table["offset"].to_pylist())
    assert sorted(valid["offset"].to_pylist() + rejected["offset"].to_pylist()) == list(range(2_000))
    assert rejected["value"].to_pylist() == [bodies[offset] for offset in rejected["offset"].to_pylist()]
    assert valid.select(POSITION_COLUMNS).num_rows > 1_000


def test_a_future_time_depends_on_the_landing_time_and_not_on_the_clock() -> None:
    """A retry of the same message a year later gives the same result."""
    message = body(tx_datetime="2050-01-01T00:00:00")
    landed = [datetime(2049, 12, 31, 23, 49, 59, tzinfo=UTC), datetime(2049, 12, 31, 23, 50, tzinfo=UTC)]
    valid, rejected = parse_transactions(raw_table([message, message], landed), SETTINGS.contract)
    assert (valid["offset"].to_pylist(), rejected["offset"].to_pylist()) == ([1], [0])
    assert parse_one(message, future_skew_seconds=float("inf"))["transaction_id"] == "1"


def test_a_year_out_of_range_is_rejected_whatever_the_skew() -> None:
    """One such message would stop the feature stage permanently. Some producers write the year 1 for an empty time."""
    times = [f"{year}-01-01T00:00:00Z" for year in ("0001", "1899", "1900", "2199", "2200", "9999")]
    raw = raw_table([body(tx_datetime=time) for time in times])
    valid, rejected = parse_transactions(raw, load_settings(_env_file=None, future_skew_seconds=1e12).contract)
    assert valid["offset"].to_pylist() == [2, 3]
    assert set(rejected["reason"].to_pylist()) == {"invalid_time"}


def test_a_field_mapping_reads_other_names() -> None:
    """A detail names the field as in the payload."""
    mapping = {"tx_amount": "amt", "tx_datetime": "when it was", "transaction_id": 'odd "key"'}
    message = {mapping.get(key, key): value for key, value in GOOD.items()}
    assert parse_one(json.dumps(message).encode(), field_mapping=mapping)["tx_amount"] == 57.16
    bad = parse_one(json.dumps({**message, "amt": False}).encode(), field_mapping=mapping)
    assert bad["detail"] == "amt (tx_amount) is false, a boolean; expected a number"


NESTED = {"transaction_id": "after.id", "tx_amount": "after.sum.value", "customer_id": "who.name"}


def nested(**changes: Any) -> dict[str, Any]:
    """A valid message with fields inside objects; `who.name` is a single key."""
    plain = {key: value for key, value in GOOD.items() if key not in NESTED}
    return {**plain, "after": {"id": 1, "sum": {"value": 57.16, "unit": "EUR"}}, "who.name": "c", **changes}


def test_a_path_reads_a_field_inside_an_object() -> None:
    """A path names the key with exactly this name, or else a field inside an object. Without either, it is missing."""
    row = parse_one(json.dumps(nested()).encode(), field_mapping=NESTED)
    assert (row["transaction_id"], row["tx_amount"], row["customer_id"]) == ("1", 57.16, "c")
    inside = {key: value for key, value in nested(who={"name": "d"}).items() if key != "who.name"}
    assert parse_one(json.dumps(inside).encode(), field_mapping=NESTED)["customer_id"] == "d"
    for after in (None, 1, {}, {"id": 1, "sum": []}):
        bad = parse_one(json.dumps(nested(after=after)).encode(), field_mapping=NESTED)
        assert bad["reason"] == "missing_field"
    repeated_field = json.dumps(nested()).replace('"value": 57.16', '"value": 1, "value": 57.16').encode()
    assert parse_one(repeated_field, field_mapping=NESTED)["reason"] == "duplicate_key"
    # A key inside an object that belongs to no field may occur twice.
    repeated_key = json.dumps(nested()).encode()
    assert parse_one(repeated_key[:-1] + b', "x": {"a": 1, "a": 2}}', field_mapping=NESTED)["transaction_id"] == "1"


def test_a_byte_order_mark_is_ignored() -> None:
    """Producers in .NET write the mark before each body, in Kafka and in files. Only the first mark is ignored."""
    mark = b"\xef\xbb\xbf"
    raw = raw_table([body(transaction_id=1), mark + body(transaction_id=2), mark + mark + body(), mark, mark[:2]])
    valid, rejected = parse_transactions(raw, SETTINGS.contract)
    assert valid["transaction_id"].to_pylist() == ["1", "2"]
    assert rejected["reason"].to_pylist() == ["invalid_json", "invalid_json", "invalid_utf8"]
    assert rejected["value"].to_pylist() == raw["value"].to_pylist()[2:]
    good, _ = parse_labels(label_table([mark + label()]), SETTINGS.contract)
    assert good.num_rows == 1


def test_flags_follow_the_time_zone() -> None:
    """Weekend and night are in local time, also across both clock changes in Brussels."""
    start = datetime(2018, 3, 23, tzinfo=UTC)
    times = [start + timedelta(minutes=30 * step) for step in range(48 * 5)]
    times += [datetime(2018, 10, 26, tzinfo=UTC) + timedelta(minutes=30 * step) for step in range(48 * 5)]
    raw = raw_table([body(tx_datetime=time.isoformat()) for time in times])
    for zone in ("UTC", "Europe/Brussels", "Asia/Kathmandu", "America/New_York"):
        valid, _ = parse_transactions(raw, load_settings(_env_file=None, time_zone=zone).contract)
        local = [time.astimezone(ZoneInfo(zone)) for time in times]
        assert valid["tx_during_weekend"].to_pylist() == [int(time.weekday() >= 5) for time in local]
        assert valid["tx_during_night"].to_pylist() == [int(time.hour <= 6) for time in local]
        assert valid["tx_date"].to_pylist() == [time.date() for time in times]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0, False),
        ("1", True),
        ("0", False),
        ("true", True),
        ("False", False),
        (1.0, True),
        (0.0, False),
        ("1.0", True),
        ("0.0", False),
        ("1.", True),
        ("0.00", False),
    ],
)
def test_the_flag_of_a_label_is_a_boolean_a_number_or_a_word(value: Any, expected: bool) -> None:
    good, _ = parse_labels(label_table([label(is_fraud=value), label(transaction_id="x")]), SETTINGS.contract)
    assert good["is_fraud"].to_pylist() == [expected, True]
    assert good["transaction_id"].to_pylist() == ["1", "x"]
    assert good["labelled_at"].to_pylist() == [datetime(2018, 4, 8, 0, 0, 31, tzinfo=UTC)] * 2
    assert good["value"].to_pylist() == [label(is_fraud=value), label(transaction_id="x")]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (None, "label_tombstone"),
        (b"\xff", "label_invalid_utf8"),
        (b"{", "label_invalid_json"),
        (b"1", "label_not_an_object"),
        (label()[:-1] + b',"is_fraud":false}', "label_duplicate_key"),
        (label(is_fraud=...), "label_missing_field"),
        (label(is_fraud=2), "label_wrong_type"),
        (label(is_fraud=0.5), "label_wrong_type"),
        (label(is_fraud="0.5"), "label_wrong_type"),
        (label(is_fraud="1.0e0"), "label_wrong_type"),
        (label(is_fraud="yes"), "label_wrong_type"),
        (label(transaction_id=False), "label_wrong_type"),
        (label(transaction_id=" "), "label_invalid_id"),
        (label(labelled_at="yesterday"), "label_invalid_time"),
        (label(labelled_at="9999-12-31T23:59:59-01:00"), "label_invalid_time"),
        (label(labelled_at="0001-01-01T00:00:00+01:00"), "label_invalid_time"),
        (b" " * 100_001, "label_body_too_large"),
    ],
)
def test_a_bad_label_is_rejected_with_its_reason(message: bytes | None, reason: str) -> None:
    """Labels have separate reasons. A label in the far future is valid."""
    raw = label_table([label(labelled_at="9999-01-01T00:00:00Z"), message])
    good, bad = parse_labels(raw, SETTINGS.contract)
    assert good["offset"].to_pylist() == [0]
    assert bad.select(raw.column_names).to_pylist() == raw.slice(1).to_pylist()
    assert bad["reason"].to_pylist() == [reason]
    assert reason in REASONS


def test_every_reason_has_a_text() -> None:
    """A reason is an identifier for programs; its text is a sentence for people."""
    for reason, sentence in REASONS.items():
        assert reason.isidentifier()
        assert reason.islower()
        assert sentence[0].isupper()
        assert sentence.endswith(".")


def test_valid_rows_take_the_fast_path() -> None:
    """Only this test notices if valid rows in a common notation take the slow path."""
    feeds = [
        [body(transaction_id=index, extra=0) for index in range(100)],
        [body(customer_id=f"c{index}", tx_amount=str(index), extra={"a": [1, 2]}) for index in range(100)],
        [body(tx_datetime="2018-04-01 00:00:31.5+02:00") for _ in range(100)],
        [body(tx_datetime="2018-04-01T00:00:31.123456789Z", tx_amount=index) for index in range(100)],
        [b"\xef\xbb\xbf" + body(transaction_id=index) for index in range(100)],
        [json.dumps(nested(note=index)).encode() for index in range(100)],
    ]
    ingested = np.full(100, 2_000_000_000_000_000)
    for feed in feeds:
        mapped = load_settings(_env_file=None, field_mapping=NESTED if b"after" in feed[0] else {})
        contract = build_transaction_contract(mapped.contract)
        _, good = columnar_parsing._parse_fast(pa.array(feed, pa.binary()), ingested, contract)
        assert good.all()


# The fast path is compared with the reference parser on bodies that Hypothesis generates.

_blank = st.sampled_from(["", "", "", " ", "\n", "\t \r"])
_strings = st.text(st.characters(), max_size=8) | st.text(st.sampled_from('":\\{}[], a\0\ud800\udc00😀'), max_size=8)
_integers = st.integers() | st.integers(-3, 3) | st.sampled_from([2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**400])
_numbers = (
    st.floats().map(json.dumps)
    | st.floats(0, 1e6).map(json.dumps)
    | _integers.map(str)
    | st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
    | st.sampled_from(["-0", "-0.0", "1e400", "-1e400", "01", "1.", "+1", ".5", "9" * 4301, "9" * 4300, "1e-400"])
)
_digits = st.sampled_from([f"{number:02}" for number in (0, 1, 2, 4, 12, 13, 23, 24, 28, 29, 30, 31, 32, 59, 60)])
_time_texts = (
    st.datetimes().map(datetime.isoformat)
    | st.datetimes(timezones=st.timezones()).map(datetime.isoformat)
    | st.tuples(
        st.sampled_from(["0000", "0001", "1900", "2018", "2020", "9999", "12345"]),
        *[x for sep in "--T::" for x in (st.sampled_from([sep, sep, sep, " ", ""]), _digits)],
        st.sampled_from(["", "", ".5", ".123456", ".1234567", ",5", "."]),
        st.sampled_from(["", "", "Z", "z", "+00:00", "-23:59", "+24:00", "+01", "+0130", "+01:60", " "]),
    ).map("".join)
)
_quoted = st.sampled_from([True, False])
_scalars = (
    _numbers
    | st.builds(lambda value, plain: json.dumps(value, ensure_ascii=plain), _strings | _time_texts | _numbers, _quoted)
    | st.sampled_from(["true", "false", "null", "NaN", "Infinity", '"nan"', '"0"', '"true"', '"12.50"', '"1_0"', '""'])
)
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: "[" + ",".join(items) + "]")
        | st.lists(st.tuples(st.sampled_from(['"a"', '"b"', '":"']), _blank, inner), max_size=3).map(
            lambda items: "{" + ",".join(f"{key}{blank}:{value}" for key, blank, value in items) + "}"
        )
    ),
    max_leaves=6,
)
_depths = st.integers(30, 110)
_deep = _depths.map(lambda n: "[" * n + "]" * n) | _depths.map(lambda n: '{"a":' * n + "[]" + "}" * n)


@st.composite
def _objects(draw: st.DrawFn, fields: dict[str, Any]) -> str:
    """JSON text of an almost valid object: a value is wrong, or a key is missing, repeated or new."""
    written = {key: json.dumps(value) for key, value in fields.items()}
    pairs = list(written.items())
    for key in draw(st.lists(st.sampled_from(list(written)), max_size=2)):
        index = list(written).index(key)
        likely = _time_texts.map(json.dumps) if key in ("tx_datetime", "labelled_at") else _scalars
        pairs[index] = (key, draw(likely | _values))
    if draw(st.integers(0, 3)) == 0:
        pairs.append((draw(st.sampled_from([*written, "note", "é"])), draw(_values | _deep)))
    if draw(st.integers(0, 6)) == 0:
        pairs.pop(draw(st.integers(0, len(pairs) - 1)))
    if draw(st.integers(0, 4)) == 0:
        pairs = draw(st.permutations(pairs))
    parts = []
    for key, value in pairs:
        name = json.dumps(key) if draw(st.integers(0, 5)) else f'"\\u{ord(key[0]):04x}{key[1:]}"'
        parts.append(f"{draw(_blank)}{name}{draw(_blank)}:{draw(_blank)}{value}{draw(_blank)}")
    return draw(_blank) + "{" + ",".join(parts) + "}" + draw(_blank)


@st.composite
def _bodies(draw: st.DrawFn, fields: dict[str, Any]) -> bytes | None:
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.none() | st.binary(max_size=20) | (_values | _deep).map(_encode))
    if kind <= 2:
        return json.dumps(fields).encode()
    message = bytearray(_encode(draw(_objects(fields))))
    if kind >= 8:
        for _ in range(draw(st.integers(1, 3))):
            start = draw(st.integers(0, len(message) - 1))
            width = draw(st.integers(0, 2))
            message[start : start + width] = draw(st.sampled_from([b"", b'"', b":", b",", b"\\", b"}", b"1", b"\xff"]))
            if not message:
                break
    return bytes(message)


def _encode(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def _read_with_reference(bodies: list[bytes | None], ingested: int | None, contract: MessageContract) -> list[Any]:
    """The result of the reference parser for each body: its values, or its reason and detail."""
    expected: list[Any] = []
    for message in bodies:
        try:
            expected.append(read_message(message, ingested, contract))
        except Rejected as rejected:
            expected.append((rejected.reason, rejected.detail))
    return expected


def _assert_equal_to_reference(
    bodies: list[bytes | None], raw: pa.Table, contract: MessageContract, ingested: int | None
) -> None:
    expected = _read_with_reference(bodies, ingested, contract)
    columns, good, reasons, details = parse_messages(raw, contract)
    times = [name for name, column in columns.items() if pa.types.is_timestamp(column.type)]
    columns = {name: column.cast(pa.int64()) if name in times else column for name, column in columns.items()}
    rows = iter(list(zip(*(column.to_pylist() for column in columns.values()), strict=True)))
    problems = iter(list(zip(reasons, details, strict=True)))
    found = [next(rows) if is_good else next(problems) for is_good in good.tolist()]
    assert list(map(repr, found)) == list(map(repr, expected))  # repr: 0.0 is not -0.0, and 1 not True
    assert next(rows, None) is None
    assert next(problems, None) is None


_many_examples = settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])


@_many_examples
@given(st.lists(_bodies(GOOD), min_size=1, max_size=8), st.sampled_from([0, 1]))
def test_the_fast_path_equals_the_reference_parser_for_transactions(
    bodies: list[bytes | None], further_attempts: int
) -> None:
    """The results equal those of the reference parser, also if the fast path tries further sets of keys."""
    before, columnar_parsing._MIN_ROWS = columnar_parsing._MIN_ROWS, 1 if further_attempts else 64
    try:
        ingested = round(INGESTED.timestamp() * 1_000_000)
        _assert_equal_to_reference(bodies, raw_table(bodies), build_transaction_contract(SETTINGS.contract), ingested)
    finally:
        columnar_parsing._MIN_ROWS = before


@_many_examples
@given(st.lists(_bodies(nested()), min_size=1, max_size=8), st.sampled_from([b"", b"\xef\xbb\xbf"]))
def test_the_fast_path_equals_the_reference_parser_for_fields_inside_objects(
    bodies: list[bytes | None], mark: bytes
) -> None:
    """The results are equal whatever the objects contain, with and without a byte order mark."""
    ingested = round(INGESTED.timestamp() * 1_000_000)
    bodies = [mark + message if message and index % 2 else message for index, message in enumerate(bodies)]
    contract = build_transaction_contract(load_settings(_env_file=None, field_mapping=NESTED).contract)
    _assert_equal_to_reference(bodies, raw_table(bodies), contract, ingested)


@_many_examples
@given(st.lists(_bodies(GOOD_LABEL), min_size=1, max_size=8))
def test_the_fast_path_equals_the_reference_parser_for_labels(bodies: list[bytes | None]) -> None:
    _assert_equal_to_reference(bodies, label_table(bodies), build_label_contract(SETTINGS.contract), None)


@_many_examples
@given(st.lists(_bodies(GOOD), max_size=8))
def test_every_body_is_either_valid_or_rejected(bodies: list[bytes | None]) -> None:
    """A rejected row keeps the bytes of its message."""
    raw = raw_table(bodies)
    valid, rejected = parse_transactions(raw, Settings(_env_file=None, time_zone="Europe/Brussels").contract)
    assert sorted(valid["offset"].to_pylist() + rejected["offset"].to_pylist()) == list(range(len(bodies)))
    landed = raw.to_pylist()
    kept = rejected.select(raw.column_names).to_pylist()
    assert kept == [landed[row["offset"]] for row in kept]
    assert set(rejected["reason"].to_pylist()) <= set(REASONS)
