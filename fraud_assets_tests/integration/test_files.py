"""The drop folder: the content of a file lands once and as a whole, labels first, and no file is overwritten."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fraud_assets.core.parsing import parse_transactions
from fraud_assets.core.schema import Table, fraud_labels, quarantined_transactions, raw_transactions
from fraud_assets.engines import landing_tables as landing
from fraud_assets.ingest.files import json_lines
from fraud_assets.ingest.files import landing as files
from fraud_assets.ingest.files.drop_folder import wait_for_changing_entries
from fraud_assets.ingest.files.landing import find_waiting_files
from fraud_assets.ingest.landing import land_once
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.settings import Settings
from fraud_assets_tests.support.dropped import bodies, drop, land, rows_of, transaction

LONG_ID = 9_007_199_254_740_993_123
"""A number of nineteen digits, which a float cannot represent."""

HEADER = "TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,TX_AMOUNT"


def test_json_lines_land_byte_for_byte_and_once_per_content(settings: Settings, lake: Lake) -> None:
    content = b'{"transaction_id": 1}\r\n\n  {"b" :2}\n\xff\xfe\nlast\n\n'
    drop(settings, "a.jsonl", content)
    assert land(lake, settings)[0].rows == 4
    assert bodies(lake) == [b'{"transaction_id": 1}', b'  {"b" :2}', b"\xff\xfe", b"last"]
    assert [row["offset"] for row in rows_of(lake, raw_transactions)] == [0, 2, 3, 4]
    assert (settings.processed / "a.jsonl").read_bytes() == content
    # Drop the same content under another name, and other content under the same name.
    drop(settings, "b.ndjson", content)
    drop(settings, "a.jsonl", b'{"n": 9}\n')
    assert [report.rows for report in land(lake, settings)] == [1, 0]
    assert len(bodies(lake)) == 5
    assert sorted(path.name for path in settings.processed.iterdir()) == ["a.1.jsonl", "a.jsonl", "b.ndjson"]
    assert find_waiting_files(settings) == []


def test_csv_keeps_long_ids_and_every_column(settings: Settings, lake: Lake) -> None:
    drop(settings, "a.csv", f'{HEADER},note\n{LONG_ID},2024-01-01 00:00:00,007,8,1.10,\n2,x,,8,nan,"a,b"\n')
    assert land(lake, settings)[0].rows == 2
    first, second = (json.loads(body) for body in bodies(lake))
    assert first == {
        "transaction_id": str(LONG_ID),
        "tx_datetime": "2024-01-01 00:00:00",
        "customer_id": "007",
        "terminal_id": "8",
        "tx_amount": "1.10",
        "note": None,
    }
    assert second["customer_id"] is None
    assert second["note"] == "a,b"
    good, rejected = parse_transactions(open_dataset(lake.open(raw_transactions)).to_table(), settings.contract)
    assert good["transaction_id"].to_pylist() == [str(LONG_ID)]
    assert rejected.num_rows == 1


def test_a_csv_row_that_starts_with_a_hash_is_not_a_comment(settings: Settings, lake: Lake) -> None:
    rows = [f"{name},2024-01-01T00:00:00Z,1,1,1" for name in ("1", "2", "#3", "4")]
    drop(settings, "a.csv", "\n".join([HEADER, *rows]))
    assert land(lake, settings)[0].rows == 4
    assert [json.loads(body)["transaction_id"] for body in bodies(lake)] == ["1", "2", "#3", "4"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_delimiter_and_the_line_ending_of_a_csv_file_are_detected(
    settings: Settings, lake: Lake, delimiter: str, end: str
) -> None:
    lines = [HEADER + ",note", '1,2024-01-01T00:00:00Z,1,1,1,"a ""b"" c, d; e"', "2,2024-01-01T00:00:00Z,1,1,1,"]
    content = end.join(lines).replace(",", delimiter).encode("utf-8-sig")
    drop(settings, "a.csv", content)
    assert land(lake, settings)[0].rows == 2
    assert [json.loads(body)["note"] for body in bodies(lake)] == [f'a "b" c{delimiter} d; e', None]


@pytest.mark.parametrize("name", ["a*.csv", "a?.csv", "[ab].csv", "a[1].csv", "a'b.csv", "a\\b.csv", "é\n.csv"])
def test_a_file_name_is_not_a_glob_pattern(settings: Settings, lake: Lake, name: str) -> None:
    drop(settings, name, f"{HEADER}\n1,2024-01-01T00:00:00Z,1,1,1\n")
    drop(settings, "ab.csv", f"{HEADER}\n2,2024-01-01T00:00:00Z,1,1,1\n3,2024-01-01T00:00:00Z,1,1,1\n")
    drop(settings, "a.csv", f"{HEADER}\n4,2024-01-01T00:00:00Z,1,1,1\n")
    assert {report.name: report.rows for report in land(lake, settings)} == {
        name.replace("\n", "\\n"): 1,
        "ab.csv": 2,
        "a.csv": 1,
    }
    assert sorted(json.loads(body)["transaction_id"] for body in bodies(lake)) == ["1", "2", "3", "4"]


def test_a_folder_name_like_a_hive_partition_is_not_a_column(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = make_settings(home=tmp_path / "env=prod")
    lake = Lake.of(settings)
    drop(settings, "a.csv", f"{HEADER}\n1,2024-01-01T00:00:00Z,1,1,1\n")
    assert land(lake, settings)[0].rows == 1
    assert "env" not in json.loads(bodies(lake)[0])


def test_parquet_decimals_keep_their_values(settings: Settings, lake: Lake) -> None:
    """Databases export numbers in this form."""
    settings.incoming.mkdir(parents=True)
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    table = pa.table(
        {
            "transaction_id": pa.array([LONG_ID, 7], pa.decimal128(38, 0)),
            "tx_datetime": [moment, moment],
            "customer_id": pa.array([7, 8], pa.decimal128(9, 0)),
            "terminal_id": ["1", "2"],
            "tx_amount": pa.array([Decimal("12.50"), Decimal("1.00")], pa.decimal256(60, 2)),
            "is_fraud": pa.array([1, 0], pa.decimal128(1, 0)),
            "rate": pa.array([1.5, 2.5], pa.float16()),
        }
    )
    pq.write_table(table, settings.incoming / "a.parquet")
    assert land(lake, settings)[0].labels == 2
    good, _ = parse_transactions(open_dataset(lake.open(raw_transactions)).to_table(), settings.contract)
    assert good["transaction_id"].to_pylist() == [str(LONG_ID), "7"]
    assert good["customer_id"].to_pylist() == ["7", "8"]
    assert good["tx_amount"].to_pylist() == [12.5, 1.0]


def table_with(name: str, column: pa.Array) -> pa.Table:
    columns = {known.lower(): ["2024-01-01T00:00:00"] * len(column) for known in HEADER.split(",")}
    return pa.table({**columns, name: column})


@pytest.mark.parametrize(
    ("name", "column", "reason"),
    [
        ("note", pa.array([b"a", b"\xff"]).view(pa.string()), "Invalid UTF8"),
        ("note", pa.ListArray.from_arrays([0, 1, 1], pa.array(["{"], pa.json_())), "Malformed JSON"),
        ("TX_AMOUNT", pa.array([1, 2]), "the same name, ignoring case"),
        ("", pa.array([1, 2]), "an empty name"),
    ],
)
def test_an_unreadable_parquet_file_does_not_affect_other_files(
    settings: Settings, lake: Lake, name: str, column: pa.Array, reason: str
) -> None:
    """Without a check, DuckDB would reject all files after one of these, and would omit the bodies of another."""
    settings.incoming.mkdir(parents=True)
    pq.write_table(table_with(name, column), settings.incoming / "a.parquet")
    pq.write_table(table_with("note", pa.array(["{", "é"], pa.json_())), settings.incoming / "b.parquet")
    bad, good = land(lake, settings)
    assert re.search(reason, bad.reason)
    assert good.rows == 2
    assert [json.loads(body)["note"] if number else body for number, body in enumerate(bodies(lake))][1] == "é"


def test_a_long_name_is_shortened_when_the_file_moves(settings: Settings, lake: Lake) -> None:
    """A file that cannot be moved would block the files after it."""
    drop(settings, "é" * 125 + ".csv", f"{HEADER}\n1,2024-01-01T00:00:00Z,1,1,1\n")
    drop(settings, "b" * 250 + ".csv", "none")
    drop(settings, "c" * 255, "none")
    drop(settings, "z.jsonl", "{}\n")
    assert [report.rows for report in land(lake, settings)] == [0, 0, 1, 1]
    kept = [path.name for folder in (settings.processed, settings.failed) for path in folder.iterdir()]
    assert len(kept) == 6
    assert sum(name.startswith("é" * 50) and name.endswith(".csv") for name in kept) == 1


def test_a_file_name_that_is_not_utf8_is_escaped_or_refused(settings: Settings, lake: Lake) -> None:
    settings.incoming.mkdir(parents=True)
    for name in (b"a\xff.csv", b"b\xff.jsonl", b"c.\xff"):
        Path(os.fsdecode(os.fsencode(settings.incoming) + b"/" + name)).write_bytes(b"{}\n")
    reports = {report.name: report for report in land(lake, settings)}
    assert {name: bool(report.reason) for name, report in reports.items()} == {
        r"a\xff.csv": True, r"b\xff.jsonl": False, r"c.\xff": True
    }  # fmt: skip
    assert "not UTF-8" in reports[r"a\xff.csv"].reason
    assert rows_of(lake, raw_transactions)[0]["topic"] == r"file:b\xff.jsonl"


def test_a_line_over_the_size_limit_is_refused(settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without an end would otherwise fill the memory."""
    monkeypatch.setattr(json_lines, "LARGEST_ROW", 1_000)
    drop(settings, "a.jsonl", b"{}\n" + b" " * 1_001)
    drop(settings, "b.jsonl", b"{}\n" + b"x" * 999 + b"\n{}\n")
    refused, landed = land(lake, settings)
    assert refused.reason == "Line 2 is longer than 1,000 bytes."
    assert landed.rows == 3


