"""Seeded mutations of messages and files, as faulty or hostile producers may send them.

The same seed gives the same messages. About a third of them are valid, so that bad messages can damage valid neighbors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from random import Random
from typing import Any

from fraud_assets.core.formats import ID_HEADER
from fraud_assets.samples import FIELD_MAPPINGS

FIRST = datetime(2024, 1, 1, tzinfo=UTC)
LONGEST = 300_000
"""The maximum length of a body in bytes. By default, a broker accepts one megabyte."""

Pairs = list[tuple[str, str]]
"""A JSON object as the texts of its keys and values, so that a key can occur twice and a value can be invalid JSON."""


@dataclass(frozen=True)
class Sent:
    """A message as the producer gets it; `time` is in milliseconds, 0 for now."""

    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    time: int = 0


@dataclass(frozen=True)
class Dialect:
    """A kind of feed: its objects, and the keys that belong to the contract."""

    make: Callable[[int, Random], dict[str, Any]]
    ids: tuple[str, ...]
    amounts: tuple[str, ...]
    times: tuple[str, ...]
    mapping: str = ""


# ---------------------------------------------------------------------------------------------------------
# Valid objects.


def _moment(random: Random) -> datetime:
    return FIRST + timedelta(seconds=random.randrange(20 * 86_400))


def _handbook(number: int, random: Random) -> dict[str, Any]:
    return {
        "transaction_id": number,
        "tx_datetime": _moment(random).strftime("%Y-%m-%dT%H:%M:%S"),
        "customer_id": random.randrange(60),
        "terminal_id": random.randrange(90),
        "tx_amount": round(random.expovariate(0.02), 2),
        "tx_time_days": random.randrange(100),
        "tx_fraud": 0,
    }


def _sparkov(number: int, random: Random) -> dict[str, Any]:
    moment = _moment(random)
    return {
        "trans_num": f"{number:032x}",
        "trans_date_trans_time": str(moment.replace(tzinfo=None)),
        "cc_num": 2_703_186_189_652_095 + random.randrange(60),
        "merchant": f"fraud_Rippin, Kub & Söhne {random.randrange(90)}",
        "category": "misc_net",
        "amt": round(random.expovariate(0.02), 2),
        "first": "Zoë",
        "lat": 36.0788,
        "unix_time": int(moment.timestamp()),
        "card": {"number": "4111111111111111", "expiry": "12/27"},
    }


def _label(number: int, random: Random) -> dict[str, Any]:
    return {
        "transaction_id": number,
        "is_fraud": random.choice([True, False, 1, 0, "1", "false"]),
        "labelled_at": (_moment(random) + timedelta(days=7)).isoformat(),
    }


HANDBOOK = Dialect(_handbook, ("transaction_id", "customer_id", "terminal_id"), ("tx_amount",), ("tx_datetime",))
SPARKOV = Dialect(
    _sparkov, ("trans_num", "cc_num", "merchant"), ("amt",), ("trans_date_trans_time",), FIELD_MAPPINGS["sparkov"]
)
LABELS = Dialect(_label, ("transaction_id",), ("is_fraud",), ("labelled_at",))


def labels_of(dialect: Dialect) -> Dialect:
    """The labels for transactions of a dialect."""
    name = dialect.ids[0]

    def make(number: int, random: Random) -> dict[str, Any]:
        known = dialect.make(number, random)[name]
        return {name: known, **{key: value for key, value in _label(number, random).items() if key != "transaction_id"}}

    return replace(LABELS, make=make, ids=(name,))


# ---------------------------------------------------------------------------------------------------------
# Unusual values, as JSON texts or as invalid JSON.

NUMBERS = (
    "0", "-0", "-0.0", "-0.01", "1e308", "1.7976931348623157e308", "1e309", "-1e309", "1e-400", "5e-324", "3.5e38",
    "9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551616", "1" * 400,
    "9" * 4300, "9" * 4301, "-" + "9" * 5000, "0." + "3" * 400, "NaN", "Infinity", "-Infinity", "01", "1.", "+1", ".5",
    "0x10", "1_000", "1E+5", '"12.50"', '"1e400"', '"nan"', '"-0"', '"１２"', '" 1"', '"1,5"', '"0x1p3"', "true",
)  # fmt: skip
TIMES = (
    "1704067200", "1704067200000.5", "null", "-62135596800",
    *map(json.dumps, (
        "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00", "0000-01-01T00:00:00Z", "1677-09-21T00:12:43Z",
        "1899-12-31T23:59:59Z", "1900-01-01T00:00:00Z", "1969-12-31T23:59:59.999999Z", "2199-12-31T23:59:59Z",
        "2262-04-11T23:47:16.854776Z", "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59-01:00",
        "2016-12-31T23:59:60Z", "2024-01-01T24:00:00Z", "2024-02-30T00:00:00Z", "2024-01-01T00:00:00+23:59",
        "2024-01-01T00:00:00-23:59", "2024-01-01T00:00:00+24:00", "2024-01-01T00:00:00,5", "2024-01-01t00:00z",
        "2024-01-01T00:00:00.123456789Z", "٢٠٢٤-01-01T00:00:00Z", "2024-01-01T00:00:00Z\n", "2024-01-01", "20240101",
        "2024-W01-1T00:00:00", "1704067200", "now", "", "−2024-01-01T00:00:00Z", "2024-01-01T00:00:00 Europe/Paris",
    )),
)  # fmt: skip
IDS = (
    '""', '" "', '"\\u0000"', '"\\ud800"', '"\\udc00\\ud800"', '"e\\u0301"', '"\\ud83d\\ude00"', '"007"', '"７"',
    '"\\u202e"', '"null"', "null", "true", "[]", "{}", "[1]", '{"a":1}', "1.0", "1e2", "-1", "-0", "9" * 4300,
    "9" * 4301, "9223372036854775808", "NaN", '"\\u2028"', '"\\\\"', '"\\""',
    "'a'", '"\\x"', '"\\ufeff"', '"' + "x" * 9_000 + '"',
)  # fmt: skip
ODD = (*NUMBERS, *TIMES, *IDS)
PIECES = (
    b"", b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"\0", b"\x01", b"\x7f", b"\n", b"\r\n", b"\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xe2\x80\xa8", b"\\ud800", b"\\u", b"null", b"NaN", b"1e999",
    b"withheld ", b"\0\0\0\0\1", b"PAR1", b"//", b"/**/",
)  # fmt: skip


def _deep(random: Random) -> str:
    depth = random.choice([10, 39, 40, 41, 99, 100, 101, 500, 3_000 if random.random() < 0.8 else 50_000])
    opening, closing = random.choice([("[", "]"), ('{"a":', "}"), ('[{"":', "}]")])
    return opening * depth + "1" + closing * (depth - random.randrange(2))


def _long(random: Random) -> str:
    unit = random.choice(["x", "é", "\\u00e9", "\\n", "😀", '\\"', ":", '\\":'])
    return '"' + unit * (random.choice([1_000, 99_000, 100_001, 250_000]) // len(unit.encode())) + '"'


def _any_value(random: Random) -> str:
    dice = random.random()
    if dice < 0.04:
        return _deep(random)
    if dice < 0.05:
        return _long(random)
    return random.choice(ODD)


# ---------------------------------------------------------------------------------------------------------
# Mutations of an object.


def _odd_field(pairs: Pairs, dialect: Dialect, random: Random) -> None:
    kinds = ((dialect.ids, IDS), (dialect.amounts, NUMBERS), (dialect.times, TIMES))
    names, values = random.choice(kinds)
    name = json.dumps(random.choice(names))
    value = random.choice(values) if random.random() < 0.8 else _any_value(random)
    pairs[:] = [(key, value if key == name else old) for key, old in pairs]


def _missing(pairs: Pairs, dialect: Dialect, random: Random) -> None:
    if pairs:
        pairs.pop(random.randrange(len(pairs)))


def _twice(pairs: Pairs, dialect: Dialect, random: Random) -> None:
    if not pairs:
        return
    key, value = random.choice(pairs)
    spelling = key if random.random() < 0.5 else _escaped(key)
    pairs.insert(random.randrange(len(pairs) + 1), (spelling, value if random.random() < 0.3 else _any_value(random)))


def _other_spelling(pairs: Pairs, dialect: Dialect, random: Random) -> None:
    change = random.choice(
        [_escaped, str.upper, lambda key: key.replace('"', '" ', 1), lambda key: key[:-1] + '\\u0000"']
    )
    index = random.randrange(len(pairs)) if pairs else None
    if index is not None:
        pairs[index] = (change(pairs[index][0]), pairs[index][1])


def _extra(pairs: Pairs, dialect: Dialect, random: Random) -> None:
    for _ in range(random.choice([1, 1, 1, 3, 30])):
        pairs.append((json.dumps(random.choice(["note", "", "é", "a:b", "\0", "x" * 300])), _any_value(random)))


def _shuffled(pairs: Pairs, dialect: Dialect, random: Random) -> None:
    random.shuffle(pairs)


def _escaped(key: str) -> str:
    return f'"\\u{ord(key[1]):04X}{key[2:]}' if len(key) > 2 else key


_OF_OBJECTS = (_odd_field, _odd_field, _odd_field, _missing, _twice, _other_spelling, _extra, _shuffled)


def json_text(number: int, dialect: Dialect, random: Random, mutations: int) -> bytes:
    """An object of the dialect with the given number of mutations."""
    pairs = [(json.dumps(key), json.dumps(value)) for key, value in dialect.make(number, random).items()]
    for _ in range(mutations):
        random.choice(_OF_OBJECTS)(pairs, dialect, random)
    blank = random.choice(["", "", " ", "\n\t", "\u00a0" if mutations else ""])
    text = "{" + ",".join(f"{blank}{key}{blank}:{blank}{value}" for key, value in pairs) + "}" + blank
    return text.encode("utf-8", "surrogatepass")


# ---------------------------------------------------------------------------------------------------------
# Mutations of bytes.


def mutated(body: bytes, other: bytes, random: Random) -> bytes:
    """The bytes with one to four mutations: bit flips, cuts, splices with `other`, repetitions, unusual pieces."""
    data = bytearray(body)
    for _ in range(random.choice([1, 1, 2, 4])):
        index = random.randrange(len(data) + 1)
        width = random.choice([1, 1, 2, 8, 40])
        match random.randrange(8):
            case 0 if data:
                data[index % len(data)] ^= 1 << random.randrange(8)
            case 1:
                del data[index:]
            case 2:
                data[index:] = other[random.randrange(len(other) + 1) :]
            case 3:
                del data[index : index + width]
            case 4:
                data[index:index] = data[index : index + width] * random.choice([1, 2, 100])
            case 5:
                data[index:index] = random.randbytes(width)
            case 6:
                data += random.choice([bytes(data), other, b" " * 1_000])
            case _:
                data[index : index + random.randrange(3)] = random.choice(PIECES)
    return bytes(data[:LONGEST])


# ---------------------------------------------------------------------------------------------------------
# Messages.


def messages(count: int, seed: int, dialect: Dialect, wire: Wire | None = None, times: bool = True) -> Iterator[Sent]:
    """Generates messages of a dialect. With `wire`, bodies have the frame of a schema registry's serializer.

    Args:
        count: the number of messages.
        seed: the seed of all random choices.
        dialect: the kind of feed.
        wire: makes framed bodies from objects; mutations apply to frames too.
        times: whether some messages have another timestamp.
    """
    random = Random(seed)
    other = b"{}"
    repeated: Body = b"{}", []
    for number in range(count):
        value: bytes | None
        headers: Headers = []
        dice = random.random()
        if dice < 0.35:
            value, header = repeated = (wire or _plain)(json_text(number, dialect, random, 0), random)
            headers += header
        elif dice < 0.75:
            value, header = (wire or _plain)(json_text(number, dialect, random, random.choice([1, 1, 2, 3])), random)
            headers += header
        elif dice < 0.95:
            good, header = (wire or _plain)(json_text(number, dialect, random, random.randrange(2)), random)
            value = mutated(good, other, random)
            headers += header if random.random() < 0.5 else []
        elif dice < 0.97:
            value, header = repeated
            headers += header
        else:
            value = random.choice([None, b"", b"\0", b" ", b"null", b"[]", random.randbytes(random.randrange(60))])
        if random.random() < 0.1:
            headers += _headers(random)
        yield Sent(value, _key(random), tuple(headers), _time(random) if times and random.random() < 0.02 else 0)
        other = (value or other)[:5_000]


Headers = list[tuple[str, bytes | None]]
Body = tuple[bytes, Headers]
Wire = Callable[[bytes, Random], Body]


def _plain(body: bytes, random: Random) -> Body:
    return body, []


def _key(random: Random) -> bytes | None:
    return random.choice([None, None, b"", b"%d" % random.randrange(60), random.randbytes(8), b"\xff" * 2_000])


def _headers(random: Random) -> Headers:
    values = [None, b"", b"\0", b"\xff\xfe", b"1", b"x" * 3_000, b"\0\0\0\0\1", b"\1" + b"g" * 16]
    # Names contain no NUL, because Kafka's client in C would cut them there.
    names = ["", "a", "é\u2028", "x" * 500, ID_HEADER, "traceparent", "\x01", "😀"]
    return [(random.choice(names), random.choice(values)) for _ in range(random.choice([1, 2, 40]))]


def _time(random: Random) -> int:
    return random.choice(
        [1, 2**31, 1_700_000_000_000, 253_402_300_799_999, 253_402_300_800_000, 2**53, 2**62, 2**63 - 1]
    )


@dataclass(frozen=True)
class SchemaIds:
    """The ids of a registry: those of the feed's schema and of other schemas, and the GUID of the feed's schema."""

    good: int
    others: Sequence[int] = ()
    guid: bytes = b"g" * 16


AVRO = json.dumps(
    {
        "type": "record",
        "name": "Payment",
        "fields": [
            {"name": "transaction_id", "type": ["long", "string", "null"]},
            {"name": "tx_datetime", "type": [{"type": "long", "logicalType": "timestamp-micros"}, "string"]},
            {"name": "customer_id", "type": "long"},
            {"name": "terminal_id", "type": "string"},
            {"name": "tx_amount", "type": [
                "double", {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 2}]},
            {"name": "tags", "type": {"type": "map", "values": {"type": "array", "items": "string"}}, "default": {}},
        ],
    }
)  # fmt: skip
RECURSIVE = '{"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}'
ENDLESS = '{"type": "record", "name": "Many", "fields": [{"name": "a", "type": {"type": "array", "items": "null"}}]}'


def avro_wire(ids: SchemaIds) -> Wire:
    """Bodies in Avro: some have numbers at their limits, frames with wrong ids, ids in headers, or no frame."""
    from decimal import Decimal

    from fastavro import parse_schema, schemaless_writer

    schema = parse_schema(json.loads(AVRO))
    micros = [0, -1, 2**63 - 1, -(2**63), 2**55, -62_135_596_800_000_000, 253_402_300_799_999_999, -5 * 10**15]
    amounts = [
        0.0,
        -0.0,
        1e308,
        5e-324,
        float("nan"),
        float("inf"),
        -1.0,
        Decimal("0.00"),
        Decimal("-1.50"),
        Decimal(10**17),
    ]

    def wire(body: bytes, random: Random) -> Body:
        if random.random() < 0.1:
            return _framed(body, ids, random)
        odd = random.random() < 0.4
        moment = _moment(random)
        fields = {
            "transaction_id": random.choice([random.randrange(2**63), "a", "\0", "", None, -1])
            if odd
            else random.getrandbits(62),
            "tx_datetime": random.choice([*micros, "2024-01-01T00:00:00Z", "é"])
            if odd and random.random() < 0.5
            else moment,
            "customer_id": random.randrange(60),
            "terminal_id": random.choice(["t", "", "\0", "x" * 5_000]) if odd and random.random() < 0.3 else "t1",
            "tx_amount": random.choice(amounts)
            if odd and random.random() < 0.5
            else round(random.expovariate(0.02), 2),
            "tags": {"k" * random.randrange(3): ["v"] * random.randrange(5)} if odd else {},
        }
        buffer = BytesIO()
        schemaless_writer(buffer, schema, fields)
        return _framed(buffer.getvalue(), ids, random)

    return wire


def json_schema_wire(ids: SchemaIds) -> Wire:
    """JSON bodies after a frame."""
    return lambda body, random: _framed(body, ids, random)


def _framed(payload: bytes, ids: SchemaIds, random: Random) -> Body:
    dice = random.random()
    if dice < 0.8:
        return b"\0" + struct.pack(">I", ids.good) + payload, []
    if dice < 0.86:
        return payload, [(ID_HEADER, b"\1" + ids.guid)]
    if dice < 0.90:
        return payload, [(ID_HEADER, b"\0" + struct.pack(">I", ids.good))]
    if dice < 0.93:
        return payload, [
            (ID_HEADER, random.choice([None, b"", b"\0", b"\1", b"\1" + random.randbytes(16), b"\2\0\0\0\1"]))
        ]
    wrong = random.choice([*ids.others, 0, 2**31, 2**32 - 1, 10**6 + random.randrange(5)])
    return b"\0" + struct.pack(">I", wrong) + payload, []


# ---------------------------------------------------------------------------------------------------------
# Files.

_FILE_NAMES = ("day", "a b", "x[1]", "q*", "w?", "é", "it's", "l" * 230)
HEADER = ("transaction_id", "tx_datetime", "customer_id", "terminal_id", "tx_amount")


def files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files for the drop folder: JSON lines, CSV and Parquet, most of them damaged."""
    random = Random(seed)
    makers = (_json_lines, _csv, _parquet)
    other = b"{}\n"
    for number in range(count):
        kind = random.randrange(3)
        content = makers[kind](number, random)
        if random.random() < 0.6:
            for _ in range(random.choice([1, 1, 3, 20])):
                content = mutated_file(content, other, random)
        suffix = random.choice([(".jsonl", ".ndjson", ".json"), (".csv", ".CSV"), (".parquet",)][kind])
        if random.random() < 0.04:
            suffix = random.choice([".csv", ".parquet", ".json", ".xlsx", "", ".parquet.gz"])
        yield f"{random.choice(_FILE_NAMES)}-{number}{suffix}", content
        other = content[:5_000] or other


