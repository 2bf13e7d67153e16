"""The values in dropped files: each is read correctly, or the file is refused with a reason."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fraud_assets.core.parsing import parse_transactions
from fraud_assets.core.schema import fraud_labels, quarantined_transactions, raw_transactions
from fraud_assets.errors import SettingError
from fraud_assets.ingest.files import parquet_file
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.operations.erasure import erase_customer
from fraud_assets.operations.kept_files import find_customer_files
from fraud_assets.settings import Settings
from fraud_assets_tests.support.dropped import bodies, drop, land, rows_of, transaction

HEADER = "transaction_id,tx_datetime,customer_id,terminal_id,tx_amount"
TIME = "2026-03-29T02:30:00Z"
GUID = UUID("0b242abb-623a-4c57-8575-680df30655b9")


def drop_parquet(settings: Settings, name: str, columns: dict[str, Any], **options: Any) -> Path:
    """Drop a Parquet file of valid transactions in which these columns replace the valid ones."""
    count = len(next(iter(columns.values())))
    good: dict[str, Any] = {
        "transaction_id": [f"{name}-{number}" for number in range(count)],
        "tx_datetime": [TIME] * count,
        "customer_id": ["c"] * count,
        "terminal_id": ["t"] * count,
        "tx_amount": [1.5] * count,
    }
    settings.incoming.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**good, **columns}), settings.incoming / name, **options)
    return settings.incoming / name


def to_jsonl(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parse_landed(lake: Lake, settings: Settings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the valid and the rejected rows of all files, in the order of files and rows."""
    raw = (
        open_dataset(lake.open(raw_transactions)).to_table().sort_by([("topic", "ascending"), ("offset", "ascending")])
    )
    good, bad = parse_transactions(raw, settings.contract)
    return good.to_pylist(), bad.to_pylist()


def landed_labels(lake: Lake) -> dict[str, bool]:
    return {row["transaction_id"]: row["is_fraud"] for row in rows_of(lake, fraud_labels)}


# --- CSV: number of values, missing values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ("d2,2026-03-29T02:30:00Z,c,t,57,1,\n", 2),
        ('d2,2026-03-29T02:30:00Z,c,t,57,1,""\n', 2),
        ('d1,2026-03-29T02:30:00Z,"c\nd",t,57,1\nd2,2026-03-29T02:30:00Z,c,t,57,1,,,\n', 4),
    ],
)
def test_a_row_with_too_many_values_fails_the_file_even_if_they_are_empty(
    settings: Settings, lake: Lake, rows: str, line: int
) -> None:
    drop(settings, "a.csv", f"{HEADER},is_fraud\n{rows}")
    (report,) = land(lake, settings)
    assert re.search(rf"line {line} has \d values, but the header has 6", report.reason)
    assert report.moved_to == settings.failed / "a.csv"
    assert not lake.exists(raw_transactions)


def test_a_missing_customer_id_in_a_csv_file_is_null(settings: Settings, lake: Lake) -> None:
    spellings = ["NULL", "null", "nan", "NaN", "None", "NaT", "<NA>", r"\N", "", '""']
    texts = ['"NULL"', '"nan"', "none", "Null", "N/A", "4711"]
    rows = [f"{number},{TIME},{value},t,1,NULL" for number, value in enumerate([*spellings, *texts])]
    drop(settings, "a.csv", "\n".join([f"{HEADER},is_fraud", *rows]))
    assert land(lake, settings)[0].labels == 0
    good, bad = parse_landed(lake, settings)
    assert [row["customer_id"] for row in good] == ["NULL", "nan", "none", "Null", "N/A", "4711"]
    assert {row["detail"] for row in bad} == {"customer_id is null; expected an integer or a string"}
    assert len(bad) == len(spellings)
    assert not lake.exists(quarantined_transactions) or not rows_of(lake, quarantined_transactions)