def test_parquet_keeps_long_ids_and_converts_times_to_text(settings: Settings, lake: Lake) -> None:
    settings.incoming.mkdir(parents=True)
    moment = datetime(2024, 1, 1, 5, 6, 7, tzinfo=UTC)
    table = pa.table(
        {
            "TRANSACTION_ID": pa.array([LONG_ID, 2, 3], pa.int64()),
            "TX_DATETIME": pa.array([moment] * 3, pa.timestamp("ns", "Europe/Brussels")),
            "CUSTOMER_ID": pa.array(["1", "2", "3"]),
            "TERMINAL_ID": pa.array([1, 2, 3], pa.int32()),
            "TX_AMOUNT": pa.array([0.1, float("nan"), float("inf")]),
            "EXTRA": pa.array([[1], None, []], pa.list_(pa.int8())),
        }
    )
    pq.write_table(table, settings.incoming / "a.parquet")
    assert land(lake, settings)[0].rows == 3
    first = json.loads(bodies(lake)[0])
    assert first["transaction_id"] == LONG_ID
    assert first["tx_amount"] == 0.1
    assert first["EXTRA"] == [1]
    assert datetime.fromisoformat(first["tx_datetime"]) == moment
    good, rejected = parse_transactions(open_dataset(lake.open(raw_transactions)).to_table(), settings.contract)
    assert good["transaction_id"].to_pylist() == [str(LONG_ID)]
    # NaN and infinity are not valid JSON. Such a row goes to quarantine with its bytes.
    assert rejected.num_rows == 2
    assert good["tx_datetime"].to_pylist() == [moment]


