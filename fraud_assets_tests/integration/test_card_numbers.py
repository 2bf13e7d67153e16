"""Card numbers in every possible place, and a search for them in every byte under FRAUD_HOME."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka.schema_registry import Schema
from fastavro import parse_schema, schemaless_writer

from fraud_assets.core.pseudonyms import compute_hmac
from fraud_assets.core.schema import (
    fraud_labels,
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.ingest.files.file_report import FileReport
from fraud_assets.kafka.broker import embedded_broker
from fraud_assets.kafka.schemas import get_registry_client
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.operations.reconciliation import reconcile
from fraud_assets.operations.setup_home import prepare_home
from fraud_assets.settings import Settings, load_settings
from fraud_assets_tests.support.logged import land_logged
from fraud_assets_tests.support.starting import sender

KEY = "a key of thirty-two characters or more"
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
GOOD = 400
STEPS = (
    ["fraud_labels", "raw_transactions"],
    ["transaction_features", "quarantined_transactions"],
    ["isolation_forest", "alert_thresholds"],
    ["fraud_predictions"],
)
AVRO = json.dumps(
    {
        "type": "record",
        "name": "Payment",
        "fields": [
            {"name": "transaction_id", "type": "string"},
            {"name": "tx_datetime", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            {"name": "customer_id", "type": "long"},
            {"name": "terminal_id", "type": "string"},
            {"name": "tx_amount", "type": "double"},
            {
                "name": "card",
                "type": {"type": "record", "name": "Card", "fields": [{"name": "number", "type": "bytes"}]},
            },
        ],
    }
)


class Cards:
    """A card number of its own for each place, so that a leak says where it came from."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def __call__(self, place: str) -> int:
        return self.places.setdefault(place, 4_929_000_000_000_017 + 1_000_000_007 * len(self.places))


def payment(number: int | str, customer: Any, **more: Any) -> dict[str, Any]:
    minutes = number if isinstance(number, int) else GOOD
    return {
        "transaction_id": str(number),
        "tx_datetime": (FIRST + timedelta(minutes=60 * minutes)).isoformat(),
        "customer_id": customer,
        "terminal_id": f"t{minutes % 5}",
        "tx_amount": 10.0 + minutes % 13,
        **more,
    }


def avro(identity: int, cards: Cards, number: str) -> bytes:
    stream = BytesIO()
    row = payment(number, cards("avro field"), card={"number": str(cards("avro bytes")).encode()})
    row["tx_datetime"] = datetime.fromisoformat(row["tx_datetime"])
    schemaless_writer(stream, parse_schema(json.loads(AVRO)), row)
    return b"\0" + struct.pack(">I", identity) + stream.getvalue()


def transactions(cards: Cards, schema: int) -> Iterator[tuple[bytes, str | None, list[tuple[str, bytes]] | None]]:
    """Bodies with their keys and headers."""

    def text(number: str, **fields: Any) -> bytes:
        return json.dumps(payment(number, "c", **fields)).encode()

    def plain(body: bytes) -> tuple[bytes, None, None]:
        return body, None, None

    for number in range(GOOD):
        yield plain(json.dumps(payment(number, cards("field") + number % 5)).encode())
    yield plain(text("number", cc_num=cards("number")))
    yield plain(text("text", cc_num=str(cards("text"))))
    yield plain(text("nested", card={"number": cards("nested"), "expiry": "12/27"}))
    yield plain(text("array", card=[{"number": str(cards("array"))}, {"number": [cards("array in array")]}]))
    yield plain(text("other case", CC_NUM=cards("other case")))
    yield plain(text("key name", cc_num={str(cards("key name")): True}))
    escaped = "".join(f"\\u{ord(digit):04x}" for digit in str(cards("escaped")))
    yield plain(text("escaped", cc_num="@").replace(b"@", escaped.encode()))
    yield plain(text("float", cc_num=float(cards("float"))))
    yield plain(text("long", cc_num=int(f"{cards('integer beyond 64 bits')}0000000000")))
    yield text("key"), str(cards("key")), None
    yield text("header"), None, [("card", str(cards("header")).encode())]
    yield plain(text("bad amount", tx_amount="x", cc_num=cards("rejected by the contract")))
    yield plain(text("number", customer_id=cards("duplicate transaction")))
    yield plain(b'{"cc_num": %d' % cards("broken"))
    yield plain(b'\xff{"cc_num": %d}' % cards("not UTF-8"))
    yield plain(b"%d" % cards("not an object"))
    yield plain(b'{"cc_num":%d,"x":%s}' % (cards("too deep"), b"[" * 150 + b"]" * 150))
    yield plain(b'{"cc_num":%d,"x":"%s"}' % (cards("too large"), b"x" * 100_000))
    yield plain(b'{"cc_num":%d,"cc_num":1}' % cards("key twice"))
    yield plain(b'{"%d":1,"%d":2}' % (cards("name twice"), cards("name twice")))
    yield plain(b'{"card":{"number":%d,"number":1}}' % cards("key twice within"))
    yield plain(b'withheld {"reason": "%d"}' % cards("forged marker"))
    good = avro(schema, cards, "avro")
    yield plain(good)
    yield plain(good[:-1] + str(cards("broken Avro")).encode())
    yield plain(b"\0\0\0\0\x63" + str(cards("unknown schema")).encode())
    yield b"", str(cards("key of an empty body")), None


