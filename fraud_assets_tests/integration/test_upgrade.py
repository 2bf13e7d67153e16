"""Tables of an earlier version: refused with one sentence, and upgraded if added columns are enough."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from fraud_assets.core.schema import Table, quarantined_transactions, raw_transactions
from fraud_assets.errors import LakeError
from fraud_assets.lake.data_files import list_slices, read_slices
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.tables import Lake, read
from fraud_assets.operations.upgrade import TableUpgrade, upgrade_lake
from fraud_assets.settings import Settings
from fraud_assets.stages.features import process_landed, recompute
from fraud_assets_tests.support.commands import assert_one_sentence, run
from fraud_assets_tests.support.landed import FIRST, bodies, land


def write_earlier(lake: Lake, table: Table, schema: pa.Schema) -> None:
    """Replaces a table by one with other columns, with its rows where it has any."""
    rows = read(lake.open(table))
    columns = {"lineage": "topic_id"}
    values = [rows[columns.get(field.name, field.name)].cast(field.type) for field in schema]
    write_deltalake(
        lake.uri(table),
        pa.table(values, schema=schema),
        mode="overwrite",
        schema_mode="overwrite",
        partition_by=[table.partition_by],
    )


def without(table: Table, name: str) -> pa.Schema:
    return pa.schema([field for field in table.schema if field.name != name])


def test_missing_columns_are_added_and_rows_stay(settings: Settings, lake: Lake, tmp_path: Path) -> None:
    land(lake, bodies(3))
    write_earlier(lake, raw_transactions, without(raw_transactions, "headers"))
    with pytest.raises(LakeError, match=r"has no column headers.*Run `fraud-assets upgrade`"):
        lake.open(raw_transactions)
    before = DeltaTable(lake.uri(raw_transactions)).version()
    home = {"FRAUD_HOME": str(settings.home_path)}
    shown = run(tmp_path, "upgrade", "--dry-run", "--json", **home)
    assert json.loads(shown.stdout) == {"dry_run": True, "added": {"raw_transactions": ["headers"]}}
    assert DeltaTable(lake.uri(raw_transactions)).version() == before
    done = run(tmp_path, "upgrade", **home)
    assert (done.returncode, done.stdout) == (0, "raw_transactions: added headers\n")
    rows = read(lake.open(raw_transactions))
    assert (rows.num_rows, rows["headers"].null_count) == (3, 3)
    # Landing continues, and a second upgrade finds nothing to do.
    land(lake, bodies(3, first_id=3), first_offset=3)
    assert read(lake.open(raw_transactions)).num_rows == 6
    assert upgrade_lake(lake) == []
    # The columns that were added come last; every stage reads them by name.
    assert process_landed(lake, settings).features == 6
    assert recompute(lake, settings, FIRST, FIRST + timedelta(days=1)) == 6
    handle, location = lake.open(raw_transactions), lake.location(raw_transactions)
    slices = list_slices(handle, add_actions(handle)["path"].to_pylist(), raw_transactions)
    batches = read_slices(location, slices, raw_transactions.schema, raw_transactions.partition_by)
    assert sum(batch.num_rows for batch in batches) == 6


def test_an_interrupted_upgrade_is_finished_by_the_next(lake: Lake) -> None:
    for table, column in ((raw_transactions, "headers"), (quarantined_transactions, "detail")):
        write_earlier(lake, table, without(table, column))
    handle = DeltaTable(lake.uri(raw_transactions))
    handle.alter.add_columns([field for field in _fields(raw_transactions) if field.name == "headers"])
    assert upgrade_lake(lake) == [TableUpgrade("quarantined_transactions", ("detail",))]
    lake.open(quarantined_transactions)


def _fields(table: Table) -> list[object]:
    from deltalake import Schema

    return Schema.from_arrow(table.schema).fields


def test_a_lake_with_the_former_name_of_topic_id_is_refused_in_one_sentence(
    settings: Settings, lake: Lake, tmp_path: Path
) -> None:
    land(lake, bodies(2))
    former = [field.with_name("lineage") if field.name == "topic_id" else field for field in raw_transactions.schema]
    write_earlier(lake, raw_transactions, pa.schema(former))
    with pytest.raises(LakeError, match="has the column lineage, which was renamed to topic_id"):
        lake.open(raw_transactions)
    result = run(tmp_path, "upgrade", FRAUD_HOME=str(settings.home_path))
    assert_one_sentence(result, "lineage", "topic_id", "FRAUD_HOME")
    assert result.returncode == 1


def test_a_column_that_must_not_be_null_needs_more_than_an_upgrade(lake: Lake) -> None:
    write_earlier(lake, quarantined_transactions, without(quarantined_transactions, "reason"))
    with pytest.raises(LakeError, match=r"has no column reason.*land again"):
        upgrade_lake(lake)


def test_a_lake_of_this_version_has_nothing_to_upgrade(lake: Lake) -> None:
    land(lake, bodies(2))
    assert upgrade_lake(lake) == []
