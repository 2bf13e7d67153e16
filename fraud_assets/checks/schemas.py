"""Check `schema`: a table has the columns and types that the platform declares."""

from collections.abc import Iterator

import dagster as dg

from fraud_assets.assets.reporting import reporting
from fraud_assets.resources import PlatformResource

_TABLES = (
    "raw_transactions",
    "fraud_labels",
    "transaction_features",
    "quarantined_transactions",
    "alert_thresholds",
    "fraud_predictions",
)


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec("schema", asset=name, description="The table has the declared columns and types.")
        for name in _TABLES
    ],
    can_subset=True,
    name="check_schemas",
)
def schema_checks(context: dg.AssetCheckExecutionContext, platform: PlatformResource) -> Iterator[dg.AssetCheckResult]:
    """Compares the columns of each selected table with the declared ones."""
    from fraud_assets.core.schema import TABLES
    from fraud_assets.lake.schema_check import compare_columns

    with reporting(context):
        lake = platform.lake()
        tables = {table.name: table for table in TABLES}
        for key in context.selected_asset_check_keys:
            table = tables[key.asset_key.to_user_string()]
            compared = compare_columns(lake.find(table, any_columns=True), table, lake.uri(table))
            yield dg.AssetCheckResult(
                asset_key=key.asset_key,
                check_name=key.name,
                passed=not compared.fault,
                description=compared.fault or None,
                metadata={"columns": compared.columns, "declared_columns": compared.declared_columns},
            )
