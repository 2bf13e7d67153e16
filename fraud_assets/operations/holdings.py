"""Finds the stored rows of a customer: rows of tables, by source position, and rows of kept files.

A message, its features, its prediction and its retries are linked by their source positions. Labels are found by the
transaction ids. `erasure` removes the rows that are found here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.bodies import MAGIC, Rejected
from fraud_assets.core.formats import ID_HEADER, Decoder
from fraud_assets.core.parsing import parse_transactions
from fraud_assets.core.pseudonyms import compute_hmac
from fraud_assets.core.quarantine_reasons import LABEL_PREFIX
from fraud_assets.core.schema import (
    POSITION,
    POSITION_COLUMNS,
    RAW_TRANSACTIONS,
    Table,
    fraud_labels,
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    retried_messages,
    transaction_features,
)
from fraud_assets.core.subjects import compile_id_pattern, find_ids
from fraud_assets.kafka.schemas import create_label_decoder, create_transaction_decoder
from fraud_assets.lake.data_files import BODY_ROWS
from fraud_assets.lake.duckdb_session import connect
from fraud_assets.lake.position_sql import position_columns, same_position
from fraud_assets.lake.scan import register_view
from fraud_assets.lake.tables import Lake, read_batches
from fraud_assets.operations.kept_files import FileRows, find_customer_files
from fraud_assets.printable import escape_unprintable
from fraud_assets.settings import Settings

logger = logging.getLogger(__name__)

ERASED_TABLES = (fraud_labels, fraud_predictions, raw_transactions, quarantined_transactions, transaction_features)
"""Tables that hold customers' rows, in the order of erasing. Only the last one has a column with the customer."""

POSITIONS = pa.schema(list(POSITION))
"""Schema of a table of source positions."""

_POSITION_SQL = position_columns()


@dataclass(frozen=True)
class Holdings:
    """The stored rows of a customer.

    Attributes:
        tables: source positions of the customer's rows, by table.
        bad_labels: source positions of the customer's labels in quarantine.
        files: kept files that hold the customer, mention the id or cannot be read.
        mentions: source positions of messages, landed or in quarantine, that cannot be parsed but mention the id.
        waiting: files of the drop folder that hold the customer and have not landed yet.
    """

    tables: dict[str, pa.Table]
    bad_labels: pa.Table = field(default_factory=POSITIONS.empty_table)
    files: tuple[FileRows, ...] = ()
    mentions: pa.Table = field(default_factory=POSITIONS.empty_table)
    waiting: tuple[Path, ...] = ()

    @property
    def rows(self) -> dict[str, int]:
        """Number of the customer's rows, by table."""
        rows = {name: positions.num_rows for name, positions in self.tables.items()}
        rows[quarantined_transactions.name] += self.bad_labels.num_rows
        return rows

    @property
    def file_rows(self) -> dict[str, int]:
        """Number of the customer's rows, by kept file."""
        return {escape_unprintable(file.path): file.rows for file in self.files if file.rows}

    @property
    def unreadable_lines(self) -> dict[str, int]:
        """Number of lines that cannot be parsed but mention the id, by kept file."""
        return {escape_unprintable(file.path): file.unreadable for file in self.files if file.unreadable}

    @property
    def closed_files(self) -> list[str]:
        """Kept files that cannot be read."""
        return [escape_unprintable(file.path) for file in self.files if file.closed]

    @property
    def empty(self) -> bool:
        """Whether no row is known to be the customer's."""
        return not any(self.rows.values()) and not self.file_rows


def find_stored_ids(customer: str, settings: Settings) -> tuple[str, ...]:
    """Returns the forms in which a customer's id is stored.

    They are the id itself and, if FRAUD_PSEUDONYMISE names the field, its pseudonym.
    """
    pseudonymized = {name.lower() for name in settings.pseudonymise}
    if pseudonymized & {"customer_id", settings.contract.payload_field("customer_id").lower()}:
        return customer, compute_hmac(customer.encode(), settings.pseudonym_policy)
    return (customer,)


def find_holdings(lake: Lake, settings: Settings, customer: str) -> Holdings:
    """Finds all stored rows of a customer and changes nothing. Reads every landed body that may hold the id.

    Raises:
        LakeError: a table cannot be read.
    """
    ids = find_stored_ids(customer, settings)
    owned = _Owned.empty()
    if lake.exists(transaction_features):
        owned = owned.union(_find_in_features(lake, settings, ids))
    mentions = POSITIONS.empty_table()
    for table in (raw_transactions, quarantined_transactions):
        if lake.exists(table):
            logger.info(f"reading {table.name}")
            found, mentioned = _find_in_bodies(lake, table, settings, ids)
            owned, mentions = owned.union(found), _union(mentions, mentioned)
    positions = _add_retries(lake, settings, owned.positions)
    transactions = _exclude_repeated_ids(lake, settings, owned.transactions, ids)
    tables = {table.name: select_existing(lake, table, settings, positions) for table in ERASED_TABLES}
    tables[fraud_labels.name] = _find_labels(lake, settings, transactions)
    logger.info("reading kept files")
    files = (
        *find_customer_files(settings, settings.processed, ids),
        *find_customer_files(settings, settings.failed, ids),
    )
    waiting = tuple(file.path for file in find_customer_files(settings, settings.incoming, ids) if file.rows)
    bad_labels = _find_bad_labels(lake, settings, transactions)
    return Holdings(tables, bad_labels, files, _difference(mentions, positions), waiting)


