"""Checks that a table of the lake has the columns that this version of the platform reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from deltalake import DeltaTable, Field, Schema

from fraud_assets.core.schema import Table, alert_thresholds, fraud_predictions
from fraud_assets.errors import LakeError

_REMEDIES = {
    fraud_predictions.name: "Move that folder away; the next scoring run writes the table again, for all features.",
    alert_thresholds.name: "Move that folder away and train a new champion, which writes the table again.",
}
UPGRADED = "fraud_assets.upgraded"
"""Table property: columns were added, which older data files do not have."""
_FORMER_TOPIC_ID = "lineage"
_DEFAULT_REMEDY = (
    "Use that version of the platform, or point FRAUD_HOME (or FRAUD_LAKE_URI) to a new folder and land again."
)


def check_columns(handle: DeltaTable, table: Table, uri: str) -> None:
    """Checks the handle's columns against `core.schema`; additional columns are allowed.

    Raises:
        LakeError: A column is missing or has another type.
    """
    found = handle.schema()
    if found == _expected_schema(table):
        return
    types = {field.name: field.type for field in found.fields}
    if _FORMER_TOPIC_ID in types and "topic_id" not in types:
        raise LakeError(
            f"Table {uri} has the column {_FORMER_TOPIC_ID}, which was renamed to topic_id on 27 November 2026: an "
            f"earlier version of the platform wrote the table. {_DEFAULT_REMEDY}"
        )
    missing = [field.name for field in _expected_schema(table).fields if field.name not in types]
    others = [field.name for field in _expected_schema(table).fields if types.get(field.name, field.type) != field.type]
    if missing or others:
        faults = [f"has no column {name}" for name in missing]
        faults += [f"has another type in column {name}" for name in others]
        can_upgrade = not others and len(missing) == len(find_addable_columns(handle, table))
        remedy = "Run `fraud-assets upgrade`." if can_upgrade else _REMEDIES.get(table.name, _DEFAULT_REMEDY)
        raise LakeError(f"Table {uri} {' and '.join(faults)}: another version of the platform wrote it. {remedy}")


@dataclass(frozen=True)
class SchemaComparison:
    """The columns of a table compared with the declared ones.

    Attributes:
        fault: What differs; empty if nothing does.
        columns: Number of columns of the table; 0 if it does not exist.
        declared_columns: Number of declared columns.
    """

    fault: str
    columns: int
    declared_columns: int


def compare_columns(handle: DeltaTable | None, table: Table, uri: str) -> SchemaComparison:
    """Compares the columns of a table, which may not exist yet, with `core.schema`. See `check_columns`."""
    fault = ""
    if handle is not None:
        try:
            check_columns(handle, table, uri)
        except LakeError as error:
            fault = str(error)
    return SchemaComparison(fault, len(handle.schema().fields) if handle is not None else 0, len(table.schema))


def find_addable_columns(handle: DeltaTable, table: Table) -> list[Field]:
    """Returns the columns that the table lacks and that `fraud-assets upgrade` can add: those that may be null."""
    known = {field.name for field in handle.schema().fields}
    return [field for field in _expected_schema(table).fields if field.name not in known and field.nullable]


@cache
def _expected_schema(table: Table) -> Schema:
    return Schema.from_arrow(table.schema)
