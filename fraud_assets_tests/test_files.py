"""The drop folder: exactly once by content, labels first, nothing half-landed, nothing overwritten."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fraud_assets.core.parsing import parse_transactions
from fraud_assets.core.schema import Table, fraud_labels, quarantined_transactions, raw_transactions
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.tables import Lake, dataset_of
from fraud_assets.pipeline import files, landing
from fraud_assets.pipeline.files import FileReport, land_files, waiting_files
from fraud_assets.settings import Settings

LONG_ID = 9_007_199_254_740_993_123
"""Nineteen digits, which no float holds."""

HEADER = "TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,TX_AMOUNT"


def silent(_: str) -> None:
    """Progress that nobody reads."""


def drop(settings: Settings, name: str, content: str | bytes) -> Path:
    settings.incoming.mkdir(parents=True, exist_ok=True)
    path = settings.incoming / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def land(lake: Lake, settings: Settings) -> list[FileReport]:
    return land_files(lake, settings, silent)


def rows_of(lake: Lake, table: Table) -> list[dict[str, Any]]:
    rows = dataset_of(lake.open(table)).to_table().to_pylist()
    return sorted(rows, key=lambda row: (row["topic"], row["offset"]))


def bodies(lake: Lake) -> list[bytes]:
    return [row["value"] for row in rows_of(lake, raw_transactions)]


def transaction(number: int, **more: Any) -> dict[str, Any]:
    return {
        "transaction_id": number,
        "tx_datetime": "2024-01-01T02:00:00+02:00",
        "customer_id": 1,
        "terminal_id": 2,
        "tx_amount": 3.5,
        **more,
    }


def test_json_lines_land_byte_for_byte_once_by_content(settings: Settings, lake: Lake) -> None:
    content = b'{"transaction_id": 1}\r\n\n  {"b" :2}\n\xff\xfe\nlast\n\n'
    drop(settings, "a.jsonl", content)
    assert land(lake, settings)[0].rows == 4
    assert bodies(lake) == [b'{"transaction_id": 1}', b'  {"b" :2}', b"\xff\xfe", b"last"]
    assert [row["offset"] for row in rows_of(lake, raw_transactions)] == [0, 2, 3, 4]
    assert (settings.processed / "a.jsonl").read_bytes() == content
    # The same content under another name, and another content under the same name.
    drop(settings, "b.ndjson", content)
    drop(settings, "a.jsonl", b'{"n": 9}\n')
    assert [report.rows for report in land(lake, settings)] == [1, 0]
    assert len(bodies(lake)) == 5
    assert sorted(path.name for path in settings.processed.iterdir()) == ["a.1.jsonl", "a.jsonl", "b.ndjson"]
    assert waiting_files(settings) == []


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
    good, rejected = parse_transactions(dataset_of(lake.open(raw_transactions)).to_table(), settings)
    assert good["transaction_id"].to_pylist() == [str(LONG_ID)]
    assert rejected.num_rows == 1


def test_parquet_keeps_long_ids_and_makes_times_text(settings: Settings, lake: Lake) -> None:
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
    good, rejected = parse_transactions(dataset_of(lake.open(raw_transactions)).to_table(), settings)
    assert good["transaction_id"].to_pylist() == [str(LONG_ID)]
    # NaN and infinity are no JSON; such a row ends in quarantine with its bytes.
    assert rejected.num_rows == 2
    assert good["tx_datetime"].to_pylist() == [moment]


def test_labels_land_before_the_transactions(settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noted(lake: Lake, table: Table, *rest: Any, **more: Any) -> int:
        order.append(table.name)
        return append_landed(lake, table, *rest, **more)

    monkeypatch.setattr(files, "append_landed", noted)
    monkeypatch.setattr(landing, "append_landed", noted)
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
    # 2024-01-02 has no time of day: transaction and label both say so.
    (refused,) = rows_of(lake, quarantined_transactions)
    assert (refused["reason"], refused["offset"]) == ("label_invalid_time", 1)


def test_labels_of_json_lines(settings: Settings, lake: Lake) -> None:
    lines = [
        transaction(LONG_ID, is_fraud=True, labelled_at="2024-02-01T00:00:00Z"),
        transaction(2, is_fraud=False),
        transaction(3),
        transaction(4, is_fraud=None),
    ]
    drop(settings, "a.json", "".join(json.dumps(line) + "\n" for line in lines))
    report = land(lake, settings)[0]
    assert (report.rows, report.labels, report.quarantined_labels) == (4, 2, 0)
    found = [(row["transaction_id"], row["is_fraud"], row["labelled_at"].day) for row in rows_of(lake, fraud_labels)]
    assert found == [(str(LONG_ID), True, 1), ("2", False, 8)]


def test_float_labels_of_parquet(settings: Settings, lake: Lake) -> None:
    settings.incoming.mkdir(parents=True)
    columns = {name.lower(): ["2024-01-01T00:00:00"] * 4 for name in HEADER.split(",")}
    pq.write_table(pa.table({**columns, "is_fraud": [0.0, 1.0, None, 0.5]}), settings.incoming / "a.parquet")
    report = land(lake, settings)[0]
    assert (report.rows, report.labels, report.quarantined_labels) == (4, 2, 1)


def test_a_file_of_labels_alone(settings: Settings, lake: Lake) -> None:
    drop(settings, "a.csv", "transaction_id,is_fraud,labelled_at\n1,1,2024-01-01T00:00:00Z\n")
    report = land(lake, settings)[0]
    assert (report.rows, report.labels) == (0, 1)
    assert not lake.exists(raw_transactions)


def test_mapped_names(make_settings: Callable[..., Settings], lake: Lake) -> None:
    settings = make_settings(field_mapping="transaction_id=trans_num,tx_amount=amt,is_fraud=bad")
    drop(settings, "a.csv", "Trans_Num,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,AMT,BAD\n1,2024-01-01T00:00:00Z,1,1,2,1\n")
    assert land(lake, settings)[0].labels == 1
    assert json.loads(bodies(lake)[0])["trans_num"] == "1"
    assert json.loads(rows_of(lake, fraud_labels)[0]["value"])["bad"] is True
    good, _ = parse_transactions(dataset_of(lake.open(raw_transactions)).to_table(), settings)
    assert good.num_rows == 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.xlsx", "x", r"suffix '\.xlsx' is unknown"),
        ("a.parquet", "PAR1 no", "cannot be read as PARQUET"),
        ("a.csv", f"{HEADER}\n" + "1,2,3,4,5\n" * 30_000 + "1,2\n", "cannot be read as CSV"),
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
        stem, dot, end = name.rpartition(".")
        moved = settings.failed / f"{stem}{suffix}{dot}{end}"
        assert report.moved_to == moved
        assert moved.read_text() == content
        told = moved.with_name(f"{moved.name}.reason.txt").read_text()
        assert re.search(reason, told)
        assert report.reason in told
    assert not lake.exists(raw_transactions)


def test_only_quiet_files_are_taken(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(file_quiet_seconds=60)
    old = time.time() - 120
    for name in ("b.csv", "a.csv", ".hidden.csv", "c.csv.part"):
        os.utime(drop(settings, name, "x"), (old, old))
    drop(settings, "fresh.csv", "x")
    (settings.incoming / "folder").mkdir()
    assert [path.name for path in waiting_files(settings)] == ["a.csv", "b.csv"]


@pytest.mark.parametrize("table", [fraud_labels, raw_transactions])
def test_a_killed_landing_goes_on_and_repeats_nothing(
    make_settings: Callable[..., Settings], lake: Lake, monkeypatch: pytest.MonkeyPatch, table: Table
) -> None:
    settings = make_settings(land_batch_rows=100)
    rows = "".join(f"{n},2024-01-01T00:00:00Z,1,1,1,{n % 2}\n" for n in range(1000))
    drop(settings, "a.csv", f"{HEADER},TX_FRAUD\n{rows}")
    commits = 0

    def killed(lake: Lake, into: Table, *rest: Any, **more: Any) -> int:
        nonlocal commits
        commits += into is table
        if commits == 4:
            raise KeyboardInterrupt
        return append_landed(lake, into, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(files, "append_landed", killed)
        patch.setattr(landing, "append_landed", killed)
        with pytest.raises(KeyboardInterrupt):
            land(lake, settings)
    # Another batch size and another name do not matter: offsets are rows of the content.
    (settings.incoming / "a.csv").rename(settings.incoming / "renamed.csv")
    again = make_settings(land_batch_rows=70)
    land(lake, again)
    for landed in (raw_transactions, fraud_labels):
        assert sorted(row["offset"] for row in rows_of(lake, landed)) == list(range(1000))
    ids = {row["offset"]: json.loads(row["value"])["transaction_id"] for row in rows_of(lake, raw_transactions)}
    assert all(ids[n] == str(n) for n in range(1000))


def test_large_files_are_converted_in_passes_with_the_same_rows(
    make_settings: Callable[..., Settings], lake: Lake
) -> None:
    settings = make_settings(land_batch_bytes=20_000)
    rows = "".join(f"{n},2024-01-01T00:00:00Z,1,1,1,0\n" for n in range(2000))
    drop(settings, "a.csv", f"{HEADER},TX_FRAUD\n{rows}")
    report = land(lake, settings)[0]
    assert (report.rows, report.labels) == (2000, 2000)
    ids = [json.loads(body)["transaction_id"] for body in bodies(lake)]
    assert ids == [str(n) for n in range(2000)]
