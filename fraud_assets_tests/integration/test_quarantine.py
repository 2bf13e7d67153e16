"""Quarantine commands: listing and showing messages, and retrying them exactly once."""

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
def refused(lake: Lake, settings: Settings) -> Settings:
    """30 good messages, 10 with a renamed field, 2 that are no JSON and 3 repeated; the settings that read the 10."""
    land(lake, bodies(30) + other_names(10, 100) + [b"{broken", b"\xff\x00\x1b[2J"] + bodies(3))
    process_landed(lake, settings)
    return settings.model_copy(update={"field_mapping": {"tx_amount": "amt"}})


def balanced(lake: Lake, settings: Settings) -> dict[str, int]:
    """The counts of the tables, which must reconcile."""
    totals = reconcile(lake, settings)
    assert totals["landed"] == totals["features"] + totals["quarantined"] + totals["duplicates"]
    return totals


def test_messages_are_counted_by_reason_and_listed(refused: Settings, lake: Lake) -> None:
    counts = {count.reason: count.messages for count in count_reasons(lake, refused, Selection())}
    assert counts == {"missing_field": 10, "duplicate": 3, "invalid_json": 1, "invalid_utf8": 1}
    listed = list_messages(lake, refused, Selection(reason="missing_field"), limit=4)
    assert [entry.position for entry in listed] == [f"transactions/0/{offset}" for offset in range(30, 34)]
    assert all("tx_amount is missing" in entry.detail for entry in listed)
    assert list_messages(lake, refused, Selection(since=datetime(2100, 1, 1, tzinfo=UTC))) == []
    assert len(list_messages(lake, refused, Selection(since=listed[0].ingested_at))) == 15
    assert list_messages(lake, refused, Selection(topic="other")) == []


def test_after_a_fix_messages_land_again_with_their_bytes(refused: Settings, lake: Lake) -> None:
    report = retry_messages(lake, refused, Selection(reason="missing_field"))
    assert (report.selected, report.passing, report.transactions) == (10, 10, 10)
    assert find_backlog(lake, refused).progress["features"]
    landed = (
        open_dataset(lake.open(raw_transactions)).to_table().filter(pa.compute.field("topic") == "retry:transactions")
    )
    assert landed.sort_by("offset")["value"].to_pylist() == other_names(10, 100)
    headers = landed.sort_by("offset")["headers"].to_pylist()
    assert headers[0] == [{"key": ORIGIN_HEADER, "value": b"transactions@life/0/30"}]
    assert process_landed(lake, refused).features == 10
    assert balanced(lake, refused)["features"] == 40
    assert "0 landed and 40 unscored" in find_backlog(lake, refused.model_copy(update={"train_min_rows": 20})).reason


def test_what_would_still_not_pass_stays_where_it_is(refused: Settings, lake: Lake) -> None:
    dry = retry_messages(lake, refused, Selection(), dry_run=True)
    assert (dry.selected, dry.passing, dry.failing) == (12, 10, {"invalid_json": 1, "invalid_utf8": 1})
    assert read_row_count(lake.open(raw_transactions)) == 45
    retry_messages(lake, refused, Selection())
    assert process_landed(lake, refused).landed == 10
    assert {entry.reason for entry in list_messages(lake, refused, Selection())} == {
        "invalid_json", "invalid_utf8", "duplicate"
    }  # fmt: skip
    again = list_messages(lake, refused, Selection(reason="missing_field", retried=True))
    assert {entry.retried_as for entry in again} == {f"retry:transactions/0/{offset}" for offset in range(10)}


def test_a_second_retry_finds_nothing_open(refused: Settings, lake: Lake) -> None:
    retry_messages(lake, refused, Selection())
    version = lake.open(raw_transactions).version()
    assert retry_messages(lake, refused, Selection(reason="missing_field")) == RetryReport()
    assert retry_messages(lake, refused, Selection(positions=("transactions/0/30",))) == RetryReport()
    assert lake.open(raw_transactions).version() == version


def test_a_retried_message_whose_id_came_meanwhile_is_a_duplicate(refused: Settings, lake: Lake) -> None:
    land(lake, bodies(1, first_id=100), first_offset=45)
    process_landed(lake, refused.model_copy(update={"field_mapping": {}}))
    retry_messages(lake, refused, Selection(positions=("transactions/0/30",)))
    report = process_landed(lake, refused)
    assert (report.landed, report.duplicates) == (1, 1)
    balanced(lake, refused)


def test_repeated_ids_are_retried_only_on_request(refused: Settings, lake: Lake) -> None:
    assert retry_messages(lake, refused, Selection(positions=("transactions/0/42",))).selected == 1
    plain = refused.model_copy(update={"field_mapping": {}})
    assert retry_messages(lake, plain, Selection()).transactions == 0
    assert retry_messages(lake, plain, Selection(reason="duplicate")).transactions == 3
    assert process_landed(lake, plain).duplicates == 3
    balanced(lake, plain)


def test_what_fails_again_is_open_again_and_keeps_its_first_origin(refused: Settings, lake: Lake) -> None:
    """The pipeline may run with older settings than the person who retries."""
    retry_messages(lake, refused, Selection())
    assert process_landed(lake, refused.model_copy(update={"field_mapping": {}})).quarantined == 10
    assert retry_messages(lake, refused, Selection()).transactions == 10
    assert process_landed(lake, refused).features == 10
    origins = open_dataset(lake.open(raw_transactions)).to_table().filter(pa.compute.field("offset") >= 10)
    retried = [row for row in origins.to_pylist() if row["topic"] == "retry:transactions"]
    assert sorted(row["headers"][0]["value"].decode() for row in retried) == sorted(
        f"transactions@life/0/{offset}" for offset in range(30, 40)
    )
    assert all(len(row["headers"]) == 1 for row in retried)
    balanced(lake, refused)