def test_labels_land_before_the_transactions(settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def record_order(lake: Lake, table: Table, *rest: Any, **more: Any) -> int:
        order.append(table.name)
        return append_landed(lake, table, *rest, **more)

    monkeypatch.setattr(files, "append_landed", record_order)
    monkeypatch.setattr(landing, "append_landed", record_order)
    drop(
        settings, "a.csv", f"{HEADER},TX_FRAUD\n1,2024-01-01T02:00:00+02:00,1,1,1,0\n2,2024-01-02,1,1,1,1\n3,,1,1,1,\n"
    )
    report = land(lake, settings)[0]
    assert (report.rows, report.labels, report.quarantined_labels) == (3, 1, 1)
    assert order == ["quarantined_transactions", "fraud_labels", "raw_transactions"]
    (label,) = rows_of(lake, fraud_labels)
    assert (label["topic"], label["offset"]) == ("file-labels:a.csv", 0)
    assert (label["transaction_id"], label["is_fraud"]) == ("1", False)
    assert label["labelled_at"] == datetime(2024, 1, 8, tzinfo=UTC)
    assert json.loads(label["value"]) == {
        "transaction_id": "1",
        "is_fraud": False,
        "labelled_at": "2024-01-08T00:00:00.000000Z",
    }
    # 2024-01-02 has no time of day, which makes both the transaction and the label invalid.
    (quarantined,) = rows_of(lake, quarantined_transactions)
    assert (quarantined["reason"], quarantined["offset"]) == ("label_invalid_time", 1)


def test_json_lines_can_contain_labels(settings: Settings, lake: Lake) -> None:
    lines = [
        transaction(LONG_ID, is_fraud=True, labelled_at="2024-02-01T00:00:00Z"),
        transaction(2, is_fraud=False),
        transaction(3),
        transaction(4, is_fraud=None),
    ]
    drop(settings, "a.json", "".join(json.dumps(line) + "\n" for line in lines))
    report = land(lake, settings)[0]
    assert (report.rows, report.labels, report.quarantined_labels) == (4, 2, 0)
    labels = [(row["transaction_id"], row["is_fraud"], row["labelled_at"].day) for row in rows_of(lake, fraud_labels)]
    assert labels == [(str(LONG_ID), True, 1), ("2", False, 8)]


def test_parquet_labels_can_be_floats(settings: Settings, lake: Lake) -> None:
    settings.incoming.mkdir(parents=True)
    columns = {name.lower(): ["2024-01-01T00:00:00"] * 4 for name in HEADER.split(",")}
    pq.write_table(pa.table({**columns, "is_fraud": [0.0, 1.0, None, 0.5]}), settings.incoming / "a.parquet")
    report = land(lake, settings)[0]
    assert (report.rows, report.labels, report.quarantined_labels) == (4, 2, 1)


def test_a_file_can_contain_only_labels(settings: Settings, lake: Lake) -> None:
    drop(settings, "a.csv", "transaction_id,is_fraud,labelled_at\n1,1,2024-01-01T00:00:00Z\n")
    report = land(lake, settings)[0]
    assert (report.rows, report.labels) == (0, 1)
    assert not lake.exists(raw_transactions)


def test_the_field_mapping_applies_to_files(make_settings: Callable[..., Settings], lake: Lake) -> None:
    settings = make_settings(field_mapping="transaction_id=trans_num,tx_amount=amt,is_fraud=bad")
    drop(settings, "a.csv", "Trans_Num,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,AMT,BAD\n1,2024-01-01T00:00:00Z,1,1,2,1\n")
    assert land(lake, settings)[0].labels == 1
    assert json.loads(bodies(lake)[0])["trans_num"] == "1"
    assert json.loads(rows_of(lake, fraud_labels)[0]["value"])["bad"] is True
    good, _ = parse_transactions(open_dataset(lake.open(raw_transactions)).to_table(), settings.contract)
    assert good.num_rows == 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.xlsx", "x", r"suffix '\.xlsx' is unknown"),
        ("a.parquet", "PAR1 no", "cannot be read as PARQUET"),
        ("a.csv", f"{HEADER}\n" + "1,2,3,4,5\n" * 30_000 + "1,2\n", r"line 30,002 has 2 values, but the header has 5"),
        ("a.csv", f"{HEADER}\n1,2\n", r"line 2 has 2 values, but the header has 5"),
        ("a.csv", f"{HEADER},tx_amount\n1,2,3,4,5,6\n", "the same name"),
        ("a.csv", f'{HEADER}\n"1,2,3,4,5\n', "a quoted value in line 2 is not closed"),
        ("a.csv", f"{HEADER}\n1,2,3,4,5\r\n1,2,3,4,5\n", "different line endings"),
        ("a.csv", "a,b\n1,2\n", "has no column transaction_id"),
        ("a.csv", "", "has no column|cannot be read"),
        ("a.json", "[\n{}\n]\n", "JSON array"),
        ("a.jsonl", "\n\n", "no row"),
        ("a.jsonl", "no json\n", "JSON object"),
    ],
)
def test_unusable_files_fail_with_a_reason(
    settings: Settings, lake: Lake, name: str, content: str, reason: str
) -> None:
    for suffix in ("", ".1"):
        drop(settings, name, content)
        (report,) = land(lake, settings)
        stem, dot, extension = name.rpartition(".")
        expected_path = settings.failed / f"{stem}{suffix}{dot}{extension}"
        assert report.moved_to == expected_path
        assert expected_path.read_bytes().decode() == content
        reason_text = expected_path.with_name(f"{expected_path.name}.reason.txt").read_text()
        assert re.search(reason, reason_text)
        assert report.reason in reason_text
    assert not lake.exists(raw_transactions)


