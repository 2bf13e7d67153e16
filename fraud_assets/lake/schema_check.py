"""Checks that a table of the lake has the columns that this version of the platform reads and writes."""

from __future__ import annotations

from functools import cache

from deltalake import DeltaTable, Schema

from fraud_assets.core.schema import Table, alert_thresholds, fraud_predictions
from fraud_assets.errors import LakeError

_REMEDIES = {
    fraud_predictions.name: "Move that folder away; the next scoring run writes the table again, for all features.",
    alert_thresholds.name: "Move that folder away and train a new champion, which writes the table again.",
}
_DEFAULT_REMEDY = (
    "Use the version that wrote it, or point FRAUD_HOME (or FRAUD_LAKE_URI) to a new folder and land again."
)


def check_columns(handle: DeltaTable, table: Table, uri: str) -> None:
    """Checks the handle's columns against `core.schema`; additional columns are allowed.

    Raises:
        LakeError: a column is missing or has another type.
    """
    found, expected = handle.schema(), _expected_schema(table)
    if found == expected:
        return
    types = {field.name: field.type for field in found.fields}
    missing = [field.name for field in expected.fields if field.name not in types]
    others = [field.name for field in expected.fields if field.name in types and types[field.name] != field.type]
    if missing or others:
        faults = [f"has no column {name}" for name in missing]
        faults += [f"has another type in column {name}" for name in others]
        raise LakeError(
            f"Table {uri} {' and '.join(faults)}: another version of the platform wrote it. "
            f"{_REMEDIES.get(table.name, _DEFAULT_REMEDY)}"
        )


@cache
def _expected_schema(table: Table) -> Schema:
    return Schema.from_arrow(table.schema)