def test_an_erasure_keeps_the_values_of_the_other_rows_of_a_csv_file(settings: Settings, lake: Lake) -> None:
    drop(settings, "a.csv", f'{HEADER}\n1,{TIME},NULL,t,1\n2,{TIME},"NULL",t,1\n3,{TIME},4711,t,1\n')
    land(lake, settings)
    erase_customer(lake, settings, "4711")
    (settings.processed / "a.csv").rename(settings.incoming / "b.csv")
    land(lake, settings)
    landed_again = [row["value"] for row in rows_of(lake, raw_transactions) if row["topic"] == "file:b.csv"]
    assert [json.loads(body)["customer_id"] for body in landed_again] == [None, "NULL"]


# --- Labels -----------------------------------------------------------------------------------------------------------


def test_flags_with_a_zero_fraction_are_labels(settings: Settings, lake: Lake) -> None:
    rows = [f"c{number},{TIME},c,t,1,{label}" for number, label in enumerate(["1.0", "0.0", "", "0.5", "1", "0.00"])]
    drop(settings, "a.csv", "\n".join([f"{HEADER},is_fraud", *rows]))
    drop(
        settings,
        "b.jsonl",
        to_jsonl(*(transaction(n, is_fraud=label) for n, label in enumerate([1.0, 0.0, None, 0.5, "1.0", "0.5"]))),
    )
    drop_parquet(settings, "c", {"is_fraud": pa.array([1.0, 0.0, None, 0.5])}).rename(settings.incoming / "c.parquet")
    reports = land(lake, settings)
    assert [(report.labels, report.quarantined_labels) for report in reports] == [(4, 1), (3, 2), (2, 1)]
    assert landed_labels(lake) == {
        "c0": True, "c1": False, "c4": True, "c5": False, "0": True, "1": False, "4": True, "c-0": True, "c-1": False
    }  # fmt: skip


def test_a_nested_flag_is_not_a_label(settings: Settings, lake: Lake) -> None:
    drop(settings, "a.jsonl", to_jsonl(transaction(1, meta={"is_fraud": 1}), transaction(2, note='"is_fraud": 1')))
    drop(
        settings,
        "b.csv",
        f'{HEADER},meta\n3,{TIME},c,t,1,"{{""is_fraud"": 1}}"\n',
    )
    drop_parquet(settings, "c.parquet", {"meta": [{"is_fraud": 1}]})
    assert [(report.rows, report.labels, report.quarantined_labels) for report in land(lake, settings)] == [
        (2, 0, 0), (1, 0, 0), (1, 0, 0)
    ]  # fmt: skip
    drop(settings, "d.jsonl", to_jsonl(transaction(4, meta={"is_fraud": 1}, is_fraud=0), transaction(5, IS_FRAUD=1)))
    assert land(lake, settings)[0].labels == 2
    assert landed_labels(lake) == {"4": False, "5": True}


# --- Identifiers as bytes ---------------------------------------------------------------------------------------------

NAME = 'Zoë "Z"'
BYTE_COLUMNS = {
    "binary": lambda values: pa.array(values, pa.binary()),
    "large_binary": lambda values: pa.array(values, pa.large_binary()),
    "binary_view": lambda values: pa.array(values, pa.binary_view()),
    "fixed_size_binary": lambda values: pa.array(values, pa.binary(len(NAME.encode()))),
    "dictionary": lambda values: pa.array(values, pa.binary()).dictionary_encode(),
}


