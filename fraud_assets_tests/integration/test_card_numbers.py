"""Card numbers in all parts of messages and files, and a search for them in every byte under FRAUD_HOME."""

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
    """Generates a different card number for each origin, so that a leak shows where the number came from."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, origin: str) -> int:
        return self.numbers.setdefault(origin, 4_929_000_000_000_017 + 1_000_000_007 * len(self.numbers))


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


def encode_avro(schema_id: int, cards: Cards, number: str) -> bytes:
    stream = BytesIO()
    row = payment(number, cards("avro field"), card={"number": str(cards("avro bytes")).encode()})
    row["tx_datetime"] = datetime.fromisoformat(row["tx_datetime"])
    schemaless_writer(stream, parse_schema(json.loads(AVRO)), row)
    return b"\0" + struct.pack(">I", schema_id) + stream.getvalue()


def transactions(cards: Cards, schema_id: int) -> Iterator[tuple[bytes, str | None, list[tuple[str, bytes]] | None]]:
    """Bodies with their keys and headers."""

    def encode_payment(number: str, **fields: Any) -> bytes:
        return json.dumps(payment(number, "c", **fields)).encode()

    def body_only(body: bytes) -> tuple[bytes, None, None]:
        return body, None, None

    for number in range(GOOD):
        yield body_only(json.dumps(payment(number, cards("field") + number % 5)).encode())
    yield body_only(encode_payment("number", cc_num=cards("number")))
    yield body_only(encode_payment("text", cc_num=str(cards("text"))))
    yield body_only(encode_payment("nested", card={"number": cards("nested"), "expiry": "12/27"}))
    yield body_only(
        encode_payment("array", card=[{"number": str(cards("array"))}, {"number": [cards("array in array")]}])
    )
    yield body_only(encode_payment("other case", CC_NUM=cards("other case")))
    yield body_only(encode_payment("key name", cc_num={str(cards("key name")): True}))
    escaped = "".join(f"\\u{ord(digit):04x}" for digit in str(cards("escaped")))
    yield body_only(encode_payment("escaped", cc_num="@").replace(b"@", escaped.encode()))
    yield body_only(encode_payment("float", cc_num=float(cards("float"))))
    yield body_only(encode_payment("long", cc_num=int(f"{cards('integer beyond 64 bits')}0000000000")))
    yield encode_payment("key"), str(cards("key")), None
    yield encode_payment("header"), None, [("card", str(cards("header")).encode())]
    yield body_only(encode_payment("bad amount", tx_amount="x", cc_num=cards("rejected by the contract")))
    yield body_only(encode_payment("number", customer_id=cards("duplicate transaction")))
    yield body_only(b'{"cc_num": %d' % cards("broken"))
    yield body_only(b'\xff{"cc_num": %d}' % cards("not UTF-8"))
    yield body_only(b"%d" % cards("not an object"))
    yield body_only(b'{"cc_num":%d,"x":%s}' % (cards("too deep"), b"[" * 150 + b"]" * 150))
    yield body_only(b'{"cc_num":%d,"x":"%s"}' % (cards("too large"), b"x" * 100_000))
    yield body_only(b'{"cc_num":%d,"cc_num":1}' % cards("key twice"))
    yield body_only(b'{"%d":1,"%d":2}' % (cards("name twice"), cards("name twice")))
    yield body_only(b'{"card":{"number":%d,"number":1}}' % cards("key twice within"))
    yield body_only(b'withheld {"reason": "%d"}' % cards("forged marker"))
    valid_avro = encode_avro(schema_id, cards, "avro")
    yield body_only(valid_avro)
    yield body_only(valid_avro[:-1] + str(cards("broken Avro")).encode())
    yield body_only(b"\0\0\0\0\x63" + str(cards("unknown schema")).encode())
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


def read_all_contents(home: Path) -> Iterator[tuple[Path, bytes]]:
    """Yields every file under the home as bytes: unchanged, decompressed, and the values of Parquet as text."""
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
            except pa.ArrowException:  # the dropped file that is not valid Parquet
                continue


def find_leaks(home: Path, cards: Cards) -> dict[str, set[str]]:
    """Finds card numbers under the home, as text or as binary numbers; returns the folders by origin of the number."""
    found: dict[str, set[str]] = {}
    origins_by_digits = {str(number).encode(): origin for origin, number in cards.numbers.items()}
    # Only the first digits are compared, because the last digits of a float or of a customer id can differ.
    origins_by_prefix = {digits[:12]: origin for digits, origin in origins_by_digits.items()}
    origins_by_binary = {struct.pack("<q", number): origin for origin, number in cards.numbers.items()}
    pattern = re.compile(b"|".join(map(re.escape, [*origins_by_prefix, *origins_by_binary])))
    for path, content in read_all_contents(home):
        for match in pattern.findall(content):
            origin = origins_by_prefix.get(match) or origins_by_binary[match]
            found.setdefault(origin, set()).add(str(path.relative_to(home).parts[:2]))
    return found


Run = Callable[[bool], tuple[Settings, Cards, list[str], list[FileReport]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(pseudonymized)` lands all messages and files, and materializes the assets with Dagster."""

    def run_platform(pseudonymized: bool) -> tuple[Settings, Cards, list[str], list[FileReport]]:
        home = tmp_path / "home"
        environment = {
            "FRAUD_HOME": str(home),
            "FRAUD_FILE_QUIET_SECONDS": "0",
            "FRAUD_TRANSACTIONS_FORMAT": "avro",
            "FRAUD_LABELS_FORMAT": "avro",
            "SCHEMA_REGISTRY_URL": f"mock://{uuid4().hex}",
            "FRAUD_TRAIN_MIN_ROWS": "100",
            "FRAUD_TRAIN_TREES": "10",
            "FRAUD_PSEUDONYMISE": "cc_num,card.number,customer_id" if pseudonymized else "",
            "FRAUD_PSEUDONYM_KEY": KEY if pseudonymized else "",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        settings, cards, log_lines = load_settings(), Cards(), list[str]()
        schema_id = get_registry_client(settings).register_schema("transactions-value", Schema(AVRO, "AVRO"))
        prepare_home(settings)
        drop_files(cards, settings.incoming)
        with embedded_broker(settings) as broker:
            send = sender(broker)
            for topic, messages in (("transactions", transactions(cards, schema_id)), ("fraud-labels", labels(cards))):
                for body, key, headers in messages:
                    send(topic, [body], key=key, headers=headers)
            files = land_logged(Lake.of(settings), settings, log_lines)
            _materialize(settings, STEPS if pseudonymized else STEPS[:2])
        return settings, cards, log_lines, files

    return run_platform


def _materialize(settings: Settings, steps: Any) -> None:
    from fraud_assets.definitions import defs

    with dg.DagsterInstance.from_config(str(settings.home_path / "dagster")) as instance:
        for step in steps:
            result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
                asset_selection=[dg.AssetKey(name) for name in step], instance=instance
            )
            assert result.success