def mutated_file(content: bytes, other: bytes, random: Random) -> bytes:
    """Mutates one position, often near the end, where a Parquet file has its footer."""
    data = bytearray(content)
    index = random.randrange(len(data) + 1) if random.random() < 0.5 else max(0, len(data) - random.randrange(1, 1_500))
    match random.randrange(9):
        case 0 | 1 | 2 if data:
            data[index % len(data)] ^= 1 << random.randrange(8)
        case 3:
            data[index : index + random.randrange(1, 9)] = random.randbytes(random.randrange(9))
        case 4:
            del data[index:]
        case 5:
            data[index:index] = random.choice(PIECES)
        case 6:
            data += other
        case 7:
            data[: random.randrange(30)] = b""
        case _:
            data[index : index + 4] = struct.pack("<i", random.choice([-1, 0, 2**31 - 1, -(2**31), 1 << 20]))
    return bytes(data)


def _json_lines(number: int, random: Random) -> bytes:
    lines = [
        message.value if random.random() < 0.9 else b""
        for message in messages(random.randrange(1, 40), random.getrandbits(32), HANDBOOK)
    ]
    end = random.choice([b"\n", b"\n", b"\r\n", b"\n\n", b"\r"])
    whole = end.join(line.replace(b"\n", b" ")[:20_000] for line in lines if line is not None)
    match random.randrange(12):
        case 0:
            return whole.decode("utf-8", "replace").encode("utf-16")
        case 1:
            return b"\xef\xbb\xbf" + whole
        case 2:
            return b""
    return whole