@pytest.mark.parametrize("kind", BYTE_COLUMNS)
@pytest.mark.parametrize("store_schema", [True, False])
def test_a_customer_id_stored_as_bytes_is_read_as_text(
    settings: Settings, lake: Lake, kind: str, store_schema: bool
) -> None:
    column = BYTE_COLUMNS[kind]([NAME.encode(), None])
    drop_parquet(
        settings,
        "a.parquet",
        {"customer_id": column, "note": pa.array(["a", "b"], pa.string_view())},
        store_schema=store_schema,
    )
    drop(settings, "b.jsonl", to_jsonl(transaction(7, customer_id=NAME)))
    land(lake, settings)
    assert [row["customer_id"] for row in parse_landed(lake, settings)[0]] == [NAME] * 2
    found = {file.path.name: file.rows for file in find_customer_files(settings, settings.processed, [NAME])}
    assert found == {"a.parquet": 1, "b.jsonl": 1}
    report = erase_customer(lake, settings, NAME)
    assert report.tables["raw_transactions"] == 2
    assert sum(report.files.values()) == 2


@pytest.mark.parametrize("store_schema", [True, False])
def test_a_uuid_is_read_as_text_and_bytes_that_are_not_text_are_rejected(
    settings: Settings, lake: Lake, store_schema: bool
) -> None:
    uuids = pa.array([GUID.bytes], pa.uuid())
    drop_parquet(settings, "a.parquet", {"customer_id": uuids}, store_schema=store_schema)
    drop_parquet(settings, "b.parquet", {"customer_id": pa.array([b"\xff\x01", b"4711"])}, store_schema=store_schema)
    drop_parquet(
        settings, "c.parquet", {"customer_id": pa.array([GUID.bytes], pa.binary(16))}, store_schema=store_schema
    )
    assert [report.rows for report in land(lake, settings)] == [1, 2, 1]
    good, bad = parse_landed(lake, settings)
    assert [row["customer_id"] for row in good] == [str(GUID), "4711"]
    assert [(row["reason"], "ff01" in row["detail"] or GUID.hex in row["detail"]) for row in bad] == [
        ("wrong_type", True)
    ] * 2
    found = {file.path.name: file.rows for file in find_customer_files(settings, settings.processed, [str(GUID)])}
    assert found == {"a.parquet": 1}


# --- Times ------------------------------------------------------------------------------------------------------------


def test_times_outside_the_range_of_nanoseconds_are_kept(settings: Settings, lake: Lake) -> None:
    """Spark and Impala write such times as INT96."""
    days = {"1500-01-01": -14_855_270, "2026-01-01": 20_454, "2500-01-01": 193_579, "9999-12-31": 2_932_896}
    path = drop_parquet(
        settings,
        "a.parquet",
        {
            "tx_datetime": pa.array([days["2026-01-01"] * 86_400_000_000] * 3, pa.timestamp("us", "UTC")),
            "labelled_at": pa.array(
                [days[day] * 86_400_000_000 for day in ("2500-01-01", "9999-12-31", "9999-12-31")], pa.int64()
            ).cast(pa.timestamp("us", "UTC")),
            "is_fraud": [1, 0, 0],
            "customer_id": ["c", "c", "gone"],
        },
        use_deprecated_int96_timestamps=True,
    )
    assert pq.read_metadata(path).schema.column(5).physical_type == "INT96"
    assert land(lake, settings)[0].labels == 3
    assert [row["labelled_at"] for row in rows_of(lake, fraud_labels)][:2] == [
        datetime(2500, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, tzinfo=UTC),
    ]
    assert [row["tx_datetime"] for row in parse_landed(lake, settings)[0]] == [datetime(2026, 1, 1, tzinfo=UTC)] * 3
    # A kept file is rewritten with the same times.
    erase_customer(lake, settings, "gone")
    kept = pq.read_table(settings.processed / "a.parquet")
    assert [time.year for time in kept["labelled_at"].to_pylist()] == [2500, 9999]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_time_in_any_unit_is_correct_or_rejected(settings: Settings, lake: Lake, unit: str) -> None:
    second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[unit]
    far = 2**62 // (1_000 if unit == "s" else 1)  # Parquet stores seconds as milliseconds
    numbers = [1_767_225_600 * second, far, -far, None]
    drop_parquet(settings, "a.parquet", {"tx_datetime": pa.array(numbers, pa.int64()).cast(pa.timestamp(unit))})
    assert land(lake, settings)[0].rows == 4
    good, bad = parse_landed(lake, settings)
    years = [row["tx_datetime"].year for row in good]
    assert years == ([2026, 2116, 1823][: len(years)] if unit == "ns" else [2026])
    assert {row["reason"] for row in bad} <= {"invalid_time", "wrong_type", "future_time"}


