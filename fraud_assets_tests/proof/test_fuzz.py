"""Large numbers of mutated messages and files pass through every stage."""

from __future__ import annotations

from time import monotonic
from typing import Any
from uuid import uuid4

import pytest

from fraud_assets.lake.tables import Lake
from fraud_assets.operations.reconciliation import reconcile
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed
from fraud_assets_tests.support import fuzz
from fraud_assets_tests.support.fuzz_flow import (
    DIALECTS,
    KEY,
    Make,
    any_broker,
    assert_files_are_in_their_place,
    drop,
    flow,
    land_in_a_process,
)


@pytest.mark.timeout(1_200)
@pytest.mark.xdist_group("apache")
@pytest.mark.parametrize(
    ("kind", "dialect", "secret", "count"),
    [
        ("json", "handbook", "", 100_000),
        ("json", "sparkov", "", 10_000),
        ("avro", "handbook", "", 10_000),
        ("json_schema", "handbook", "", 10_000),
        ("json", "sparkov", "cc_num,card.number", 10_000),
        ("avro", "handbook", "customer_id", 5_000),
    ],
)
def test_a_hundred_thousand_mutated_messages_reach_the_right_tables(
    request: pytest.FixtureRequest,
    make_settings: Make,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    dialect: str,
    secret: str,
    count: int,
) -> None:
    overrides: dict[str, Any] = {
        "transactions_format": kind,
        "schema_registry_url": f"mock://{uuid4().hex}",
        "field_mapping": DIALECTS[dialect].mapping,
        "pseudonymise": secret,
        "pseudonym_key": KEY,
        "train_trees": 5,
        "train_min_rows": 200,
    }
    with any_broker(request, make_settings, **overrides) as settings:
        counts, seconds = flow(settings, DIALECTS[dialect], count, 5_000, seed=31, partitions=2, scored=True)
    with capsys.disabled():
        print(f"\n{count:,} of {dialect} in {kind}{secret and ', pseudonymised'}: {count / seconds:,.0f}/s, {counts}")
    assert min(counts["features"], counts["quarantined"]) > count // 6
    assert min(counts["labels"], counts["quarantined_labels"]) > count // 60


@pytest.mark.timeout(1_200)
def test_a_thousand_mutated_files_land_completely_or_fail_with_a_reason(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    dropped = drop(settings, fuzz.files(1_000, 42))
    started = monotonic()
    land_in_a_process(settings, 1_000)
    seconds = monotonic() - started
    landed, failed = assert_files_are_in_their_place(settings, dropped)
    with capsys.disabled():
        print(f"\n{len(dropped):,} files: {landed:,} landed, {failed:,} failed, {len(dropped) / seconds:,.0f}/s")
    assert min(landed, failed) > 200


@pytest.mark.timeout(600)
def test_only_receipts_of_mutated_files_are_kept_if_fields_become_pseudonyms(settings: Settings) -> None:
    drop(settings, fuzz.files(300, 43))
    land_in_a_process(settings, 500, FRAUD_PSEUDONYMISE="customer_id", FRAUD_PSEUDONYM_KEY=KEY)
    kept = [*settings.processed.iterdir(), *settings.failed.iterdir()]
    assert len(kept) == 300
    assert all(path.name.endswith((".receipt.json", ".reason.txt")) for path in kept)
    lake = Lake.of(settings)
    process_landed(lake, settings)
    counts = reconcile(lake, settings)
    assert counts["landed"] == counts["features"] + counts["quarantined"] + counts["duplicates"] > 1_000
