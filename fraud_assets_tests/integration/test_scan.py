from __future__ import annotations

from datetime import timedelta

import pyarrow as pa
import pytest

from fraud_assets.core.schema import TRANSACTION_FEATURES, transaction_features
from fraud_assets.lake import duckdb_session as engine
from fraud_assets.lake import scan
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.scan import find_files_within, register_view
from fraud_assets.lake.tables import Lake, open_dataset
from fraud_assets.settings import load_settings
from fraud_assets_tests.support.synthetic import FIRST, commit_features, features


def read(handle, settings, files=None) -> pa.Table:
    with engine.connect(settings) as connection:
        register_view(connection, "rows", handle, files)
        rows = connection.sql('select * from rows order by "offset", "partition"').to_arrow_table()
    return rows.select(TRANSACTION_FEATURES.names).cast(TRANSACTION_FEATURES)


@pytest.mark.parametrize(
    ("folder", "reads_directly"), [("lake", True), ("it's a lake", True), ("it's", True), ("env=test", False)]
)
def test_both_readers_return_the_same_rows(tmp_path, folder, reads_directly):
    settings = load_settings(home=tmp_path)
    lake = Lake(str(tmp_path / folder))
    commit_features(lake, features(300))
    handle = lake.open(transaction_features)
    with engine.connect(settings) as connection:
        parquet = scan._parquet_source(connection, handle, handle_files(handle), TRANSACTION_FEATURES)
    assert (parquet is not None) == reads_directly
    expected = open_dataset(handle).to_table().sort_by([("offset", "ascending"), ("partition", "ascending")])
    assert read(handle, settings).equals(expected.select(TRANSACTION_FEATURES.names).cast(TRANSACTION_FEATURES))


def handle_files(handle):
    return add_actions(handle)["path"].to_pylist()


def test_an_empty_table_and_an_empty_list_of_files_have_all_columns(tmp_path):
    settings = load_settings(home=tmp_path)
    lake = Lake(str(tmp_path / "lake"))
    assert read(lake.open(transaction_features), settings).num_rows == 0
    commit_features(lake, features(50))
    assert read(lake.open(transaction_features), settings, []).num_rows == 0


def test_files_are_skipped_by_partition_and_by_statistics(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    commit_features(lake, features(300, days=10))
    handle = lake.open(transaction_features)
    day = FIRST.date() + timedelta(days=3)
    assert [path.split("/")[0] for path in find_files_within(handle, {"tx_date": (day, day)})] == [f"tx_date={day}"]
    later = FIRST + timedelta(days=8, hours=1)
    assert len(find_files_within(handle, {"tx_datetime": (later, None)})) == 2
    assert len(find_files_within(handle, {"tx_datetime": (None, FIRST)})) == 1
    assert find_files_within(handle, {"tx_datetime": (FIRST + timedelta(days=30), None)}) == []


def test_a_file_is_not_skipped_although_its_statistics_are_truncated_to_milliseconds(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    moment = FIRST + timedelta(microseconds=1_999)
    rows = features(1)
    index = rows.column_names.index("tx_datetime")
    commit_features(
        lake, rows.set_column(index, rows.schema.field(index), pa.array([moment], rows.schema.field(index).type))
    )
    assert len(find_files_within(lake.open(transaction_features), {"tx_datetime": (moment, moment)})) == 1
