"""The totals of the tables reconcile at any time, even between two commits, unless a row is missing."""

from __future__ import annotations

import threading
import time
from typing import Any

import pyarrow as pa
import pytest

from fraud_assets.core.schema import (
    FRAUD_PREDICTIONS,
    Table,
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.doctor.finding import Finding
from fraud_assets.doctor.lake import check_reconciliation
from fraud_assets.kafka.broker import Broker
from fraud_assets.lake.append import commit_append
from fraud_assets.lake.batches import Bounds, find_pending, read_rows_within
from fraud_assets.lake.positions import committed_offset
from fraud_assets.lake.tables import Lake
from fraud_assets.settings import Settings
from fraud_assets.stages import features as stage
from fraud_assets.stages.features import process_landed
from fraud_assets_tests.support.landed import bodies, land
from fraud_assets_tests.support.logged import logged
from fraud_assets_tests.support.starting import Send, Start


class _KilledError(BaseException):
    """Simulates a kill."""


def mixed(count: int, first_id: int) -> list[bytes]:
    """Return valid messages, except that the third is broken and the fourth repeats the second."""
    values = bodies(count, first_id=first_id)
    values[2] = b"{broken"
    values[3] = values[1]
    return values


def score(lake: Lake, settings: Settings) -> None:
    """Commit predictions of all pending features, with a constant score."""
    features, handle = lake.open(transaction_features), lake.open(fraud_predictions)
    pending = find_pending(features, lambda partition: committed_offset(handle, partition), settings)
    if not pending.target:
        return
    rows = read_rows_within(pending, Bounds(pending.start, pending.target), settings)
    constants: dict[str, Any] = {"score": 0.5, "threshold": 0.6, "is_alert": False, "model_version": 1}
    columns = [
        rows[field.name]
        if field.name in rows.column_names
        else pa.repeat(pa.scalar(constants[field.name]), rows.num_rows)
        if field.name in constants
        else rows["ingested_at"]
        for field in FRAUD_PREDICTIONS
    ]
    commit_append(handle, fraud_predictions, pa.table(columns, names=FRAUD_PREDICTIONS.names), pending.target)


def worst_finding(settings: Settings) -> Finding:
    """Return the doctor's worst finding about reconciliation."""
    return max(check_reconciliation(settings), key=lambda finding: ("OK", "WARN", "SKIP", "FAIL").index(finding.state))


def test_totals_reconcile_despite_commits_between_two_table_reads(
    settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each table is opened, messages land and the stages commit. Some batches reach only the quarantine."""
    land(lake, mixed(10, 0))
    process_landed(lake, settings)
    lake.open(fraud_predictions)
    steps = 0
    checking = False
    open_table, real_commit = Lake.find, commit_append

    def kill_before_features(handle: Any, table: Table, *rest: Any, **named: Any) -> None:
        if table is transaction_features:
            raise _KilledError
        real_commit(handle, table, *rest, **named)

    def commit_before_find(self: Lake, table: Table) -> Any:
        nonlocal steps, checking
        if checking:
            checking = False
            steps += 1
            land(lake, mixed(5, 10 * steps), first_offset=10 * steps)
            monkeypatch.setattr(stage, "commit_append", kill_before_features if steps % 3 else real_commit)
            try:
                process_landed(lake, settings)
                score(lake, settings)
            except _KilledError:
                pass
            checking = True
        return open_table(self, table)

    monkeypatch.setattr(Lake, "find", commit_before_find)
    texts = []
    for _ in range(2):
        checking = True
        finding = worst_finding(settings)
        checking = False
        assert finding.state in ("OK", "WARN"), finding
        texts += [line.text for line in check_reconciliation(settings) if line.name == "reconciliation"]
    assert steps == 10
    assert any(" + 0 waiting" not in text for text in texts)


def test_totals_reconcile_while_a_lander_and_stages_run(
    settings: Settings, lake: Lake, broker: Broker, send: Send, start: Start
) -> None:
    for table in (raw_transactions, quarantined_transactions, transaction_features, fraud_predictions):
        lake.open(table)
    start("land", FRAUD_LAND_BATCH_ROWS="40")
    stop = threading.Event()
    batches: list[str] = []
    failures: list[BaseException] = []

    def run_stages() -> None:
        try:
            while not stop.is_set():
                with logged(batches.append):
                    process_landed(lake, settings.model_copy(update={"batch_rows": 50}))
                score(lake, settings)
        except BaseException as error:
            failures.append(error)

    stages = threading.Thread(target=run_stages)
    stages.start()
    try:
        checks, deadline = 0, time.monotonic() + 60
        while time.monotonic() < deadline and not failures and (checks < 20 or len(batches) < 5):
            if checks < 20:
                send(settings.transactions_topic, mixed(20, 20 * checks))
            finding = worst_finding(settings)
            assert finding.state in ("OK", "WARN"), finding
            checks += 1
    finally:
        stop.set()
        stages.join(30)
    assert not failures
    assert checks >= 20
    assert len(batches) >= 5


@pytest.mark.parametrize(
    ("table", "predicate", "words"),
    [
        (quarantined_transactions, "reason = 'duplicate'", "15 landed, but 9 processed and 5 waiting"),
        (transaction_features, "transaction_id = '5'", "15 landed, but 9 processed and 5 waiting"),
        (raw_transactions, '"offset" = 4', "14 landed, but 10 processed and 5 waiting"),
        (fraud_predictions, "transaction_id = '5'", "8 features, but 7 scored and 0 waiting"),
    ],
)
def test_a_missing_row_fails_the_reconciliation(
    settings: Settings, lake: Lake, table: Table, predicate: str, words: str
) -> None:
    land(lake, mixed(10, 0))
    process_landed(lake, settings)
    score(lake, settings)
    land(lake, bodies(5, first_id=10), first_offset=10)
    assert worst_finding(settings).state == "OK"
    lake.open(table).delete(predicate)
    finding = worst_finding(settings)
    assert finding.state == "FAIL"
    assert words in finding.text
    assert "docs/restore.md" in finding.fix