def _csv(number: int, random: Random) -> bytes:
    delimiter = random.choice([",", ",", ";", "\t", "|"])
    end = random.choice(["\n", "\n", "\r\n", "\r"])
    names = [
        name.upper() if random.random() < 0.2 else name
        for name in (*HEADER, random.choice(["note", "is_fraud", "TX_FRAUD"]))
    ]
    rows = [delimiter.join(names)]
    for row in range(random.randrange(60)):
        values = [
            str(number * 1000 + row),
            _moment(random).isoformat(),
            "7",
            "t8",
            "12.50",
            random.choice(["0", "1", ""]),
        ]
        if random.random() < 0.1:
            values[random.randrange(6)] = random.choice(
                ["#9", '"a""b"', f'"x{delimiter}y"', '"two\nlines"', 'in"side', '"open', "\0", " ", "nan", "1e400"]
            )
        if random.random() < 0.01:
            values = values[: random.randrange(6)] if random.random() < 0.5 else [*values, "more"]
        rows.append(delimiter.join(values))
    whole = end.join(rows)
    match random.randrange(14):
        case 0:
            return whole.encode("utf-16")
        case 1:
            return b"\xef\xbb\xbf" + whole.encode()
        case 2:
            return (whole + delimiter + "é").encode("latin-1")
        case 3:
            return (whole + "\n" + "x" * 3_000_000).encode()
        case 4:
            return whole.encode().replace(b"transaction_id", b"id")
    return whole.encode()


