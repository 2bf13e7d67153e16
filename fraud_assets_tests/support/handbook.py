"""The handbook's data set in a lake, and the features that the handbook publishes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fraud_assets.core.schema import DERIVED_FEATURES, fraud_labels, transaction_features
from fraud_assets.engines.local.windows import compute_windows
from fraud_assets.ingest.landing import land_once
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.settings import Settings, load_settings
from fraud_assets.stages.features import process_landed

FIRST_DAY, LAST_DAY = date(2018, 7, 11), date(2018, 8, 7)


@pytest.fixture(scope="module")
def handbook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, Lake]]:
    """A lake with the rows and features of the five transaction files."""
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
    """The feature tables that the handbook publishes, sorted by transaction id."""
    table = pq.read_table(handbook[0].handbook_data / f"book_features_{FIRST_DAY}_{LAST_DAY}.parquet")
    return table.append_column("id", table["TRANSACTION_ID"].cast(pa.string())).sort_by("id")


def assert_every_cell(mine: pa.Table, book: pa.Table) -> None:
    """Asserts that all fourteen derived features equal those of the handbook, to 1e-6."""
    mine = mine.filter(pc.is_in(mine["transaction_id"], book["id"])).sort_by("transaction_id")
    assert mine["transaction_id"].equals(book["id"])
    for name in DERIVED_FEATURES:
        difference = pc.subtract(mine[name].cast(pa.float64()), book[name.upper()].cast(pa.float64()))
        assert pc.max(pc.abs(difference)).as_py() < 1e-6, name


def assert_day_by_day(handbook: tuple[Settings, Lake], book: pa.Table, count: int) -> None:
    """Computes each of the last `count` days as a separate batch and compares each cell with the handbook."""
    settings, lake = handbook
    first = LAST_DAY - timedelta(days=count - 1)
    rows = (
        open_dataset(lake.open(transaction_features))
        .to_table()
        .sort_by([("ingested_at", "ascending"), ("offset", "ascending")])
    )
    labels = open_dataset(lake.open(fraud_labels)).to_table(filter=pc.field("is_fraud"))
    labels = pa.table(
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
        arrived = labels.filter(pc.less(labels["labelled_us"], end_of_day))
        windows = compute_windows(known, arrived, settings)
        today = near.filter(new).select(["transaction_id", *DERIVED_FEATURES[:2]])
        for name in DERIVED_FEATURES[2:]:
            today = today.append_column(name, windows[name])
        days.append(today)
    mine = pa.concat_tables(days)
    theirs = book.filter(pc.is_in(book["id"], mine["transaction_id"]))
    assert mine.num_rows == theirs.num_rows
    assert_every_cell(mine, theirs)
