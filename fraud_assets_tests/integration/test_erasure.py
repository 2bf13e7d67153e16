"""Erasure removes a customer from every table and kept file and nothing else, even after a SIGKILL."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from deltalake.exceptions import CommitFailedError

from fraud_assets.cli import cli
from fraud_assets.core.schema import (
    Table,
    fraud_labels,
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.engines.landing_tables import append_labels
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.batches import find_pending
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.positions import SourcePartition, committed_offset
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.operations.erasure import erase_customer
from fraud_assets.operations.holdings import ERASED_TABLES, find_holdings
from fraud_assets.operations.maintenance import maintain_lake
from fraud_assets.operations.quarantine import Selection
from fraud_assets.operations.reconciliation import reconcile
from fraud_assets.operations.retries import retry_messages
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed
from fraud_assets_tests.support.killed import killed
from fraud_assets_tests.support.landed import bodies, land
from fraud_assets_tests.support.quarantined import label_rows
from fraud_assets_tests.support.scored import score_all

CUSTOMER = "5"
ERASE = f"from fraud_assets.operations import erasure\n{{}}\nerasure.erase_customer(lake, settings, {CUSTOMER!r})"


def label(transaction: int | str, flag: str = "1") -> bytes:
    return f'{{"transaction_id": {transaction}, "is_fraud": {flag}, "labelled_at": "2026-01-05T00:00:00Z"}}'.encode()


@pytest.fixture
def filled(lake: Lake, settings: Settings) -> Settings:
    """A processed and scored lake: 70 transactions of 7 customers, rejected messages, good and bad labels."""
    rejected = [
        b'{"transaction_id": 900, "tx_datetime": "2026-01-01T00:00:00Z", "customer_id": "\\u0035", "terminal_id": 1,'
        b' "tx_amount": -4}',  # an escaped id, rejected for its amount
        b'{"customer_id": 5, "customer_id": 6}',
        b'{"transaction_id": 901, "customer_id": 5',  # truncated, so unreadable
        b'{"transaction_id": 902, "customer_id": 55, "tx_amount": "x"}',
        b"nothing of anybody, 155",
    ]
    # Customer 1 has the first message with id 1, so the label of id 1 belongs to customer 1. Customer 5 repeats the id.
    repeated = json.dumps({**json.loads(bodies(1, first_id=1)[0]), "customer_id": 5}).encode()
    land(lake, [*bodies(70), *rejected, repeated])
    process_landed(lake, settings)
    score_all(lake)
    append_labels(
        lake, settings, label_rows([label(5), label(6), label(1), label(12), label(5, '"x"'), label(6, '"x"')])
    )
    return settings


def stored_bodies(lake: Lake) -> bytes:
    """Return all message bodies in the newest versions of the tables, joined."""
    found = b""
    for table in (raw_transactions, quarantined_transactions, fraud_labels):
        found += b"\n".join(
            v or b"" for v in open_dataset(lake.open(table)).to_table(columns=["value"])["value"].to_pylist()
        )
    return found


def ids(lake: Lake, table: Table, column: str = "transaction_id") -> set[str]:
    return set(open_dataset(lake.open(table)).to_table(columns=[column])[column].to_pylist())


def assert_erased(lake: Lake, settings: Settings) -> None:
    """Check that only the rows of customer 5 are gone, nothing is pending, and no position changed."""
    own = {str(n) for n in range(70) if n % 7 == 5}
    others = {str(n) for n in range(70)} - own
    assert ids(lake, transaction_features) == ids(lake, fraud_predictions) == others
    assert "5" not in ids(lake, transaction_features, "customer_id")
    assert ids(lake, fraud_labels) == {"6", "1"}
    totals = reconcile(lake, settings)
    assert totals["landed"] == totals["features"] + totals["quarantined"] + totals["duplicates"] == 60 + 3
    assert totals["quarantined_labels"] == 1
    assert b"\\u0035" not in stored_bodies(lake)
    source_partition = SourcePartition("transactions", "topic-id", 0)
    for table in (raw_transactions, transaction_features, quarantined_transactions, fraud_predictions):
        assert committed_offset(lake.open(table), source_partition) >= 69
    features = lake.open(transaction_features)
    assert not find_pending(
        lake.open(raw_transactions), lambda partition: committed_offset(features, partition), settings
    ).rows
    assert process_landed(lake, settings).landed == 0


def test_one_customer_is_erased_from_every_table(filled: Settings, lake: Lake) -> None:
    report = erase_customer(lake, filled, CUSTOMER)
    assert report.tables == {
        "fraud_labels": 2,
        "fraud_predictions": 10,
        "raw_transactions": 13,
        "quarantined_transactions": 4,
        "transaction_features": 10,
    }
    assert_erased(lake, filled)
    assert erase_customer(lake, filled, CUSTOMER).tables == dict.fromkeys(report.tables, 0)


def test_an_erased_message_does_not_land_again(filled: Settings, lake: Lake) -> None:
    erase_customer(lake, filled, CUSTOMER)
    landed = open_dataset(lake.open(raw_transactions)).to_table().slice(0, 1)
    repeated = landed.set_column(landed.column_names.index("offset"), "offset", pa.array([5], pa.int64()))
    assert append_landed(lake, raw_transactions, repeated) == 0
    land(lake, bodies(1, first_id=70), first_offset=76)
    assert process_landed(lake, filled).features == 1


def test_unreadable_messages_are_reported_and_erased_only_on_request(filled: Settings, lake: Lake) -> None:
    found = find_holdings(lake, filled, CUSTOMER)
    assert [row["offset"] for row in found.mentions.to_pylist()] == [72]
    assert erase_customer(lake, filled, CUSTOMER).unreadable == 0
    assert b'"transaction_id": 901' in stored_bodies(lake)
    assert erase_customer(lake, filled, CUSTOMER, unreadable=True).unreadable == 1
    assert b'"transaction_id": 901' not in stored_bodies(lake)
    totals = reconcile(lake, filled)
    assert totals["landed"] == totals["features"] + totals["quarantined"] + totals["duplicates"] == 60 + 2


@pytest.mark.parametrize("last_step", ["quarantined labels", "predictions", "landed bodies", "quarantine"])
def test_the_next_run_completes_a_killed_erasure(filled: Settings, lake: Lake, last_step: str) -> None:
    deletion = {"quarantined labels": 1, "predictions": 3, "landed bodies": 4, "quarantine": 5}[last_step]
    killed(filled, ERASE.format(f"die_at(erasure, '_delete_where', {deletion}, after=True)"))
    report = erase_customer(lake, filled, CUSTOMER)
    assert report.tables["transaction_features"] == 10
    assert_erased(lake, filled)


def test_landing_continues_during_an_erasure(filled: Settings, lake: Lake) -> None:
    """Appends and the erasure do not stop each other. Rows that a concurrent compaction rewrites are erased too."""
    stop = threading.Event()
    landed = []

    def land_until_stopped() -> None:
        while not stop.is_set():
            first = 100 + 7 * len(landed)
            land(lake, [body.replace(b'"customer_id": 5', b'"customer_id": 6') for body in bodies(7, first_id=first)],
                 first_offset=first)  # fmt: skip
            landed.append(first)
            if len(landed) % 5 == 0:
                # Maintenance compacts in the same way.
                with suppress(CommitFailedError):
                    lake.open(raw_transactions).optimize.compact()

    lander = threading.Thread(target=land_until_stopped)
    lander.start()
    try:
        report = erase_customer(lake, filled, CUSTOMER)
    finally:
        stop.set()
        lander.join()
    assert report.tables["raw_transactions"] == 13
    process_landed(lake, filled)
    totals = reconcile(lake, filled)
    assert totals["landed"] == totals["features"] + totals["quarantined"] + totals["duplicates"] == 63 + 7 * len(landed)


def test_a_retried_message_is_erased_with_its_original(lake: Lake, settings: Settings) -> None:
    """Only the field mapping of the retry finds the customer in the original, and the erasure does not have it."""
    land(lake, [body.replace(b"customer_id", b"cust") for body in bodies(7)])
    process_landed(lake, settings)
    mapped = settings.model_copy(update={"field_mapping": {"customer_id": "cust"}})
    assert retry_messages(lake, mapped, Selection()).transactions == 7
    process_landed(lake, mapped)
    assert erase_customer(lake, settings, CUSTOMER).tables == {
        "fraud_labels": 0,
        "fraud_predictions": 0,
        "raw_transactions": 2,
        "quarantined_transactions": 1,
        "transaction_features": 1,
    }
    totals = reconcile(lake, settings)
    assert totals["landed"] == totals["features"] + totals["quarantined"] == 12


def test_kept_files_lose_only_the_rows_of_the_customer(settings: Settings, lake: Lake) -> None:
    rows = [json.loads(body) for body in bodies(14)]
    settings.processed.mkdir(parents=True)
    settings.failed.mkdir()
    settings.incoming.mkdir()
    lines = [json.dumps(row).encode() + b"\r\n" for row in rows]
    (settings.processed / "a.jsonl").write_bytes(b"".join([*lines, b'{"customer_id": 5, \n']))
    table = pa.Table.from_pylist(rows)
    pa.parquet.write_table(table, settings.processed / "b.parquet")
    pa.csv.write_csv(table.rename_columns([name.upper() for name in table.column_names]), settings.failed / "c.csv")
    (settings.failed / "d.parquet").write_bytes(b"no parquet")
    (settings.incoming / "e.jsonl").write_bytes(lines[5])
    others = [row for row in rows if row["customer_id"] != 5]
    modified_at = (settings.processed / "b.parquet").stat().st_mtime_ns

    found = find_holdings(lake, settings, CUSTOMER)
    assert [Path(path).name for path in found.closed_files] == ["d.parquet"]
    assert [path.name for path in found.waiting] == ["e.jsonl"]
    report = erase_customer(lake, settings, CUSTOMER)
    assert {Path(path).name: count for path, count in report.files.items()} == {
        "a.jsonl": 2,
        "b.parquet": 2,
        "c.csv": 2,
    }
    kept = (settings.processed / "a.jsonl").read_bytes()
    assert (
        kept
        == b"".join(line for line, row in zip(lines, rows, strict=True) if row in others) + b'{"customer_id": 5, \n'
    )
    assert pa.parquet.read_table(settings.processed / "b.parquet").to_pylist() == others
    assert (settings.processed / "b.parquet").stat().st_mtime_ns == modified_at
    assert pa.csv.read_csv(settings.failed / "c.csv")["CUSTOMER_ID"].to_pylist() == [
        row["customer_id"] for row in others
    ]
    assert erase_customer(lake, settings, CUSTOMER).files == {}
    assert erase_customer(lake, settings, CUSTOMER, unreadable=True).unreadable == 1
    assert sorted(path.name for path in settings.processed.iterdir()) == ["a.jsonl", "b.parquet"]


def test_a_customer_with_a_pseudonym_is_erased_by_the_original_id(make_settings: Any, lake: Lake) -> None:
    from fraud_assets.core.pseudonyms import pseudonymise

    settings = make_settings(pseudonymise="customer_id", pseudonym_key="k" * 40)
    land(lake, bodies(7))
    messages = open_dataset(lake.open(raw_transactions)).to_table().drop_columns(["ingested_at", "ingest_date"])
    pseudonymized = pseudonymise(messages, settings.pseudonym_policy)
    offsets = pa.array(range(7, 14), pa.int64())
    append_landed(lake, raw_transactions, pseudonymized.set_column(3, "offset", offsets))
    process_landed(lake, settings)
    # The first seven messages landed in clear text, before the setting. The other seven repeat their transaction ids.
    assert erase_customer(lake, settings, CUSTOMER).tables["raw_transactions"] == 2
    assert read_row_count(lake.open(raw_transactions)) == 12


def test_the_command_needs_confirmation_and_removes_old_versions(
    filled: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAUD_HOME", str(filled.home_path))
    runner = CliRunner()
    refused = runner.invoke(cli, ["erase", "--customer", CUSTOMER])
    assert refused.exit_code == 2
    assert "--yes" in refused.output
    dry_run = runner.invoke(cli, ["erase", "--customer", CUSTOMER, "--dry-run"])
    assert "13  raw_transactions" in dry_run.stdout
    assert "fraud-assets quarantine show transactions/0/72" in dry_run.stdout
    assert read_row_count(lake.open(raw_transactions)) == 76
    erased = runner.invoke(cli, ["erase", "--customer", CUSTOMER, "--yes"])
    assert erased.exit_code == 0, erased.output
    assert "FRAUD_VACUUM_HOURS" in erased.stdout
    assert find_files_of_customer(lake)
    summary = json.loads(runner.invoke(cli, ["erase", "--customer", CUSTOMER, "--yes", "--now", "--json"]).stdout)
    assert summary["tables"] == dict.fromkeys((table.name for table in ERASED_TABLES), 0)
    assert summary["vacuumed_files"] > 0
    assert summary["unreadable_messages"] == ["transactions/0/72"]
    assert not find_files_of_customer(lake)
    maintain_lake(lake, filled)
    assert_erased(lake, filled)


def find_files_of_customer(lake: Lake) -> list[Path]:
    """Return the data files, of any version, that hold a message or a feature row of the customer."""
    files = []
    for path in Path(lake.root).rglob("part-*.parquet"):
        rows = pa.parquet.ParquetFile(path).read()
        bodies_held = rows["value"].to_pylist() if "value" in rows.column_names else []
        customers = rows["customer_id"].to_pylist() if "customer_id" in rows.column_names else []
        if "5" in customers or any(b'"customer_id": 5,' in (body or b"") for body in bodies_held):
            files.append(path)
    return files


def test_the_log_of_a_table_names_positions_and_never_the_customer(filled: Settings, lake: Lake) -> None:
    erase_customer(lake, filled, CUSTOMER)
    for table in ERASED_TABLES:
        deletions = [entry for entry in lake.open(table).history() if entry["operation"] == "DELETE"]
        assert deletions
        assert all("offset" in str(entry) and "customer_id" not in str(entry) for entry in deletions)
