"""The proofs on the handbook's own data: every cell of its feature tables, and its published figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from fraud_assets.commands.evaluate import command as evaluate
from fraud_assets.core.schema import DERIVED_FEATURES, fraud_labels, raw_transactions, transaction_features
from fraud_assets.engines.local.windows import compute_windows
from fraud_assets.engines.spark.engine import SparkEngine
from fraud_assets.ingest.landing import land_once
from fraud_assets.lake.tables import Lake, dataset_of
from fraud_assets.operations.reconciliation import reconcile
from fraud_assets.settings import Settings, load_settings
from fraud_assets.stages.features import process_landed

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS = 1_236_698
FIRST_DAY, LAST_DAY = date(2018, 7, 11), date(2018, 8, 7)
PUBLISHED = {"auc_roc": 0.808, "average_precision": 0.164, "card_precision_at_100": 0.190}

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("handbook")]


@pytest.fixture(scope="module")
def handbook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, Lake]]:
    """A lake into which the five transaction files were dropped, with features."""
    data = load_settings().handbook_data
    files = sorted(data.glob("transactions_*.parquet"))
    if not files:
        pytest.skip(f"the handbook's data is not at {data} (FRAUD_HANDBOOK_DATA)")
    home = tmp_path_factory.mktemp("handbook")
    settings = load_settings(home=home, file_quiet_seconds=0)
    settings.incoming.mkdir()
    for file in files:
        shutil.copyfile(file, settings.incoming / file.name)
    lake = Lake.of(settings)
    land_once(lake, settings, topics=False)
    process_landed(lake, settings)
    yield settings, lake
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def book(handbook: tuple[Settings, Lake]) -> pa.Table:
    """The book's own feature tables, by transaction id."""
    table = pq.read_table(handbook[0].handbook_data / f"book_features_{FIRST_DAY}_{LAST_DAY}.parquet")
    return table.append_column("id", table["TRANSACTION_ID"].cast(pa.string())).sort_by("id")


def assert_every_cell(mine: pa.Table, book: pa.Table) -> None:
    """Equal to the book in all fourteen derived features, to 1e-6."""
    mine = mine.filter(pc.is_in(mine["transaction_id"], book["id"])).sort_by("transaction_id")
    assert mine["transaction_id"].equals(book["id"])
    for name in DERIVED_FEATURES:
        difference = pc.subtract(mine[name].cast(pa.float64()), book[name.upper()].cast(pa.float64()))
        assert pc.max(pc.abs(difference)).as_py() < 1e-6, name


def test_landed_in_one_piece(handbook: tuple[Settings, Lake], book: pa.Table) -> None:
    settings, lake = handbook
    totals = reconcile(lake, settings)
    assert (totals["landed"], totals["features"], totals["quarantined"], totals["duplicates"]) == (ROWS, ROWS, 0, 0)
    assert book.num_rows == 267_967
    columns = ["transaction_id", *DERIVED_FEATURES]
    assert_every_cell(dataset_of(lake.open(transaction_features)).to_table(columns=columns), book)


@pytest.mark.proof
def test_on_spark(handbook: tuple[Settings, Lake], book: pa.Table, spark: SparkSession, tmp_path: Path) -> None:
    """Of all rows the same as by the other engine, to 1e-9, in batches that are each other's history."""
    settings, lake = handbook
    other = Lake(str(tmp_path / "lake"))
    for table in (raw_transactions, fraud_labels):
        shutil.copytree(lake.uri(table), other.uri(table))
    process_landed(other, settings, SparkEngine(settings, lambda: spark))
    columns = ["transaction_id", *DERIVED_FEATURES]
    mine, theirs = (
        dataset_of(each.open(transaction_features)).to_table(columns=columns).sort_by("transaction_id")
        for each in (other, lake)
    )
    assert mine["transaction_id"].equals(theirs["transaction_id"])
    for name in DERIVED_FEATURES:
        difference = pc.subtract(mine[name].cast(pa.float64()), theirs[name].cast(pa.float64()))
        assert pc.max(pc.abs(difference)).as_py() < 1e-9, name
    assert_every_cell(mine, book)


@pytest.mark.parametrize("count", [7, pytest.param((LAST_DAY - FIRST_DAY).days + 1, marks=pytest.mark.proof)])
def test_day_by_day(handbook: tuple[Settings, Lake], book: pa.Table, count: int) -> None:
    """Each of the last days as a batch of its own, with only the history and the labels of the days before it."""
    settings, lake = handbook
    first = LAST_DAY - timedelta(days=count - 1)
    rows = (
        dataset_of(lake.open(transaction_features))
        .to_table()
        .sort_by([("ingested_at", "ascending"), ("offset", "ascending")])
    )
    labels = dataset_of(lake.open(fraud_labels)).to_table(filter=pc.field("is_fraud"))
    verdicts = pa.table(
        {
            "transaction_id": labels["transaction_id"],
            "is_fraud": labels["is_fraud"],
            "labelled_us": labels["labelled_at"].cast(pa.int64()),
            "arrival": pa.array(range(labels.num_rows), pa.int64()),
        }
    )
    days = []
    for number in range(count):
        day = first + timedelta(days=number)
        since = pa.scalar(day - timedelta(days=settings.window_policy.history_days + 1), pa.date32())
        near = rows.filter(pc.and_(pc.greater(rows["tx_date"], since), pc.less_equal(rows["tx_date"], pa.scalar(day))))
        new = pc.equal(near["tx_date"], pa.scalar(day))
        known = pa.table(
            {
                **{name: near[name] for name in ("transaction_id", "customer_id", "terminal_id", "tx_amount")},
                "event_us": near["tx_datetime"].cast(pa.int64()),
                "is_new": new,
                "arrival": pa.array(range(near.num_rows), pa.int64()),
            }
        )
        end_of_day = pa.scalar(day + timedelta(days=1)).cast(pa.timestamp("us")).cast(pa.int64())
        arrived = verdicts.filter(pc.less(verdicts["labelled_us"], end_of_day))
        windows = compute_windows(known, arrived, settings)
        today = near.filter(new).select(["transaction_id", *DERIVED_FEATURES[:2]])
        for name in DERIVED_FEATURES[2:]:
            today = today.append_column(name, windows[name])
        days.append(today)
    mine = pa.concat_tables(days)
    theirs = book.filter(pc.is_in(book["id"], mine["transaction_id"]))
    assert mine.num_rows == theirs.num_rows
    assert_every_cell(mine, theirs)


@pytest.mark.parametrize("model", ["book", "platform"])
def test_published_figures(handbook: tuple[Settings, Lake], monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """The book's row to the third decimal; the platform's default is not worse; nothing is registered."""
    settings, _ = handbook
    monkeypatch.setenv("FRAUD_HOME", str(settings.home_path))
    protocol = ["--train-start", "2018-07-11", "--train-days", "7", "--delay-days", "7", "--test-days", "7"]
    result = CliRunner().invoke(evaluate, [*protocol, "--model", model, "--json"], catch_exceptions=False)
    figures = json.loads(result.stdout.splitlines()[-1])
    for name, published in PUBLISHED.items():
        if model == "book":
            assert round(figures[name], 3) == published
        else:
            assert figures[name] >= published
    assert not Path(settings.home_path / "mlflow" / "mlflow.db").exists()
