"""Features on Spark: what DuckDB computes, to 1e-9, with the same quarantine, exactly once."""

from __future__ import annotations

import json
import random
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from fraud_assets.core.schema import (
    HEADERS,
    MESSAGES,
    QUARANTINED_TRANSACTIONS,
    TIME,
    TRANSACTION_FEATURES,
    Table,
    quarantined_transactions,
    raw_transactions,
    transaction_features,
)
from fraud_assets.engines.landing_tables import append_labels
from fraud_assets.engines.spark import features as on_spark
from fraud_assets.engines.spark.engine import SparkEngine
from fraud_assets.errors import LakeError
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.log import row_count
from fraud_assets.lake.tables import Lake, read
from fraud_assets.operations.reconciliation import reconcile
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed, recompute

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspark.sql import SparkSession

pytestmark = pytest.mark.xdist_group("spark")

START = datetime(2026, 1, 1, tzinfo=UTC)
HEADS = (None, [], [("trace", b"\x00\xff"), ('é"', b""), ("", None)])


def messages(bodies: list[bytes | None], first: int = 0, partition: int = 0, topic: str = "transactions") -> pa.Table:
    count = len(bodies)
    return pa.table(
        {
            "topic": pa.repeat(topic, count),
            "topic_id": pa.repeat("life", count),
            "partition": pa.array([partition] * count, pa.int32()),
            "offset": range(first, first + count),
            "timestamp": pa.nulls(count, TIME),
            "key": pa.nulls(count, pa.binary()),
            "value": pa.array(bodies, pa.binary()),
            "headers": pa.array([HEADS[offset % len(HEADS)] for offset in range(first, first + count)], HEADERS),
        }
    ).cast(MESSAGES)


def stream(chance: random.Random, count: int, days: int, ids: int) -> list[bytes | None]:
    """Bodies with ties, late events, repeated ids, nulls and what is no transaction."""
    bodies: list[bytes | None] = []
    for _ in range(count):
        transaction = {
            "transaction_id": chance.randrange(ids),
            "tx_datetime": (START + timedelta(minutes=chance.randrange(days * 24 * 60))).isoformat(),
            "customer_id": chance.randrange(7),
            "terminal_id": chance.choice([0, 0, 0, 1, 2, 3]),
            "tx_amount": round(chance.expovariate(0.01), 2),
        }
        bad = chance.random()
        if bad < 0.03:
            bodies.append(chance.choice([None, b"{", b"[]", b"\xff\xfe"]))
            continue
        if bad < 0.08:
            transaction[chance.choice(list(transaction))] = None
        if bad < 0.10:
            transaction["tx_amount"] = -1
        bodies.append(json.dumps(transaction).encode())
    return bodies


def labels(chance: random.Random, count: int, days: int, ids: int) -> list[bytes]:
    return [
        json.dumps(
            {
                "transaction_id": chance.randrange(ids),
                "is_fraud": chance.random() < 0.7,
                "labelled_at": (START + timedelta(minutes=chance.randrange((days + 5) * 24 * 60))).isoformat(),
            }
        ).encode()
        for _ in range(count)
    ]


def land(lake: Lake, settings: Settings, seed: int, part: int, count: int = 300, days: int = 40) -> None:
    chance = random.Random(seed * 1000 + part)
    ids = count * 4
    for partition in (0, 1):
        append_landed(lake, raw_transactions, messages(stream(chance, count, days, ids), part * count, partition))
    late = messages(list(labels(chance, count, days, ids)), part * count, topic="fraud-labels")
    append_labels(lake, settings, late)


def copy_of(lake: Lake, to: Path) -> Lake:
    shutil.copytree(lake.root, to)
    return Lake(str(to))


def content(lake: Lake, table: Table, schema: pa.Schema) -> pa.Table:
    order = [(name, "ascending") for name in ("topic", "topic_id", "partition", "offset")]
    return read(lake.open(table)).cast(schema).sort_by(order).combine_chunks()


def assert_equal(first: Lake, second: Lake) -> None:
    mine, theirs = (content(lake, transaction_features, TRANSACTION_FEATURES) for lake in (first, second))
    assert mine.num_rows == theirs.num_rows
    for name in mine.column_names:
        if pa.types.is_floating(mine[name].type):
            np.testing.assert_allclose(mine[name].to_numpy(), theirs[name].to_numpy(), rtol=0, atol=1e-9, err_msg=name)
        else:
            assert mine[name].equals(theirs[name]), name
    quarantined = (content(lake, quarantined_transactions, QUARANTINED_TRANSACTIONS) for lake in (first, second))
    assert next(quarantined).equals(next(quarantined))