# --- Names ------------------------------------------------------------------------------------------------------------


def test_uppercase_names_are_corrected_in_every_format(settings: Settings, lake: Lake) -> None:
    row = {**transaction(1), "tx_amount": 1.10, "note": "é"}
    upper = {name.upper(): value for name, value in row.items()}
    drop(settings, "a.jsonl", to_jsonl(upper, row) + '{"TRANSACTION_ID": 9007199254740993123, "Tx_Datetime": "x"}\n')
    drop_parquet(settings, "b.parquet", {"x": [1]})
    table = pq.read_table(settings.incoming / "b.parquet")
    pq.write_table(table.rename_columns([name.upper() for name in table.column_names]), settings.incoming / "b.parquet")
    land(lake, settings)
    good, bad = parse_landed(lake, settings)
    assert [row["tx_amount"] for row in good] == [1.1, 1.1, 1.5]
    first, second, third = bodies(lake)[:3]
    assert first.startswith(b'{"transaction_id": 1, ')
    assert json.loads(first)["NOTE"] == "é"
    assert second == json.dumps(row).encode()
    assert third == b'{"transaction_id": 9007199254740993123, "tx_datetime": "x"}'
    assert [row["reason"] for row in bad] == ["missing_field"]
    found = {file.path.name: file.rows for file in find_customer_files(settings, settings.processed, ["1"])}
    assert found == {"a.jsonl": 2}


def test_a_nested_field_is_mapped_in_every_format(make_settings: Callable[..., Settings], lake: Lake) -> None:
    settings = make_settings(field_mapping="transaction_id=after.id,customer_id=after.card.owner,is_fraud=after.fraud")
    flat = {"tx_datetime": TIME, "terminal_id": "t", "tx_amount": 2}
    nested = {"after": {"id": "n", "card": {"owner": "4711"}, "fraud": 1}, **flat}
    drop(settings, "a.jsonl", to_jsonl(nested, {**nested, "after": {"id": "m", "card": None}}))
    drop(settings, "b.csv", f"after.id,after.card.owner,{','.join(flat)}\nc,4711,{TIME},t,2\n")
    settings.incoming.mkdir(exist_ok=True)
    pq.write_table(
        pa.table({**{name: [value] for name, value in flat.items()}, "after": [{**nested["after"], "id": "p"}]}),
        settings.incoming / "c.parquet",
    )
    reports = land(lake, settings)
    assert [(report.rows, report.labels, report.reason) for report in reports] == [(2, 1, ""), (1, 0, ""), (1, 1, "")]
    good, bad = parse_landed(lake, settings)
    assert [(row["transaction_id"], row["customer_id"]) for row in good] == [
        ("n", "4711"),
        ("c", "4711"),
        ("p", "4711"),
    ]
    assert [row["detail"] for row in bad] == ["after.card.owner (customer_id) is missing"]
    assert landed_labels(lake) == {"n": True, "p": True}
    report = erase_customer(lake, settings, "4711")
    assert report.tables["raw_transactions"] == 3
    assert sum(report.files.values()) == 3


