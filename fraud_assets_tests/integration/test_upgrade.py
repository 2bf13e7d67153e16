"""Tables of an earlier version are refused with an error, and an upgrade adds missing columns."""

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


def rewrite_with_schema(lake: Lake, table: Table, schema: pa.Schema) -> None:
    """Replaces a table with one that has another schema and the same rows."""
    rows = read(lake.open(table))
    renamed = {"lineage": "topic_id"}
    values = [rows[renamed.get(field.name, field.name)].cast(field.type) for field in schema]
    write_deltalake(
        lake.uri(table),
        pa.table(values, schema=schema),
        mode="overwrite",
        schema_mode="overwrite",
        partition_by=[table.partition_by],
    )


def schema_without(table: Table, name: str) -> pa.Schema:
    return pa.schema([field for field in table.schema if field.name != name])


def test_an_upgrade_adds_missing_columns_and_keeps_rows(settings: Settings, lake: Lake, tmp_path: Path) -> None:
    land(lake, bodies(3))
    rewrite_with_schema(lake, raw_transactions, schema_without(raw_transactions, "headers"))
    with pytest.raises(LakeError, match=r"has no column headers.*Run `fraud-assets upgrade`"):
        lake.open(raw_transactions)
    before = DeltaTable(lake.uri(raw_transactions)).version()
    environment = {"FRAUD_HOME": str(settings.home_path)}
    dry_run = run(tmp_path, "upgrade", "--dry-run", "--json", **environment)
    assert json.loads(dry_run.stdout) == {"dry_run": True, "added": {"raw_transactions": ["headers"]}}
    assert DeltaTable(lake.uri(raw_transactions)).version() == before
    upgraded = run(tmp_path, "upgrade", **environment)
    assert (upgraded.returncode, upgraded.stdout) == (0, "raw_transactions: added headers\n")
    rows = read(lake.open(raw_transactions))
    assert (rows.num_rows, rows["headers"].null_count) == (3, 3)
    # Landing continues, and a second upgrade changes nothing.
    land(lake, bodies(3, first_id=3), first_offset=3)
    assert read(lake.open(raw_transactions)).num_rows == 6
    assert upgrade_lake(lake) == []
    # The added columns come last, and every stage reads columns by name.
    assert process_landed(lake, settings).features == 6
    assert recompute(lake, settings, FIRST, FIRST + timedelta(days=1)) == 6
    handle, location = lake.open(raw_transactions), lake.location(raw_transactions)
    slices = list_slices(handle, add_actions(handle)["path"].to_pylist(), raw_transactions)
    batches = read_slices(location, slices, raw_transactions.schema, raw_transactions.partition_by)
    assert sum(batch.num_rows for batch in batches) == 6


def test_the_next_upgrade_completes_an_interrupted_upgrade(lake: Lake) -> None:
    for table, column in ((raw_transactions, "headers"), (quarantined_transactions, "detail")):
        rewrite_with_schema(lake, table, schema_without(table, column))
    handle = DeltaTable(lake.uri(raw_transactions))
    handle.alter.add_columns([field for field in delta_fields(raw_transactions) if field.name == "headers"])
    assert upgrade_lake(lake) == [TableUpgrade("quarantined_transactions", ("detail",))]
    lake.open(quarantined_transactions)


def delta_fields(table: Table) -> list[object]:
    from deltalake import Schema

    return Schema.from_arrow(table.schema).fields


def test_a_lake_with_the_former_name_of_topic_id_is_refused(settings: Settings, lake: Lake, tmp_path: Path) -> None:
    land(lake, bodies(2))
    former_fields = [
        field.with_name("lineage") if field.name == "topic_id" else field for field in raw_transactions.schema
    ]
    rewrite_with_schema(lake, raw_transactions, pa.schema(former_fields))
    with pytest.raises(LakeError, match="has the column lineage, which was renamed to topic_id"):
        lake.open(raw_transactions)
    result = run(tmp_path, "upgrade", FRAUD_HOME=str(settings.home_path))
    assert_one_sentence(result, "lineage", "topic_id", "FRAUD_HOME")
    assert result.returncode == 1


def test_an_upgrade_does_not_add_a_column_that_must_not_be_null(lake: Lake) -> None:
    rewrite_with_schema(lake, quarantined_transactions, schema_without(quarantined_transactions, "reason"))
    with pytest.raises(LakeError, match=r"has no column reason.*land again"):
        upgrade_lake(lake)


def test_a_current_lake_needs_no_upgrade(lake: Lake) -> None:
    land(lake, bodies(2))
    assert upgrade_lake(lake) == []