def test_spark_gives_what_duckdb_gives_and_finishes_what_was_killed_between_its_two_commits(
    spark: SparkSession, lake: Lake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"batch_rows": 400, "spark_batch_rows": 400})
    land(lake, settings, seed=1, part=0)  # 600 messages: the killed batch is cut in their middle
    from fraud_assets.stages import features as pipeline

    commit = pipeline.commit_append

    def killed(handle: object, table: Table, *rest: object) -> None:
        if table is transaction_features:
            raise LakeError("killed here")
        commit(handle, table, *rest)

    monkeypatch.setattr(pipeline, "commit_append", killed)
    with pytest.raises(LakeError):
        process_landed(lake, settings, SparkEngine(settings, lambda: spark))
    monkeypatch.setattr(pipeline, "commit_append", commit)
    land(lake, settings, seed=1, part=3, count=100)  # what landed meanwhile is no part of the begun batch
    other = copy_of(lake, tmp_path / "other")
    mine = process_landed(lake, settings, SparkEngine(settings, lambda: spark))
    theirs = process_landed(other, settings)
    assert (mine.landed, mine.features, mine.reasons) == (theirs.landed, theirs.features, theirs.reasons)
    assert mine.landed == mine.features + mine.quarantined + mine.duplicates == 800
    assert mine.batches == theirs.batches == 2
    assert {"duplicate", "tombstone", "negative_amount", "wrong_type"} <= set(mine.reasons)
    assert_equal(lake, other)
    assert reconcile(lake, settings) == reconcile(other, settings)


def test_a_race_of_both_engines_counts_nothing_twice(
    spark: SparkSession, lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(lake, settings, seed=4, part=0)
    raced = []
    write = on_spark.write

    def write_while_another_runs(*arguments: object) -> object:
        files = write(*arguments)
        if not raced:
            raced.append(process_landed(lake, settings))
        return files

    monkeypatch.setattr(on_spark, "write", write_while_another_runs)
    report = process_landed(lake, settings, SparkEngine(settings, lambda: spark))
    assert raced[0].landed == 600
    assert report.landed == 0
    assert row_count(lake.open(transaction_features)) + row_count(lake.open(quarantined_transactions)) == 600


def test_a_range_is_recomputed_as_duckdb_restates_it(
    spark: SparkSession, lake: Lake, settings: Settings, tmp_path: Path
) -> None:
    land(lake, settings, seed=5, part=0)
    process_landed(lake, settings)
    chance = random.Random(5)
    append_labels(lake, settings, messages(list(labels(chance, 300, 40, 1200)), 10_000, topic="fraud-labels"))
    other = copy_of(lake, tmp_path / "other")
    before = content(lake, transaction_features, TRANSACTION_FEATURES)
    start, end = START + timedelta(days=20, hours=7), START + timedelta(days=30, hours=3)
    rows = recompute(lake, settings, start, end, engine=SparkEngine(settings, lambda: spark))
    assert rows == recompute(other, settings, start, end)
    assert not content(lake, transaction_features, TRANSACTION_FEATURES).equals(before)
    assert_equal(lake, other)
    # Positions did not move: nothing is taken for new.
    assert process_landed(lake, settings).landed == 0


def test_nothing_new_starts_no_session(lake: Lake, settings: Settings) -> None:
    def never() -> SparkSession:
        raise AssertionError("started")

    assert process_landed(lake, settings, SparkEngine(settings, never)).landed == 0


@pytest.mark.proof
@examples(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 120),
    days=st.integers(1, 90),
    delay=st.integers(0, 10),
    zone=st.sampled_from(["UTC", "Europe/Brussels", "Asia/Kolkata"]),
)
def test_engines_agree_on_any_stream(
    spark: SparkSession,
    make_settings: Callable[..., Settings],
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    count: int,
    days: int,
    delay: int,
    zone: str,
) -> None:
    home = tmp_path_factory.mktemp("any")
    settings = make_settings(home=home, feedback_delay_days=delay, time_zone=zone)
    lake = Lake.of(settings)
    for part in range(2):
        land(lake, settings, seed, part, count, days)
        if part == 0:
            process_landed(lake, settings)
    other = copy_of(lake, home / "other")
    process_landed(lake, settings, SparkEngine(settings, lambda: spark))
    process_landed(other, settings)
    assert_equal(lake, other)