@pytest.mark.parametrize(
    ("death", "landed"),
    [
        ("die_at(retries, 'commit_append', 1)", 0),
        ("die_at(retries, 'commit_append', 1, after=True)", 0),
        ("die_at(retries, 'append_landed', 1, after=True)", 10),
    ],
    ids=["before the log", "between log and landing", "after landing"],
)
def test_killed_retry_is_finished_by_the_next(
    refused: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch, death: str, landed: int
) -> None:
    monkeypatch.setenv("FRAUD_FIELD_MAPPING", "tx_amount=amt")
    killed(refused, RETRY.format(death))
    assert read_row_count(lake.open(raw_transactions)) == 45 + landed
    report = retry_messages(lake, refused, Selection())
    assert report.resumed + report.transactions == 10 - landed
    assert process_landed(lake, refused).features == 10
    assert balanced(lake, refused)["landed"] == 55
    assert count_waiting_retries(lake, refused) == 0


def test_racing_retries_land_nothing_twice(refused: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAUD_FIELD_MAPPING", "tx_amount=amt")
    monkeypatch.setenv("FRAUD_LAND_BATCH_BYTES", "1000")
    racers = [start(refused, RETRY.format("")) for _ in range(3)]
    for racer in racers:
        _, errors = racer.communicate(timeout=60)
        assert racer.returncode == 0, errors
    assert process_landed(lake, refused).features == 10
    assert balanced(lake, refused)["landed"] == 55


def test_bad_labels_are_retried_into_the_labels(lake: Lake, settings: Settings) -> None:
    good = [b'{"transaction_id": %d, "is_fraud": 1, "labelled_at": "2026-01-02T00:00:00Z"}' % n for n in range(3)]
    bad = [b'{"transaction_id": %d, "fraud": 1, "labelled_at": "2026-01-02T00:00:00Z"}' % n for n in range(3, 7)]
    append_labels(lake, settings, label_rows([*good, *bad, b"{"]))
    fixed = settings.model_copy(update={"field_mapping": {"is_fraud": "fraud"}})
    report = retry_messages(lake, fixed, Selection())
    assert (report.labels, report.failing) == (4, {"label_invalid_json": 1})
    labels = open_dataset(lake.open(fraud_labels)).to_table().to_pylist()
    assert {row["transaction_id"] for row in labels} == {str(n) for n in range(7)}
    assert {row["value"] for row in labels} == {*good, *bad}
    assert retry_messages(lake, fixed, Selection()).labels == 0


def test_labels_of_a_dropped_file_are_read_as_they_were_there(lake: Lake, settings: Settings) -> None:
    """They have the transaction's body: the label's time comes from the transaction and the feedback delay."""
    settings.incoming.mkdir(parents=True)
    rows = [{**json.loads(body), "TX_FRAUD": "yes" if n else 1} for n, body in enumerate(bodies(3))]
    (settings.incoming / "day.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    land_files(lake, settings)
    assert read_row_count(lake.open(fraud_labels)) == 1
    assert retry_messages(lake, settings, Selection()).failing == {"label_wrong_type": 2}
    # The fix here is a body that another program would have written; the table is written as a fix never would.
    lake_rows = open_dataset(lake.open(quarantined_transactions)).to_table()
    mended = lake_rows.set_column(
        lake_rows.column_names.index("value"),
        "value",
        pa.array([value.replace(b'"yes"', b"true") for value in lake_rows["value"].to_pylist()], pa.binary()),
    )
    mended = mended.set_column(mended.column_names.index("topic_id"), "topic_id", pa.repeat("mended", mended.num_rows))
    append_landed(lake, quarantined_transactions, mended)
    assert retry_messages(lake, settings, Selection()).labels == 2
    labels = open_dataset(lake.open(fraud_labels)).to_table().sort_by("transaction_id").to_pylist()
    assert [row["labelled_at"] for row in labels] == [datetime(2026, 1, 8, minute=20 * n, tzinfo=UTC) for n in range(3)]


def test_maintenance_finishes_a_killed_retry(refused: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAUD_FIELD_MAPPING", "tx_amount=amt")
    killed(refused, RETRY.format("die_at(retries, 'commit_append', 1, after=True)"))
    assert count_waiting_retries(lake, refused) == 10
    platform = PlatformResource(overrides={"home": str(refused.home_path)})
    result = dg.materialize([lake_maintenance], resources={"platform": platform})
    metadata = result.asset_materializations_for_node("lake_maintenance")[0].metadata
    assert metadata["retried_messages_landed"].value == 10
    assert process_landed(lake, refused).features == 10


def test_positions_of_a_recreated_topic_are_distinguished(lake: Lake, settings: Settings) -> None:
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


def test_the_command_shows_bytes_exactly_and_a_terminal_nothing_to_act_upon(
    refused: Settings, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAUD_HOME", str(refused.home_path))
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
    dry = runner.invoke(cli, ["quarantine", "retry", "--dry-run"], env={"FRAUD_FIELD_MAPPING": "tx_amount=amt"})
    assert "10 of 12 messages would pass now." in dry.output
    wrong = runner.invoke(cli, ["quarantine", "list", "--reason", "missing"])
    assert wrong.exit_code == 2
    assert "missing_field" in wrong.output