def select_existing(lake: Lake, table: Table, settings: Settings, positions: pa.Table) -> pa.Table:
    """Returns the positions that the table contains."""
    return _find_matching(lake, table, settings, positions, _POSITION_SQL)


@dataclass(frozen=True)
class _Owned:
    """Positions of a customer's messages and the transaction ids in them."""

    positions: pa.Table
    transactions: frozenset[str]

    @classmethod
    def empty(cls) -> _Owned:
        return cls(POSITIONS.empty_table(), frozenset())

    def union(self, other: _Owned) -> _Owned:
        return _Owned(_union(self.positions, other.positions), self.transactions | other.transactions)


def _find_in_features(lake: Lake, settings: Settings, ids: Sequence[str]) -> _Owned:
    with connect(settings) as connection:
        register_view(connection, "features", lake.open(transaction_features))
        rows = connection.sql(
            f"select transaction_id, {_POSITION_SQL} from features where list_contains($ids, customer_id)",
            params={"ids": list(ids)},
        ).to_arrow_table()
    positions = rows.select(list(POSITION_COLUMNS)).cast(POSITIONS)
    return _Owned(positions, frozenset(rows["transaction_id"].to_pylist()))


# ---------------------------------------------------------------------------------------------------------
# Message bodies.


def _find_in_bodies(lake: Lake, table: Table, settings: Settings, ids: Sequence[str]) -> tuple[_Owned, pa.Table]:
    """Returns the customer's messages, and the positions of messages that cannot be parsed but mention the id."""
    decoder = create_transaction_decoder(settings)
    mention = compile_id_pattern(ids)
    owned, mentions = _Owned.empty(), POSITIONS.empty_table()
    for batch in _read_candidates(lake, table, ids, decoder):
        valid, rejected = parse_transactions(batch, settings.contract, decoder)
        matching = valid.filter(pc.is_in(valid["customer_id"], pa.array(list(ids))))
        positions = [matching.select(list(POSITION_COLUMNS)).cast(POSITIONS)]
        transactions = set(matching["transaction_id"].to_pylist())
        mentioned = []
        for row in rejected.to_pylist():
            customers, transaction_ids = _read_rejected(row, settings, decoder)
            position = {name: row[name] for name in POSITION_COLUMNS}
            if customers is None:
                if _is_mentioned(row, mention):
                    mentioned.append(position)
            elif customers & set(ids):
                positions.append(pa.Table.from_pylist([position], POSITIONS))
                transactions |= transaction_ids
        owned = owned.union(_Owned(pa.concat_tables(positions), frozenset(transactions)))
        mentions = pa.concat_tables([mentions, pa.Table.from_pylist(mentioned, POSITIONS)])
    return owned, mentions


def _read_candidates(lake: Lake, table: Table, ids: Sequence[str], decoder: Decoder | None) -> Iterator[pa.Table]:
    """Yields batches of rows that may be the customer's: those with the id's bytes, or with an id in another form.

    A backslash may begin an escaped character of the id. A framed body may hold the id as a binary number.
    """
    handle = lake.open(table)
    names = RAW_TRANSACTIONS.names
    columns = [*names, "reason"] if table is quarantined_transactions else names
    needles = [name.encode() for name in ids]
    for batch in read_batches(handle, columns, batch_rows=BODY_ROWS):
        rows = pa.Table.from_batches([batch])
        if table is quarantined_transactions:
            rows = rows.filter(pc.invert(pc.starts_with(rows["reason"], LABEL_PREFIX))).drop_columns(["reason"])
        rows = rows.cast(RAW_TRANSACTIONS)
        value, key = (rows[name].combine_chunks() for name in ("value", "key"))
        possible = pc.or_(pc.match_substring(value, b"\\"), pc.starts_with(value, MAGIC))
        for needle in needles:
            possible = pc.or_(possible, pc.match_substring(value, needle))
        # A message without a body may still name the customer in its key: it is the tombstone of that key.
        possible = pc.fill_null(possible, False)
        if decoder is not None:
            possible = pc.or_(possible, pc.fill_null(pc.invert(pc.starts_with(value, b"{")), False))
        for needle in needles:
            possible = pc.or_(possible, pc.fill_null(pc.match_substring(key, needle), False))
        if rows["headers"].null_count < rows.num_rows:
            possible = pc.or_(possible, pc.is_valid(rows["headers"].combine_chunks()))
        candidates = rows.filter(possible)
        if candidates.num_rows:
            yield candidates