def test_recent_hidden_and_partial_files_are_skipped(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(file_quiet_seconds=60)
    old = time.time() - 120
    for name in ("b.csv", "a.csv", ".hidden.csv", "c.csv.part"):
        os.utime(drop(settings, name, "x"), (old, old))
    drop(settings, "fresh.csv", "x")
    (settings.incoming / "folder").mkdir()
    assert [path.name for path in find_waiting_files(settings)] == ["a.csv", "b.csv"]


def test_landing_once_waits_for_a_file_that_was_just_dropped(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(file_quiet_seconds=0.5)
    drop(settings, "a.csv", f"{HEADER}\n1,2024-01-01T00:00:00Z,1,1,1\n")
    assert find_waiting_files(settings) == []
    assert land_once(Lake.of(settings), settings)[raw_transactions.name].rows == 1


def test_landing_once_does_not_wait_for_a_file_that_keeps_changing(
    make_settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_settings(file_quiet_seconds=0.2)
    drop(settings, "a.csv", f"{HEADER}\n1,2024-01-01T00:00:00Z,1,1,1\n")
    file = settings.incoming / "a.csv"

    def touch() -> bool:
        file.touch()
        return False

    wait_for_changing_entries(settings, touch)
    assert "a.csv is still being written" in caplog.text


@pytest.mark.parametrize("table", [fraud_labels, raw_transactions])
def test_a_landing_after_a_kill_repeats_no_row(
    make_settings: Callable[..., Settings], lake: Lake, monkeypatch: pytest.MonkeyPatch, table: Table
) -> None:
    settings = make_settings(land_batch_rows=100)
    rows = "".join(f"{n},2024-01-01T00:00:00Z,1,1,1,{n % 2}\n" for n in range(1000))
    drop(settings, "a.csv", f"{HEADER},TX_FRAUD\n{rows}")
    commits = 0

    def interrupt_fourth_commit(lake: Lake, into: Table, *rest: Any, **more: Any) -> int:
        nonlocal commits
        commits += into is table
        if commits == 4:
            raise KeyboardInterrupt
        return append_landed(lake, into, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(files, "append_landed", interrupt_fourth_commit)
        patch.setattr(landing, "append_landed", interrupt_fourth_commit)
        with pytest.raises(KeyboardInterrupt):
            land(lake, settings)
    # The batch size and the file name may change, because offsets are row numbers of the content.
    (settings.incoming / "a.csv").rename(settings.incoming / "renamed.csv")
    other_settings = make_settings(land_batch_rows=70)
    land(lake, other_settings)
    for landed in (raw_transactions, fraud_labels):
        assert sorted(row["offset"] for row in rows_of(lake, landed)) == list(range(1000))
    ids = {row["offset"]: json.loads(row["value"])["transaction_id"] for row in rows_of(lake, raw_transactions)}
    assert all(ids[n] == str(n) for n in range(1000))


def test_a_large_file_lands_in_several_passes_with_the_same_rows(
    make_settings: Callable[..., Settings], lake: Lake
) -> None:
    settings = make_settings(land_batch_bytes=20_000)
    rows = "".join(f"{n},2024-01-01T00:00:00Z,1,1,1,0\n" for n in range(2000))
    drop(settings, "a.csv", f"{HEADER},TX_FRAUD\n{rows}")
    report = land(lake, settings)[0]
    assert (report.rows, report.labels) == (2000, 2000)
    ids = [json.loads(body)["transaction_id"] for body in bodies(lake)]
    assert ids == [str(n) for n in range(2000)]