def labels(cards: Cards) -> Iterator[tuple[bytes | None, str | None, list[tuple[str, bytes]] | None]]:
    def label(number: Any, **more: Any) -> bytes:
        moment = (FIRST + timedelta(days=10)).isoformat()
        return json.dumps({"transaction_id": number, "is_fraud": True, "labelled_at": moment, **more}).encode()

    yield label("1", cc_num=cards("label field")), str(cards("label key")), [("x", str(cards("label header")).encode())]
    yield label(None, cc_num=str(cards("rejected label"))), None, None
    yield b'{"cc_num": "%d"' % cards("broken label"), None, None
    yield None, str(cards("key of a label's tombstone")), None


def drop_files(cards: Cards, folder: Path) -> None:
    header = "transaction_id,tx_datetime,customer_id,terminal_id,tx_amount,cc_num,tx_fraud"
    row = "{},2026-01-05T00:00:00Z,{},t,5,{},{}\n"
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str, text: str) -> None:
        (folder / name).write_text(text)

    write(
        "good.csv",
        f"{header}\n"
        + row.format("csv1", cards("CSV id"), cards("CSV"), 1)
        + row.format("csv2", cards("CSV id"), "", "")
        + row.format("csv3", "c", cards("CSV, rejected label"), "perhaps"),
    )
    write(
        "good.jsonl",
        json.dumps(payment("jsonl", cards("JSON lines"), is_fraud=1))
        + f'\n{{"is_fraud": 1, "cc_num": {cards("broken line")}\n',
    )
    frame = pa.Table.from_pylist([payment("parquet", cards("Parquet id"), cc_num=cards("Parquet"))])
    pq.write_table(frame, folder / "good.parquet")
    write("no header.csv", row.format("x", cards("failed CSV"), "", 0) * 2)
    write("array.json", f'[{{"cc_num": {cards("failed JSON")}}}]')
    write("unclosed.csv", f'{header}\n"{cards("unclosed quote in CSV")},\n' + row.format(1, 2, 3, 4))
    write("broken.parquet", f"PAR1{cards('failed Parquet')}PAR1")
    write("unknown.xls", str(cards("unknown suffix")))
    pq.write_table(pa.table({"cc_num": [cards("Parquet without columns")]}), folder / "columns.parquet")