def test_a_nested_field_of_a_column_is_read_like_a_column(make_settings: Callable[..., Settings], lake: Lake) -> None:
    settings = make_settings(field_mapping="customer_id=after.who,tx_datetime=after.at")
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    kinds: list[tuple[Any, bytes]] = [(pa.uuid(), GUID.bytes), (pa.binary(), b"Zo\xc3\xab"), (pa.binary(), b"\xff")]
    for number, (kind, value) in enumerate(kinds):
        after = pa.StructArray.from_arrays(
            [pa.array([value], kind), pa.array([moment], pa.timestamp("ns", "UTC"))], ["who", "at"]
        )
        drop_parquet(settings, f"{number}.parquet", {"after": after})
        path = settings.incoming / f"{number}.parquet"
        pq.write_table(pq.read_table(path).drop_columns(["customer_id", "tx_datetime"]), path)
    assert [report.reason for report in land(lake, settings)] == ["", "", ""]
    good, bad = parse_landed(lake, settings)
    assert [(row["customer_id"], row["tx_datetime"]) for row in good] == [(str(GUID), moment), ("Zoë", moment)]
    assert [row["detail"][:40] for row in bad] == ['after.who (customer_id) is {"bytes": "ff']
    assert sum(file.rows for file in find_customer_files(settings, settings.processed, [str(GUID), "Zoë"])) == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"field_mapping": "transaction_id=after..id"}, "empty part"),
        (
            {"field_mapping": "transaction_id=after.id", "pseudonymise": "after", "pseudonym_key": "k" * 32},
            "after contains transaction_id",
        ),
    ],
)
def test_an_invalid_field_path_is_refused(
    make_settings: Callable[..., Settings], overrides: dict[str, str], words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        make_settings(**overrides)


# --- Files of another format ------------------------------------------------------------------------------------------


def zipped(content: bytes) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("a.csv", content)
    return whole.getvalue()


TEXT = f"{HEADER}\n1,{TIME},c,t,1\n"
OTHER_FORMATS = {
    "gzip": (gzip.compress(TEXT.encode()), "gzip archive. Decompress it"),
    "ZIP": (zipped(TEXT.encode()), "ZIP archive or an Excel workbook. Unpack it"),
    "UTF-16": (TEXT.encode("utf-16"), "UTF-16 text. Save it as UTF-8"),
    "UTF-16 without mark": (TEXT.encode("utf-16-le"), "UTF-16 text. Save it as UTF-8"),
    "Avro": (b"Obj\x01\x04\x14avro.codec", "Avro file"),
}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_an_unsupported_format_is_reported_with_the_fix(settings: Settings, lake: Lake, suffix: str, kind: str) -> None:
    content, words = OTHER_FORMATS[kind]
    drop(settings, f"a{suffix}", content)
    (report,) = land(lake, settings)
    assert words in report.reason
    assert report.moved_to == settings.failed / f"a{suffix}"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.parquet", TEXT.encode(), "It is text, not Parquet"),
        ("a.parquet", b"", "It is empty"),
        ("a.csv", b"PAR1\x15\x04", "It is a Parquet file. Give it the suffix .parquet"),
        ("a.csv", TEXT.replace("c,", "Zoë,").encode("latin-1"), "UTF-8"),
        ("a.json", json.dumps(transaction(1), indent=2).encode(), "pretty-printed"),
        ("a.jsonl", json.dumps({"rows": [transaction(n) for n in range(50)]}, indent=1).encode(), "pretty-printed"),
        ("a.json", b"\xef\xbb\xbf" + json.dumps(transaction(1), indent=2).encode(), "pretty-printed"),
        ("a.json", b"\xef\xbb\xbf[\n{}\n]", "JSON array"),
    ],
)
def test_the_reason_names_the_actual_format_of_a_file(
    settings: Settings, lake: Lake, name: str, content: bytes, words: str
) -> None:
    drop(settings, name, content)
    (report,) = land(lake, settings)
    assert words in report.reason
    assert not lake.exists(raw_transactions)


def test_a_broken_first_line_is_not_taken_for_another_format(settings: Settings, lake: Lake) -> None:
    drop(settings, "a.jsonl", '{"transaction_id": 1, "tx_\n' + to_jsonl(transaction(2)))
    drop(settings, "b.csv", f"ORC,BZh,{HEADER}\n,,1,{TIME},c,t,1\n")
    assert [report.rows for report in land(lake, settings)] == [2, 1]


