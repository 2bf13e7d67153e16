"""SQL fragments for source positions: column lists, joins, predicates and the landing order.

The column names `partition` and `offset` are keywords of SQL, so all names are quoted. `alias` is the name of a table
or view in the query.
"""

from __future__ import annotations

from collections.abc import Iterable

from fraud_assets.core.schema import POSITION_COLUMNS, SOURCE_PARTITION_COLUMNS
from fraud_assets.lake.duckdb_session import quote_name
from fraud_assets.lake.positions import SourcePartition


def source_partition_columns(alias: str = "") -> str:
    """Returns the columns of a source partition, as `"topic", "topic_id", "partition"`."""
    return _columns(SOURCE_PARTITION_COLUMNS, alias)


def position_columns(alias: str = "") -> str:
    """Returns the columns of a position, as `"topic", "topic_id", "partition", "offset"`."""
    return _columns(POSITION_COLUMNS, alias)


def landing_order(alias: str = "") -> str:
    """Returns the columns that sort rows in landing order: the time of landing, then the position."""
    return _columns(("ingested_at", *POSITION_COLUMNS), alias)


def same_source_partition(left: str, right: str) -> str:
    """Returns the condition that rows of two tables belong to the same source partition."""
    return _equal(SOURCE_PARTITION_COLUMNS, left, right)


def same_position(left: str, right: str, right_prefix: str = "") -> str:
    """Returns the condition that rows of two tables have the same position.

    Args:
        left: Alias of a table.
        right: Alias of another table.
        right_prefix: Prefix of the position's columns in the table `right`, such as `origin_`.
    """
    return _equal(POSITION_COLUMNS, left, right, right_prefix)


def is_of_source_partition(partition: SourcePartition) -> str:
    """Returns the condition that a row belongs to this source partition, with literal values, as Delta requires."""
    topic, topic_id = (text.replace("'", "''") for text in (partition.topic, partition.topic_id))
    return f"topic = '{topic}' and topic_id = '{topic_id}' and \"partition\" = {partition.partition}"


def _columns(names: Iterable[str], alias: str) -> str:
    prefix = f"{alias}." if alias else ""
    return ", ".join(f"{prefix}{quote_name(name)}" for name in names)


def _equal(names: Iterable[str], left: str, right: str, right_prefix: str = "") -> str:
    return " and ".join(f"{left}.{quote_name(name)} = {right}.{quote_name(right_prefix + name)}" for name in names)