def test_no_card_number_is_written_anywhere(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    settings, cards, log_lines, files = run(True)
    assert find_leaks(settings.home_path, cards) == {}
    captured = capfd.readouterr()
    output = "\n".join([*log_lines, *(file.reason for file in files), captured.out, captured.err])
    assert [origin for origin, number in cards.numbers.items() if str(number) in output] == []
    assert KEY not in output
    assert not any(KEY.encode() in content for _, content in read_all_contents(settings.home_path))

    # No message is lost, each has the expected result, and a customer has the same pseudonym everywhere.
    lake = Lake.of(settings)
    counts = reconcile(lake, settings)
    assert counts["landed"] == counts["features"] + counts["quarantined"] + counts["duplicates"]
    assert counts["scored"] == counts["features"] > GOOD
    features = open_dataset(lake.open(transaction_features)).to_table().to_pylist()
    customers = {row["transaction_id"]: row["customer_id"] for row in features}
    pseudonym = compute_hmac(str(cards("field")).encode(), settings.pseudonym_policy)
    assert customers["0"] == customers["5"] == pseudonym
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

    # Only receipts of the dropped files remain, and a file that is dropped again lands no rows.
    kept_names = {path.name for folder in (settings.processed, settings.failed) for path in folder.iterdir()}
    assert kept_names == {
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
    assert [file.rows for file in land_logged(lake, settings, log_lines) if not file.reason] == [0, 0, 0]
    assert find_leaks(settings.home_path, cards) == {}


def test_the_search_finds_every_one_that_is_written(run: Run) -> None:
    """This verifies the search of the first test: without pseudonyms, it finds the numbers on the disk."""
    settings, cards, _, _ = run(False)
    found = find_leaks(settings.home_path, cards)
    # The table of labels has neither keys nor headers, and an escaped number is written in its escaped form.
    assert cards.numbers.keys() - found.keys() == {"label key", "label header", "escaped"}
    assert open_dataset(Lake.of(settings).open(raw_transactions)).to_table().num_rows > GOOD
