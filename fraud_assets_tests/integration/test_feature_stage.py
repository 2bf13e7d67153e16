"""The feature stage: which messages become features, the landing order, batches and recomputation."""

from __future__ import annotations

import json
import os
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from fraud_assets.core.schema import (
    DERIVED_FEATURES,
    FEATURE_VERSION,
    fraud_labels,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.engines.local import features as local_features
from fraud_assets.errors import SettingError
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.batches import Bounds, find_pending, next_bounds, read_rows_within
from fraud_assets.lake.log import read_row_count
from fraud_assets.lake.positions import committed_offset
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.operations.reconciliation import reconcile
from fraud_assets.settings import BatchLimits, Settings
from fraud_assets.stages.features import process_landed, recompute
from fraud_assets_tests.support.landed import land

FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def body(number: int, at: datetime, **changes: Any) -> bytes:
    """Returns a valid transaction with the given changes."""
    fields = {
        "transaction_id": number,
        "tx_datetime": at.isoformat(),
        "customer_id": number % 5,
        "terminal_id": number % 3,
        "tx_amount": 10 + number % 7,
    }
    return json.dumps({**fields, **changes}).encode()


def land_label(lake: Lake, offset: int, transaction_id: str, at: datetime, *, is_fraud: bool = True) -> None:
    """Lands one fraud label."""
    row = {
        "topic": "fraud-labels",
        "topic_id": "topic-id",
        "partition": 0,
        "offset": offset,
        "transaction_id": transaction_id,
        "is_fraud": is_fraud,
        "labelled_at": at,
        "value": b"{}",
    }
    schema = pa.schema([field for field in fraud_labels.schema if field.name in row])
    assert append_landed(lake, fraud_labels, pa.Table.from_pylist([row], schema)) == 1


def read_features(lake: Lake, *columns: str) -> dict[str, tuple[Any, ...]]:
    """Returns the given feature columns by transaction id."""
    table = open_dataset(lake.open(transaction_features)).to_table(columns=["transaction_id", *columns])
    return {row.pop("transaction_id"): tuple(row.values()) for row in table.to_pylist()}


def test_bad_messages_are_quarantined_with_reason_and_bytes(settings: Settings, lake: Lake) -> None:
    now = datetime.now(UTC)
    bad = {
        b"": "empty_body",
        b"\xff\xfe": "invalid_utf8",
        b'{"transaction_id": 1': "invalid_json",
        b"[1]": "not_an_object",
        body(2, FIRST, tx_amount=True): "wrong_type",
        body(3, FIRST, tx_amount=-1): "negative_amount",
        body(4, FIRST, tx_amount=float("nan")): "not_finite",
        body(5, FIRST, tx_amount=float("inf")): "not_finite",
        body(6, now + timedelta(days=2)): "future_time",
        body(7, FIRST, tx_datetime="yesterday"): "invalid_time",
        body(8, FIRST)[:-1] + b', "tx_amount": 1}': "duplicate_key",
        body(9, FIRST, note="x" * settings.max_body_bytes): "body_too_large",
        b'{"transaction_id": 10}': "missing_field",
        body(11, FIRST, customer_id=1.5): "wrong_type",
    }
    land(lake, [*bad, body(12, FIRST), body(12, FIRST, tx_amount=99)])
    report = process_landed(lake, settings)
    assert (report.landed, report.features, report.quarantined, report.duplicates) == (16, 1, 14, 1)
    rows = open_dataset(lake.open(quarantined_transactions)).to_table().to_pylist()
    assert {row["value"]: row["reason"] for row in rows} == {**bad, body(12, FIRST, tx_amount=99): "duplicate"}
    assert all(row["detail"] for row in rows)


def test_the_first_transaction_of_an_id_counts_within_the_horizon(settings: Settings, lake: Lake) -> None:
    """The ids 42 and "42" are equal, within one batch and across two batches."""
    land(lake, [body(42, FIRST, tx_amount=1), body(0, FIRST, transaction_id="42", tx_amount=2)])
    process_landed(lake, settings)
    land(lake, [body(42, FIRST, tx_amount=3)], partition=1)
    process_landed(lake, settings)
    assert read_features(lake, "tx_amount") == {"42": (1.0,)}
    assert reconcile(lake, settings)["duplicates"] == 2


@pytest.mark.parametrize("batch_count", [1, 3])
def test_an_id_is_accepted_again_after_the_horizon(
    settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch, batch_count: int
) -> None:
    """The id lands on days 0, 60 and 120, and the horizon is 90 days.

    Day 120 is accepted because the rejected transaction of day 60 does not count.
    """
    for number, day in enumerate((0, 60, 120)):
        with monkeypatch.context() as patch:
            patch.setattr("fraud_assets.lake.append.datetime", clock_at(day))
            land(lake, [body(42, FIRST, tx_amount=day)], first_offset=number)
        if batch_count == 3:
            process_landed(lake, settings)
    process_landed(lake, settings)
    rows = open_dataset(lake.open(transaction_features)).to_table(columns=["tx_amount"])
    assert sorted(rows["tx_amount"].to_pylist()) == [0.0, 120.0]
    details = open_dataset(lake.open(quarantined_transactions)).to_table(columns=["detail"])["detail"].to_pylist()
    assert details == ["its transaction_id landed first as transactions 0/0"]


def clock_at(day: int) -> type[datetime]:
    """Returns a datetime class whose `now` is the given number of days after FIRST."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return (FIRST + timedelta(days=day)).astimezone(tz)

    return Clock


def test_batch_sizes_do_not_change_features(settings: Settings, make_settings: Any, tmp_path: Any) -> None:
    """The transactions land at once or in parts, and the stage computes large or small batches."""
    rng = random.Random(5)
    at = FIRST
    messages = []
    for number in range(600):
        at += timedelta(seconds=rng.choice([0, 0, 1, 3600, 20_000]))
        messages.append(body(number, at, customer_id=rng.randrange(9), terminal_id=rng.randrange(4)))
    results = []
    for name, parts, batch_rows in (("one", 1, 1000), ("many", 6, 1000), ("small", 2, 70)):
        lake = Lake(str(tmp_path / name))
        lake_settings = make_settings(lake_uri=lake.root, batch_rows=batch_rows)
        for number in range(0, 600, 40):
            land_label(lake, number, str(number), FIRST + timedelta(days=number / 20))
        size = len(messages) // parts
        for part in range(parts):
            land(lake, messages[part * size : (part + 1) * size], first_offset=part * size)
            process_landed(lake, lake_settings)
        results.append(read_features(lake, *DERIVED_FEATURES))
    assert len(results[0]) == 600
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for key, values in other.items():
            assert values == pytest.approx(results[0][key], abs=1e-9)


def test_recomputation_counts_a_late_label_and_moves_no_position(settings: Settings, lake: Lake) -> None:
    late = FIRST + timedelta(days=20)
    land(lake, [body(0, FIRST, terminal_id=1), body(1, late, terminal_id=1), body(2, late + timedelta(days=1))])
    process_landed(lake, settings)
    before = read_features(lake, "terminal_id_risk_30day_window")
    land_label(lake, 0, "0", FIRST + timedelta(days=10))
    assert process_landed(lake, settings).landed == 0
    assert read_features(lake, "terminal_id_risk_30day_window") == before
    positions = stored_positions(lake)
    assert recompute(lake, settings, late, late + timedelta(days=1)) == 1
    after = read_features(lake, "terminal_id_risk_30day_window")
    assert (before["1"], after["1"]) == ((0.0,), (1.0,))
    assert {key: after[key] for key in "02"} == {key: before[key] for key in "02"}
    assert stored_positions(lake) == positions


def test_recomputed_rows_have_the_current_feature_version(
    settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error about rows of an earlier feature version names this fix."""
    land(lake, [body(0, FIRST), body(1, FIRST + timedelta(hours=1))])
    with monkeypatch.context() as patch:
        patch.setattr(local_features, "FEATURE_VERSION", "0")
        process_landed(lake, settings)
    assert read_features(lake, "feature_version") == {"0": ("0",), "1": ("0",)}
    assert recompute(lake, settings, FIRST, FIRST + timedelta(days=1)) == 2
    assert read_features(lake, "feature_version") == {"0": (FEATURE_VERSION,), "1": (FEATURE_VERSION,)}


def stored_positions(lake: Lake) -> dict[Any, int]:
    """Returns the committed offset of the features table for every source partition that landed."""
    handle = lake.open(transaction_features)
    partitions = find_pending(lake.open(raw_transactions), lambda partition: -1, Settings()).target
    return {partition: committed_offset(handle, partition) for partition in partitions}


def test_an_empty_range_is_refused(settings: Settings, lake: Lake) -> None:
    with pytest.raises(SettingError, match="empty or has no time zone"):
        recompute(lake, settings, FIRST, FIRST)


def test_a_setting_change_after_a_killed_run_loses_no_message(
    settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is killed after it commits to quarantine. The next run has a larger limit and keeps the committed split."""
    land(lake, [body(number, FIRST, note="x" * (number * 10)) for number in range(20)])
    strict = settings.model_copy(update={"max_body_bytes": 200})
    from fraud_assets.stages import features as stage

    original = stage.commit_append

    def interrupt_at_features(handle: Any, table: Any, *rest: Any, **named: Any) -> None:
        if table is transaction_features:
            raise KeyboardInterrupt
        original(handle, table, *rest, **named)

    monkeypatch.setattr(stage, "commit_append", interrupt_at_features)
    with pytest.raises(KeyboardInterrupt):
        process_landed(lake, strict)
    monkeypatch.setattr(stage, "commit_append", original)
    quarantined = read_row_count(lake.open(quarantined_transactions))
    assert 0 < quarantined < 20
    assert reconcile(lake, settings)["waiting"] == 20
    # This also holds for several batches: after the first one, quarantine is still ahead of features.
    assert process_landed(lake, settings.model_copy(update={"batch_bytes": 1_000})).batches > 2
    totals = reconcile(lake, settings)
    assert totals["quarantined"] == quarantined
    assert totals["features"] == 20 - quarantined


def test_a_batch_is_bounded_by_bytes(settings: Settings, lake: Lake) -> None:
    """A batch follows the landing order over partitions and files: at most `batch_bytes`, or one larger message."""
    sizes = [300, 500, 4_000, 200, 200, 900]
    values = [body(number, FIRST, note="x" * size) for number, size in enumerate(sizes * 4)]
    for start in range(0, len(values), 4):
        land(lake, values[start : start + 2], first_offset=start)
        land(lake, values[start + 2 : start + 4], first_offset=start, partition=1)
    limited = settings.model_copy(update={"batch_bytes": 2_000})
    features, processed = lake.open(transaction_features), list[tuple[int, int]]()
    known: dict[Any, int] = {}
    while (work := find_pending(lake.open(raw_transactions), lambda p: known.get(p, -1), limited)).target:  # noqa: B023
        bounds = next_bounds(work, limited, limited.batch_limits)
        rows = read_rows_within(work, bounds, limited)
        total = sum(map(len, rows["value"].to_pylist()))
        assert 0 < total <= 2_000 or rows.num_rows == 1
        # A batch ends only where the next message would not fit.
        rest = read_rows_within(work, Bounds(work.start, work.target), limited).slice(rows.num_rows, 1)
        assert not rest.num_rows or total + len(rest["value"][0].as_py()) > 2_000
        processed += zip(rows["partition"].to_pylist(), rows["offset"].to_pylist(), strict=True)
        known |= bounds.target
    pending = find_pending(lake.open(raw_transactions), lambda p: -1, settings)
    expected = read_rows_within(pending, next_bounds(pending, settings, settings.batch_limits), settings)
    assert processed == list(zip(expected["partition"].to_pylist(), expected["offset"].to_pylist(), strict=True))
    assert len(processed) == len(values)
    assert read_row_count(features) == 0


def test_a_batch_reads_bodies_only_from_its_own_files(
    settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every batch would read all files of a long backlog."""
    for start in range(0, 40, 4):
        land(lake, [os.urandom(4_000) for _ in range(4)], first_offset=start)
    work = find_pending(lake.open(raw_transactions), lambda p: -1, settings)
    file_counts: list[int] = []
    from fraud_assets.lake import batches

    original = batches.register_view

    def count_files(connection: Any, name: str, handle: Any, files: Any) -> None:
        file_counts.append(len(files))
        original(connection, name, handle, files)

    monkeypatch.setattr(batches, "register_view", count_files)
    bounds = next_bounds(work, settings, BatchLimits(500_000, 30_000))
    assert list(bounds.target.values()) == [6]
    # The lengths come from two files. The positions come from all files, which is cheap.
    assert file_counts == [1, 1, 10]