def everything_in(home: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file under the home as bytes: as it is, unpacked, and of Parquet the values as text."""
    for path in home.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        yield path, content
        for unpack in (gzip.decompress, bz2.decompress, lzma.decompress, zlib.decompress):
            try:
                yield path, unpack(content)
            except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error):
                continue
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    yield path, archive.read(name)
        if content.startswith(b"PAR1") and content.endswith(b"PAR1"):
            try:
                yield path, repr(pq.read_table(path, partitioning=None).to_pylist()).encode()
            except pa.ArrowException:  # the one that is no Parquet file
                continue


def leaks(home: Path, cards: Cards) -> dict[str, set[str]]:
    """Where a card's digits, as text or as a number, stand under the home: places by folder."""
    found: dict[str, set[str]] = {}
    by_digits = {str(number).encode(): place for place, number in cards.places.items()}
    # The first digits, because a float or one of many customers may end otherwise.
    prefixes = {digits[:12]: place for digits, place in by_digits.items()}
    numbers = {struct.pack("<q", number): place for place, number in cards.places.items()}
    wanted = re.compile(b"|".join(map(re.escape, [*prefixes, *numbers])))
    for path, content in everything_in(home):
        for match in wanted.findall(content):
            place = prefixes.get(match) or numbers[match]
            found.setdefault(place, set()).add(str(path.relative_to(home).parts[:2]))
    return found


Run = Callable[[bool], tuple[Settings, Cards, list[str], list[FileReport]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(pseudonymised)`: lands everything through Kafka, the drop folder and Dagster, to predictions."""

    def whole(pseudonymised: bool) -> tuple[Settings, Cards, list[str], list[FileReport]]:
        home = tmp_path / "home"
        environment = {
            "FRAUD_HOME": str(home),
            "FRAUD_FILE_QUIET_SECONDS": "0",
            "FRAUD_TRANSACTIONS_FORMAT": "avro",
            "FRAUD_LABELS_FORMAT": "avro",
            "SCHEMA_REGISTRY_URL": f"mock://{uuid4().hex}",
            "FRAUD_TRAIN_MIN_ROWS": "100",
            "FRAUD_TRAIN_TREES": "10",
            "FRAUD_PSEUDONYMISE": "cc_num,card.number,customer_id" if pseudonymised else "",
            "FRAUD_PSEUDONYM_KEY": KEY if pseudonymised else "",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        settings, cards, said = load_settings(), Cards(), list[str]()
        schema = get_registry_client(settings).register_schema("transactions-value", Schema(AVRO, "AVRO"))
        prepare_home(settings)
        drop_files(cards, settings.incoming)
        with embedded_broker(settings) as broker:
            send = sender(broker)
            for topic, messages in (("transactions", transactions(cards, schema)), ("fraud-labels", labels(cards))):
                for body, key, headers in messages:
                    send(topic, [body], key=key, headers=headers)
            files = land_logged(Lake.of(settings), settings, said)
            _materialize(settings, STEPS if pseudonymised else STEPS[:2])
        return settings, cards, said, files

    return whole


def _materialize(settings: Settings, steps: Any) -> None:
    from fraud_assets.definitions import defs

    with dg.DagsterInstance.from_config(str(settings.home_path / "dagster")) as instance:
        for step in steps:
            result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
                asset_selection=[dg.AssetKey(name) for name in step], instance=instance
            )
            assert result.success


def test_no_card_number_is_written_anywhere(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    settings, cards, said, files = run(True)
    assert leaks(settings.home_path, cards) == {}
    logged = capfd.readouterr()
    told = "\n".join([*said, *(file.reason for file in files), logged.out, logged.err])
    assert [place for place, number in cards.places.items() if str(number) in told] == []
    assert KEY not in told
    assert not any(KEY.encode() in content for _, content in everything_in(settings.home_path))

    # Nothing is lost, every message has the same result as before, and customers keep their pseudonyms.
    lake = Lake.of(settings)
    counts = reconcile(lake, settings)
    assert counts["landed"] == counts["features"] + counts["quarantined"] + counts["duplicates"]
    assert counts["scored"] == counts["features"] > GOOD
    features = open_dataset(lake.open(transaction_features)).to_table().to_pylist()
    customers = {row["transaction_id"]: row["customer_id"] for row in features}
    first = compute_hmac(str(cards("field")).encode(), settings.pseudonym_policy)
    assert customers["0"] == customers["5"] == first
    assert (
        customers["csv1"] == customers["csv2"] == compute_hmac(str(cards("CSV id")).encode(), settings.pseudonym_policy)
    )
    assert customers["avro"] == compute_hmac(str(cards("avro field")).encode(), settings.pseudonym_policy)
    assert customers.keys() >= {"key", "header", "jsonl", "parquet", "long", "escaped", "array"}
    assert sorted(open_dataset(lake.open(fraud_labels)).to_table()["transaction_id"].to_pylist()) == [
        "1",
        "csv1",
        "jsonl",
    ]
    reasons = {row["reason"] for row in open_dataset(lake.open(quarantined_transactions)).to_table().to_pylist()}
    assert reasons >= {
        "invalid_json",
        "invalid_utf8",
        "not_an_object",
        "body_too_large",
        "duplicate_key",
        "wrong_type",
        "invalid_avro",
        "unknown_schema",
        "empty_body",
        "duplicate",
        "label_tombstone",
        "label_invalid_json",
        "label_wrong_type",
    }
    assert len(open_dataset(lake.open(fraud_predictions)).to_table()) == counts["scored"]

    # Of the dropped files receipts are left, and a file that is dropped again lands nothing.
    kept = {path.name for folder in (settings.processed, settings.failed) for path in folder.iterdir()}
    assert kept == {
        "good.csv.receipt.json",
        "good.jsonl.receipt.json",
        "good.parquet.receipt.json",
        "no header.csv.reason.txt",
        "array.json.reason.txt",
        "unclosed.csv.reason.txt",
        "broken.parquet.reason.txt",
        "unknown.xls.reason.txt",
        "columns.parquet.reason.txt",
    }
    assert list(settings.incoming.iterdir()) == []
    drop_files(cards, settings.incoming)
    assert [file.rows for file in land_logged(lake, settings, said) if not file.reason] == [0, 0, 0]
    assert leaks(settings.home_path, cards) == {}


def test_the_search_finds_every_one_that_is_written(run: Run) -> None:
    """What the first test does not find is there to be found: without the setting each number is on the disk."""
    settings, cards, _, _ = run(False)
    found = leaks(settings.home_path, cards)
    # A good label keeps neither key nor headers, and an escaped number is written as it was escaped.
    assert cards.places.keys() - found.keys() == {"label key", "label header", "escaped"}
    assert open_dataset(Lake.of(settings).open(raw_transactions)).to_table().num_rows > GOOD
