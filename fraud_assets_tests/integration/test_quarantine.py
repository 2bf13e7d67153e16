"""The quarantine commands list, show and retry messages; a retry lands each message exactly once."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime

import dagster as dg
import pyarrow as pa
import pytest
from click.testing import CliRunner

from fraud_assets.assets.maintenance import lake_maintenance
from fraud_assets.cli import cli
from fraud_assets.core.schema import (
    fraud_labels,
    quarantined_transactions,
    raw_transactions,
)
from fraud_assets.engines.landing_tables import append_labels
from fraud_assets.errors import UnknownMessageError
from fraud_assets.ingest.files.landing import land_files
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.operations.quarantine import Selection, count_reasons, find_message, list_messages
from fraud_assets.operations.reconciliation import reconcile
from fraud_assets.operations.retries import ORIGIN_HEADER, RetryReport, count_waiting_retries, retry_messages
from fraud_assets.resources import PlatformResource
from fraud_assets.settings import Settings
from fraud_assets.stages.backlog import find_backlog
from fraud_assets.stages.features import process_landed
from fraud_assets_tests.support.killed import killed, start
from fraud_assets_tests.support.landed import bodies, land
from fraud_assets_tests.support.quarantined import label_rows, other_names

RETRY = (
    "from fraud_assets.operations import quarantine, retries\n{}\n"
    "retries.retry_messages(lake, settings, quarantine.Selection())"
)


@pytest.fixture
def fixed_settings(lake: Lake, settings: Settings) -> Settings:
    """Lands 30 valid, 10 fixable, 2 invalid and 3 repeated messages; returns settings that map the renamed field."""
    land(lake, bodies(30) + other_names(10, 100) + [b"{broken", b"\xff\x00\x1b[2J"] + bodies(3))
    process_landed(lake, settings)
    return settings.model_copy(update={"field_mapping": {"tx_amount": "amt"}})


def reconciled_counts(lake: Lake, settings: Settings) -> dict[str, int]:
    """Asserts that the tables reconcile, and returns their counts."""
    totals = reconcile(lake, settings)
    assert totals["landed"] == totals["features"] + totals["quarantined"] + totals["duplicates"]
    return totals


def test_messages_are_counted_by_reason_and_listed(fixed_settings: Settings, lake: Lake) -> None:
    counts = {count.reason: count.messages for count in count_reasons(lake, fixed_settings, Selection())}
    assert counts == {"missing_field": 10, "duplicate": 3, "invalid_json": 1, "invalid_utf8": 1}
    listed = list_messages(lake, fixed_settings, Selection(reason="missing_field"), limit=4)
    assert [entry.position for entry in listed] == [f"transactions/0/{offset}" for offset in range(30, 34)]
    assert all("tx_amount is missing" in entry.detail for entry in listed)
    assert list_messages(lake, fixed_settings, Selection(since=datetime(2100, 1, 1, tzinfo=UTC))) == []
    assert len(list_messages(lake, fixed_settings, Selection(since=listed[0].ingested_at))) == 15
    assert list_messages(lake, fixed_settings, Selection(topic="other")) == []


def test_after_a_fix_messages_land_again_with_the_same_bytes(fixed_settings: Settings, lake: Lake) -> None:
    report = retry_messages(lake, fixed_settings, Selection(reason="missing_field"))
    assert (report.selected, report.passing, report.transactions) == (10, 10, 10)
    assert find_backlog(lake, fixed_settings).progress["features"]
    landed = (
        open_dataset(lake.open(raw_transactions)).to_table().filter(pa.compute.field("topic") == "retry:transactions")
    )
    assert landed.sort_by("offset")["value"].to_pylist() == other_names(10, 100)
    headers = landed.sort_by("offset")["headers"].to_pylist()
    assert headers[0] == [{"key": ORIGIN_HEADER, "value": b"transactions@topic-id/0/30"}]
    assert process_landed(lake, fixed_settings).features == 10
    assert reconciled_counts(lake, fixed_settings)["features"] == 40
    assert (
        "0 landed and 40 unscored"
        in find_backlog(lake, fixed_settings.model_copy(update={"train_min_rows": 20})).reason
    )


def test_a_retry_leaves_messages_that_still_fail_in_quarantine(fixed_settings: Settings, lake: Lake) -> None:
    dry_run_report = retry_messages(lake, fixed_settings, Selection(), dry_run=True)
    assert (dry_run_report.selected, dry_run_report.passing, dry_run_report.failing) == (
        12,
        10,
        {"invalid_json": 1, "invalid_utf8": 1},
    )
    assert read_row_count(lake.open(raw_transactions)) == 45
    retry_messages(lake, fixed_settings, Selection())
    assert process_landed(lake, fixed_settings).landed == 10
    assert {entry.reason for entry in list_messages(lake, fixed_settings, Selection())} == {
        "invalid_json", "invalid_utf8", "duplicate"
    }  # fmt: skip
    retried = list_messages(lake, fixed_settings, Selection(reason="missing_field", retried=True))
    assert {entry.retried_as for entry in retried} == {f"retry:transactions/0/{offset}" for offset in range(10)}


def test_a_second_retry_lands_nothing(fixed_settings: Settings, lake: Lake) -> None:
    retry_messages(lake, fixed_settings, Selection())
    version = lake.open(raw_transactions).version()
    assert retry_messages(lake, fixed_settings, Selection(reason="missing_field")) == RetryReport()
    assert retry_messages(lake, fixed_settings, Selection(positions=("transactions/0/30",))) == RetryReport()
    assert lake.open(raw_transactions).version() == version


def test_a_retried_message_whose_id_has_landed_meanwhile_is_a_duplicate(fixed_settings: Settings, lake: Lake) -> None:
    land(lake, bodies(1, first_id=100), first_offset=45)
    process_landed(lake, fixed_settings.model_copy(update={"field_mapping": {}}))
    retry_messages(lake, fixed_settings, Selection(positions=("transactions/0/30",)))
    report = process_landed(lake, fixed_settings)
    assert (report.landed, report.duplicates) == (1, 1)
    reconciled_counts(lake, fixed_settings)


def test_duplicates_are_retried_only_on_request(fixed_settings: Settings, lake: Lake) -> None:
    assert retry_messages(lake, fixed_settings, Selection(positions=("transactions/0/42",))).selected == 1
    without_mapping = fixed_settings.model_copy(update={"field_mapping": {}})
    assert retry_messages(lake, without_mapping, Selection()).transactions == 0
    assert retry_messages(lake, without_mapping, Selection(reason="duplicate")).transactions == 3
    assert process_landed(lake, without_mapping).duplicates == 3
    reconciled_counts(lake, without_mapping)


def test_a_message_that_fails_again_can_be_retried_and_keeps_its_first_origin(
    fixed_settings: Settings, lake: Lake
) -> None:
    """The pipeline can run with older settings than the retry command."""
    retry_messages(lake, fixed_settings, Selection())
    assert process_landed(lake, fixed_settings.model_copy(update={"field_mapping": {}})).quarantined == 10
    assert retry_messages(lake, fixed_settings, Selection()).transactions == 10
    assert process_landed(lake, fixed_settings).features == 10
    later_rows = open_dataset(lake.open(raw_transactions)).to_table().filter(pa.compute.field("offset") >= 10)
    retried = [row for row in later_rows.to_pylist() if row["topic"] == "retry:transactions"]
    assert sorted(row["headers"][0]["value"].decode() for row in retried) == sorted(
        f"transactions@topic-id/0/{offset}" for offset in range(30, 40)
    )
    assert all(len(row["headers"]) == 1 for row in retried)
    reconciled_counts(lake, fixed_settings)


@pytest.mark.parametrize(
    ("kill_point", "landed"),
    [
        ("die_at(retries, 'commit_append', 1)", 0),
        ("die_at(retries, 'commit_append', 1, after=True)", 0),
        ("die_at(retries, 'append_landed', 1, after=True)", 10),
    ],
    ids=["before the log", "between log and landing", "after landing"],
)
def test_the_next_retry_finishes_a_killed_retry(
    fixed_settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch, kill_point: str, landed: int
) -> None:
    monkeypatch.setenv("FRAUD_FIELD_MAPPING", "tx_amount=amt")
    killed(fixed_settings, RETRY.format(kill_point))
    assert read_row_count(lake.open(raw_transactions)) == 45 + landed
    report = retry_messages(lake, fixed_settings, Selection())
    assert report.resumed + report.transactions == 10 - landed
    assert process_landed(lake, fixed_settings).features == 10
    assert reconciled_counts(lake, fixed_settings)["landed"] == 55
    assert count_waiting_retries(lake, fixed_settings) == 0


def test_concurrent_retries_land_no_message_twice(
    fixed_settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAUD_FIELD_MAPPING", "tx_amount=amt")
    monkeypatch.setenv("FRAUD_LAND_BATCH_BYTES", "1000")
    processes = [start(fixed_settings, RETRY.format("")) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert process_landed(lake, fixed_settings).features == 10
    assert reconciled_counts(lake, fixed_settings)["landed"] == 55


def test_quarantined_labels_are_retried_into_fraud_labels(lake: Lake, settings: Settings) -> None:
    valid = [
        b'{"transaction_id": %d, "is_fraud": 1, "labelled_at": "2026-01-02T00:00:00Z"}' % number for number in range(3)
    ]
    invalid = [
        b'{"transaction_id": %d, "fraud": 1, "labelled_at": "2026-01-02T00:00:00Z"}' % number for number in range(3, 7)
    ]
    append_labels(lake, settings, label_rows([*valid, *invalid, b"{"]))
    fixed = settings.model_copy(update={"field_mapping": {"is_fraud": "fraud"}})
    report = retry_messages(lake, fixed, Selection())
    assert (report.labels, report.failing) == (4, {"label_invalid_json": 1})
    labels = open_dataset(lake.open(fraud_labels)).to_table().to_pylist()
    assert {row["transaction_id"] for row in labels} == {str(number) for number in range(7)}
    assert {row["value"] for row in labels} == {*valid, *invalid}
    assert retry_messages(lake, fixed, Selection()).labels == 0


def test_a_retry_reads_the_labels_of_a_dropped_file_like_the_file_itself(lake: Lake, settings: Settings) -> None:
    """The body is that of a transaction: the label time is computed from its time and the feedback delay."""
    settings.incoming.mkdir(parents=True)
    rows = [{**json.loads(body), "TX_FRAUD": "yes" if number else 1} for number, body in enumerate(bodies(3))]
    (settings.incoming / "day.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    land_files(lake, settings)
    assert read_row_count(lake.open(fraud_labels)) == 1
    assert retry_messages(lake, settings, Selection()).failing == {"label_wrong_type": 2}
    # The test simulates a fix: it appends corrected bodies to the quarantine, which no real fix does.
    quarantined = open_dataset(lake.open(quarantined_transactions)).to_table()
    corrected = quarantined.set_column(
        quarantined.column_names.index("value"),
        "value",
        pa.array([value.replace(b'"yes"', b"true") for value in quarantined["value"].to_pylist()], pa.binary()),
    )
    corrected = corrected.set_column(
        corrected.column_names.index("topic_id"), "topic_id", pa.repeat("mended", corrected.num_rows)
    )
    append_landed(lake, quarantined_transactions, corrected)
    assert retry_messages(lake, settings, Selection()).labels == 2
    labels = open_dataset(lake.open(fraud_labels)).to_table().sort_by("transaction_id").to_pylist()
    assert [row["labelled_at"] for row in labels] == [
        datetime(2026, 1, 8, minute=20 * number, tzinfo=UTC) for number in range(3)
    ]


def test_maintenance_finishes_a_killed_retry(
    fixed_settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAUD_FIELD_MAPPING", "tx_amount=amt")
    killed(fixed_settings, RETRY.format("die_at(retries, 'commit_append', 1, after=True)"))
    assert count_waiting_retries(lake, fixed_settings) == 10
    platform = PlatformResource(overrides={"home": str(fixed_settings.home_path)})
    result = dg.materialize([lake_maintenance], resources={"platform": platform})
    metadata = result.asset_materializations_for_node("lake_maintenance")[0].metadata
    assert metadata["retried_messages_landed"].value == 10
    assert process_landed(lake, fixed_settings).features == 10


def test_the_topic_id_distinguishes_positions_of_a_recreated_topic(lake: Lake, settings: Settings) -> None:
    for topic_id in ("first", "second"):
        rows = label_rows([b"{"])
        rows = rows.set_column(1, "topic_id", pa.array([topic_id]))
        append_labels(lake, settings, rows)
    with pytest.raises(UnknownMessageError, match=r"fraud-labels@first/0/0, fraud-labels@second/0/0"):
        find_message(lake, settings, "fraud-labels/0/0")
    assert find_message(lake, settings, "fraud-labels@second/0/0").topic_id == "second"
    with pytest.raises(UnknownMessageError, match="fraud-labels/0/7"):
        retry_messages(lake, settings, Selection(positions=("fraud-labels/0/7",)))
    with pytest.raises(UnknownMessageError, match="topic/partition/offset"):
        find_message(lake, settings, "fraud-labels")


def test_the_command_shows_exact_bytes_but_no_control_characters_on_a_terminal(
    fixed_settings: Settings, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAUD_HOME", str(fixed_settings.home_path))
    runner = CliRunner()
    listed = runner.invoke(cli, ["quarantine", "list"])
    assert "10  missing_field" in listed.output
    assert "A required field is absent." in listed.output
    shown = runner.invoke(cli, ["quarantine", "show", "transactions/0/41"])
    assert "invalid_utf8" in shown.output
    assert "\x1b" not in shown.output
    assert "\\x1b[2J" in shown.output
    assert runner.invoke(cli, ["quarantine", "show", "transactions/0/41", "--raw"]).stdout_bytes == b"\xff\x00\x1b[2J"
    entry = json.loads(runner.invoke(cli, ["quarantine", "show", "transactions/0/41", "--json"]).stdout)
    assert base64.b64decode(entry["value"]) == b"\xff\x00\x1b[2J"
    dry_run = runner.invoke(cli, ["quarantine", "retry", "--dry-run"], env={"FRAUD_FIELD_MAPPING": "tx_amount=amt"})
    assert "10 of 12 messages would pass now." in dry_run.output
    invalid = runner.invoke(cli, ["quarantine", "list", "--reason", "missing"])
    assert invalid.exit_code == 2
    assert "missing_field" in invalid.output