def _parquet(number: int, random: Random) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = random.randrange(1, 50)
    columns = {
        "transaction_id": pa.array([number * 1000 + row for row in range(count)]),
        "tx_datetime": pa.array([_moment(random) for _ in range(count)], pa.timestamp("us", "UTC")),
        "customer_id": pa.array(["c"] * count),
        "terminal_id": pa.array([1] * count, pa.int32()),
        "tx_amount": pa.array([random.choice([1.5, 0.0, -1.0, float("nan"), 1e308]) for _ in range(count)]),
    }
    for _ in range(random.choice([0, 1, 1, 2])):
        columns[random.choice([*HEADER, "extra", "is_fraud", "labelled_at", "TX_AMOUNT", ""])] = _odd_column(
            count, random
        )
    buffer = BytesIO()
    plain: dict[str, Any] = {"use_dictionary": False, "column_encoding": {"transaction_id": "DELTA_BINARY_PACKED"}}
    try:
        pq.write_table(
            pa.table(columns),
            buffer,
            compression=random.choice(["snappy", "zstd", "gzip", "none", "lz4", "brotli"]),
            data_page_version=random.choice(["1.0", "2.0"]),
            **random.choice([{}, {"use_dictionary": False}, plain]),
        )
    except (pa.ArrowException, OSError):  # Parquet or the encoding does not support the type
        return b"PAR1"
    return buffer.getvalue()