def test_a_byte_order_mark_is_not_part_of_the_first_row(settings: Settings, lake: Lake) -> None:
    mark = b"\xef\xbb\xbf"
    first = json.dumps(transaction(1, is_fraud=1)).encode() + b"\n"
    # Two concatenated files have a second mark in the middle.
    drop(settings, "a.jsonl", mark + first + mark + to_jsonl(transaction(2, is_fraud=0)).encode())
    drop(settings, "b.jsonl", mark + to_jsonl({name.upper(): value for name, value in transaction(3).items()}).encode())
    assert [(report.rows, report.labels) for report in land(lake, settings)] == [(2, 2), (1, 0)]
    assert [row["transaction_id"] for row in parse_landed(lake, settings)[0]] == ["1", "2", "3"]
    report = erase_customer(lake, settings, "1")
    assert sum(report.files.values()) == 3


# --- Parquet files that exceed memory when decompressed ---------------------------------------------------------------


def test_a_parquet_file_of_large_rows_lands_in_parts(make_settings: Callable[..., Settings], lake: Lake) -> None:
    """A dictionary repeats a value of 2 MB 60 times: 140 kB decompress to 120 MB, which would be one chunk."""
    settings = make_settings(land_batch_bytes=8_000_000, duckdb_memory_limit="200MB")
    note = pa.DictionaryArray.from_arrays(pa.array([0] * 60, pa.int32()), pa.array(["x" * 2_000_000]))
    path = drop_parquet(settings, "a.parquet", {"note": note}, dictionary_pagesize_limit=10_000_000, compression="zstd")
    assert path.stat().st_size < 140_000
    drop(settings, "b.jsonl", to_jsonl(transaction(1)))
    assert [report.rows for report in land(lake, settings)] == [60, 1]
    sizes = [len(body) for body in bodies(lake)[:60]]
    assert min(sizes) > 2_000_000


def test_a_file_that_exceeds_memory_fails_alone(make_settings: Callable[..., Settings], lake: Lake) -> None:
    settings = make_settings(duckdb_memory_limit="10MB")
    drop_parquet(settings, "a.parquet", {"note": ["x" * 30_000_000]}, compression="zstd")
    drop(settings, "b.jsonl", to_jsonl(transaction(1)))
    failed, landed = land(lake, settings)
    assert "FRAUD_DUCKDB_MEMORY_LIMIT" in failed.reason
    assert failed.moved_to == settings.failed / "a.parquet"
    assert landed.rows == 1


def test_a_column_that_decompresses_to_far_more_bytes_is_refused(
    settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_file, "_LARGEST_UNPACKED", 1_000_000)
    monkeypatch.setattr(parquet_file, "_MOST_GROWTH", 100)
    drop_parquet(settings, "a.parquet", {"note": ["x" * 3_000_000]}, compression="zstd", use_dictionary=False)
    drop_parquet(settings, "b.parquet", {"note": ["x"]})
    refused, landed = land(lake, settings)
    assert re.search(r"column note of row group 1 unpacks from [\d,]+ to 3,\d+,\d+ bytes", refused.reason)
    assert landed.rows == 1


def test_a_row_group_is_read_in_parts_of_the_landing_batch_size(
    make_settings: Callable[..., Settings], lake: Lake
) -> None:
    settings = make_settings(land_batch_bytes=50_000)
    count = 3_000
    drop_parquet(settings, "a.parquet", {"note": [f"{number:0200}" for number in range(count)]}, row_group_size=1_000)
    parts = list(parquet_file.read_parquet_parts(settings.incoming / "a.parquet", 10_000, 50_000))
    assert max(part.nbytes for part in parts) < 150_000
    assert land(lake, settings)[0].rows == count
    assert [json.loads(body)["note"] for body in bodies(lake)] == [f"{number:0200}" for number in range(count)]
