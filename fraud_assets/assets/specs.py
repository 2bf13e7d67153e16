"""Describes the assets for the web UI: owners, tags, kinds, columns, location and freshness."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import dagster as dg
import pyarrow as pa

from fraud_assets.core.column_descriptions import describe_columns
from fraud_assets.core.schema import TABLES, Table
from fraud_assets.settings import load_settings_or_defaults

_SETTINGS = load_settings_or_defaults()
_TABLES = {table.name: table for table in TABLES}

OWNERS = list(_SETTINGS.asset_owners)
ENGINE_KIND = _SETTINGS.engine
"""The kind that names the engine, `duckdb` or `spark`."""

FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=_SETTINGS.freshness_hours))


def describe_asset(
    name: str,
    *,
    deps: Sequence[str],
    group: str,
    kinds: set[str],
    description: str,
    stage: str,
    lineage: dict[str, list[tuple[str, str]]] | None = None,
    fresh: bool = False,
    **more: Any,
) -> dg.AssetSpec:
    """Builds the specification of an asset.

    Args:
        name: name of the asset; for a table also the name of the table.
        deps: names of the assets that it is computed from.
        group: group in the asset graph.
        kinds: technologies, shown as icons.
        description: Markdown text for the asset's page.
        stage: value of the tag `fraud/stage`, by which the catalog can be filtered.
        lineage: for each column, the assets and columns that it is computed from.
        fresh: whether the asset counts as not fresh after FRAUD_FRESHNESS_HOURS.
        **more: further arguments of `AssetSpec`.
    """
    table = _TABLES.get(name)
    metadata: dict[str, Any] = _describe_table(table) if table else {}
    if lineage:
        metadata["dagster/column_lineage"] = dg.TableColumnLineage(
            {
                column: [dg.TableColumnDep(asset_key=asset, column_name=source) for asset, source in sources]
                for column, sources in lineage.items()
            }
        )
    query = f"\n\n```sql\n{_read_query(table)}\n```" if table else ""
    return dg.AssetSpec(
        name,
        deps=list(deps),
        group_name=group,
        kinds=kinds,
        description=description + query,
        owners=OWNERS,
        tags={"fraud/stage": stage},
        metadata=metadata,
        freshness_policy=FRESHNESS if fresh else None,
        skippable=True,
        **more,
    )


def describe_external(
    name: str, *, group: str, kinds: set[str], description: str, location: str, deps: Sequence[str] = ()
) -> dg.AssetSpec:
    """Builds the specification of an asset outside the platform, which Dagster shows but does not materialize."""
    return dg.AssetSpec(
        name,
        deps=list(deps),
        group_name=group,
        kinds=kinds,
        owners=OWNERS,
        description=description,
        metadata={"dagster/uri": location},
    )


def _describe_table(table: Table) -> dict[str, Any]:
    descriptions = describe_columns(table)
    columns = [
        dg.TableColumn(
            field.name,
            _name_type(field.type),
            description=descriptions[field.name],
            constraints=dg.TableColumnConstraints(nullable=field.nullable),
        )
        for field in table.schema
    ]
    return {
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "dagster/table_name": table.name,
        "dagster/storage_kind": "deltalake",
        "dagster/uri": _locate(table),
    }


def _locate(table: Table) -> str:
    return f"{_SETTINGS.lake.rstrip('/')}/{table.name}"


def _read_query(table: Table) -> str:
    return f"-- DuckDB\nselect * from delta_scan('{_locate(table)}') limit 10;"


def _name_type(kind: pa.DataType) -> str:
    """Returns Delta's name of an Arrow type."""
    if pa.types.is_timestamp(kind):
        return "timestamp"
    names = {pa.string(): "string", pa.int64(): "long", pa.int32(): "integer", pa.float64(): "double"}
    names |= {pa.bool_(): "boolean", pa.binary(): "binary", pa.date32(): "date"}
    return names.get(kind, "array" if pa.types.is_list(kind) else str(kind))