def _odd_column(count: int, random: Random) -> Any:
    import pyarrow as pa

    one = b"\xc3\xa9" if random.random() < 0.7 else b"\xff\xfe"
    text = pa.array([one] * count).view(pa.string())
    zone = random.choice(["UTC", "Mars/Base", "+05:30"])
    made: list[Callable[[], Any]] = [
        lambda: text,
        lambda: text.dictionary_encode(),
        lambda: pa.array([one] * count),
        lambda: pa.array([1] * count, pa.decimal128(random.choice([5, 19, 38]), 0)),
        lambda: pa.array([1] * count, pa.decimal256(60, 2)),
        lambda: pa.array([1.5] * count, pa.float16()),
        lambda: pa.array([2**64 - 1] * count, pa.uint64()),
        lambda: pa.nulls(count),
        lambda: pa.array([[{"a": [1]}]] * count),
        lambda: pa.array([[("k", 1), ("k", 2)]] * count, pa.map_(pa.string(), pa.int32())),
        lambda: pa.array([random.choice([0, 2**62, -(2**62), -(2**63)])] * count, pa.timestamp("us")),
        lambda: pa.array([random.choice([0, 2**50, -(2**50)])] * count, pa.timestamp("ms", zone)),
        lambda: pa.array([2**60] * count, pa.timestamp("ns", "Europe/Brussels")),
        lambda: pa.array([random.choice([0, -(2**31), 2**31 - 1])] * count, pa.date32()),
        lambda: pa.array([1] * count, pa.time64("ns")),
        lambda: pa.array([2**62] * count, pa.duration("us")),
        lambda: pa.array([b"a" * 16] * count, pa.uuid()),
        lambda: pa.array(["{"] * count, pa.json_()),
        lambda: pa.array([True, None] * count)[:count],
        lambda: pa.array(["x" * random.choice([0, 10, 50_000])] * count, pa.large_string()),
        lambda: pa.array(["x"] * count, pa.string_view()),
        lambda: pa.array([[1.0]] * count, pa.list_view(pa.float64())),
        lambda: pa.array([{}] * count, pa.struct([])),
    ]  # fmt: skip
    return random.choice(made)()