def _read_rejected(
    row: dict[str, Any], settings: Settings, decoder: Decoder | None
) -> tuple[set[str] | None, set[str]]:
    """Returns the customer ids (None if there are none) and transaction ids of a body that the parser rejects."""
    body = _json_body(row, decoder)
    customers = find_ids(body, {settings.contract.payload_field("customer_id"), "customer_id"})
    return customers, find_ids(body, {settings.contract.payload_field("transaction_id"), "transaction_id"}) or set()


def _json_body(row: dict[str, Any], decoder: Decoder | None) -> bytes | None:
    """Returns the row's body, decoded to JSON if it is framed; None if it cannot be decoded."""
    body: bytes | None = row["value"]
    if not body or decoder is None:
        return body
    header = next((pair["value"] for pair in row["headers"] or () if pair["key"] == ID_HEADER), None)
    try:
        return decoder.json_body(body, header)
    except Rejected:
        return None


def _is_mentioned(row: dict[str, Any], mention: re.Pattern[bytes]) -> bool:
    parts = [row["value"], row["key"], *(header["value"] for header in row["headers"] or ())]
    return any(part and mention.search(part) for part in parts)


# ---------------------------------------------------------------------------------------------------------
# Rows that depend on the messages: retries and labels.


def _exclude_repeated_ids(lake: Lake, settings: Settings, transactions: frozenset[str], ids: Sequence[str]) -> pa.Table:
    """Returns the transaction ids except those whose first message is another customer's, so that its labels stay."""
    own = pa.table({"transaction_id": pa.array(sorted(transactions), pa.string())})
    if not own.num_rows or not lake.exists(transaction_features):
        return own
    with connect(settings) as connection:
        register_view(connection, "features", lake.open(transaction_features))
        connection.register("own", own)
        return connection.sql(
            """select transaction_id from own anti join
            (select transaction_id from features where not list_contains($ids, customer_id)) others
            using (transaction_id)""",
            params={"ids": list(ids)},
        ).to_arrow_table()


def _add_retries(lake: Lake, settings: Settings, positions: pa.Table) -> pa.Table:
    """Adds the positions that the same messages had before, or got when they were retried from quarantine."""
    if not positions.num_rows or not lake.exists(retried_messages):
        return positions
    with connect(settings) as connection:
        register_view(connection, "log", lake.open(retried_messages))
        while True:
            connection.register("positions", positions)
            origins = ", ".join(f'origin_{name} as "{name}"' for name in POSITION_COLUMNS)
            is_retry = same_position("positions", "log", "origin_")
            linked = connection.sql(
                f"""select {origins} from log semi join positions using ({_POSITION_SQL})
                union all select {_POSITION_SQL} from log where exists (select 1 from positions where {is_retry})"""
            ).to_arrow_table()
            more = _union(positions, linked.cast(POSITIONS))
            if more.num_rows == positions.num_rows:
                return positions
            positions = more


def _find_labels(lake: Lake, settings: Settings, transactions: pa.Table) -> pa.Table:
    return _find_matching(lake, fraud_labels, settings, transactions, "transaction_id")


def _find_matching(lake: Lake, table: Table, settings: Settings, keys: pa.Table, columns: str) -> pa.Table:
    """Returns the positions of the table's rows that have the same values in these columns as one of the keys."""
    if not keys.num_rows or not lake.exists(table):
        return POSITIONS.empty_table()
    with connect(settings) as connection:
        register_view(connection, "held", lake.open(table))
        connection.register("keys", keys)
        rows = connection.sql(f"select {_POSITION_SQL} from held semi join keys using ({columns})").to_arrow_table()
    return rows.cast(POSITIONS)


def _find_bad_labels(lake: Lake, settings: Settings, transactions: pa.Table) -> pa.Table:
    """Returns the positions of quarantined labels of the transactions, if the labels' transaction ids can be read."""
    own = set(transactions["transaction_id"].to_pylist())
    if not own or not lake.exists(quarantined_transactions):
        return POSITIONS.empty_table()
    decoder = create_label_decoder(settings)
    names = {settings.contract.payload_field("transaction_id"), "transaction_id"}
    positions: list[dict[str, Any]] = []
    columns = [*POSITION_COLUMNS, "value", "headers", "reason"]
    for batch in read_batches(lake.open(quarantined_transactions), columns, batch_rows=BODY_ROWS):
        positions += [
            {name: row[name] for name in POSITION_COLUMNS}
            for row in batch.filter(pc.starts_with(batch.column("reason"), LABEL_PREFIX)).to_pylist()
            if (find_ids(_json_body(row, decoder), names) or set()) & own
        ]
    return pa.Table.from_pylist(positions, POSITIONS)


def _union(first: pa.Table, second: pa.Table) -> pa.Table:
    both = pa.concat_tables([first, second])
    return both.group_by(list(POSITION_COLUMNS)).aggregate([]).select(list(POSITION_COLUMNS)).cast(POSITIONS)


def _difference(positions: pa.Table, others: pa.Table) -> pa.Table:
    if not positions.num_rows or not others.num_rows:
        return _union(positions, POSITIONS.empty_table())
    return positions.join(others, keys=list(POSITION_COLUMNS), join_type="left anti").cast(POSITIONS)
