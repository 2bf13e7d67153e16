"""Erasing a customer: from every table, by source position, and from dropped files that are kept.

The order makes it safe to kill and to repeat. Labels and predictions go first, for they are found through what goes
later. Then the landed bodies and quarantine, which are found by reading them, and last the features, which name the
customer. Stored positions stay, so nothing lands or is scored again. Delta's log names positions, never the customer.
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
from deltalake import CommitProperties
from deltalake.exceptions import DeltaError

from fraud_assets.core.bodies import MAGIC, Rejected
from fraud_assets.core.formats import ID_HEADER, Decoder
from fraud_assets.core.parsing import parse_transactions
from fraud_assets.core.pseudonyms import keyed_hmac
from fraud_assets.core.schema import (
    POSITION,
    POSITION_COLUMNS,
    RAW_TRANSACTIONS,
    SOURCE_PARTITION_COLUMNS,
    Table,
    fraud_labels,
    fraud_predictions,
    quarantined_transactions,
    raw_transactions,
    retried_messages,
    transaction_features,
)
from fraud_assets.core.subjects import ids_in, mention_of
from fraud_assets.kafka.schemas import transaction_decoder
from fraud_assets.lake.append import commit_errors, retry_conflicts
from fraud_assets.lake.data_files import BODY_ROWS
from fraud_assets.lake.duckdb_session import connect
from fraud_assets.lake.log import add_actions
from fraud_assets.lake.position_sql import is_of_source_partition, position_columns, same_position
from fraud_assets.lake.positions import SourcePartition
from fraud_assets.lake.scan import register_view
from fraud_assets.lake.table_errors import table_error
from fraud_assets.lake.tables import Lake, RemoteTable, batches
from fraud_assets.operations.kept_files import FileRows, rows_in_files, strip
from fraud_assets.printable import printable
from fraud_assets.settings import Settings

logger = logging.getLogger(__name__)
ERASED_TABLES = (fraud_labels, fraud_predictions, raw_transactions, quarantined_transactions, transaction_features)
"""In the order of erasing; only the last names the customer in a column."""

_POSITIONS_A_COMMIT = 2_000
_PLACES = pa.schema(list(POSITION))
_MOST_ROUNDS = 5


@dataclass(frozen=True)
class Holdings:
    """What holds a customer: rows by table, kept files, and what cannot be read but mentions the id.

    Rows and `mentions` are source positions, the latter of the landing table and quarantine. `bad_labels` are the
    customer's labels in quarantine, `waiting` files of the drop folder that have not landed yet.
    """

    tables: dict[str, pa.Table]
    bad_labels: pa.Table = field(default_factory=_PLACES.empty_table)
    files: tuple[FileRows, ...] = ()
    mentions: pa.Table = field(default_factory=_PLACES.empty_table)
    waiting: tuple[Path, ...] = ()

    @property
    def rows(self) -> dict[str, int]:
        """Rows that are the customer's, by table."""
        rows = {name: places.num_rows for name, places in self.tables.items()}
        rows[quarantined_transactions.name] += self.bad_labels.num_rows
        return rows

    @property
    def file_rows(self) -> dict[str, int]:
        """Rows that are the customer's, by kept file."""
        return {printable(file.path): file.rows for file in self.files if file.rows}

    @property
    def unreadable_lines(self) -> dict[str, int]:
        """Lines that mention the id, by kept file."""
        return {printable(file.path): file.unreadable for file in self.files if file.unreadable}

    @property
    def closed_files(self) -> list[str]:
        """Kept files that cannot be looked into."""
        return [printable(file.path) for file in self.files if file.closed]

    @property
    def empty(self) -> bool:
        """Whether nothing is the customer's for sure."""
        return not any(self.rows.values()) and not self.file_rows


@dataclass(frozen=True)
class ErasureReport:
    """What was removed: rows by table, rows by kept file; `table_error` messages and lines that mentioned the id."""

    tables: dict[str, int]
    files: dict[str, int]
    unreadable: int = 0
    vacuumed_files: int = 0


def stored_ids(customer: str, settings: Settings) -> tuple[str, ...]:
    """How the customer's id is stored: as it is given, and as its pseudonym where FRAUD_PSEUDONYMISE names it."""
    named = {name.lower() for name in settings.pseudonymise}
    if named & {"customer_id", settings.contract.payload_field("customer_id").lower()}:
        return customer, keyed_hmac(customer.encode(), settings.pseudonym_policy)
    return (customer,)


def find_holdings(lake: Lake, settings: Settings, customer: str) -> Holdings:
    """Looks for a customer everywhere; changes nothing. Reads every landed body that may hold the id.

    Raises:
        LakeError: a table cannot be read.
    """
    ids = stored_ids(customer, settings)
    owned = _Owned.empty()
    if lake.exists(transaction_features):
        owned = owned.plus(_of_features(lake, settings, ids))
    mentions = _PLACES.empty_table()
    for table in (raw_transactions, quarantined_transactions):
        if lake.exists(table):
            logger.info(f"reading {table.name}")
            found, mentioned = _of_bodies(lake, table, settings, ids)
            owned, mentions = owned.plus(found), _union(mentions, mentioned)
    places = _with_retries(lake, settings, owned.places)
    transactions = _own_transactions(lake, settings, owned.transactions, ids)
    tables = {table.name: _present(lake, table, settings, places) for table in ERASED_TABLES}
    tables[fraud_labels.name] = _labels_of(lake, settings, transactions)
    logger.info("reading kept files")
    files = (*rows_in_files(settings, settings.processed, ids), *rows_in_files(settings, settings.failed, ids))
    waiting = tuple(file.path for file in rows_in_files(settings, settings.incoming, ids) if file.rows)
    bad_labels = _bad_labels_of(lake, settings, transactions)
    return Holdings(tables, bad_labels, files, _minus(mentions, places), waiting)


def erase_customer(
    lake: Lake,
    settings: Settings,
    customer: str,
    *,
    unreadable: bool = False,
    found: Holdings | None = None,
) -> ErasureReport:
    """Removes a customer's rows from every table and kept file, and looks again until nothing is left.

    Safe to repeat and to kill: the next run completes it. A stage that was under way may still write what it had
    read before; the look at the end finds what it wrote until then.

    Args:
        unreadable: also what cannot be read but mentions the id.
        found: what `holdings` gave, to save the first look.

    Raises:
        LakeError: a table or file cannot be written; what was removed stays so.
    """
    ids = stored_ids(customer, settings)
    tables = dict.fromkeys((table.name for table in ERASED_TABLES), 0)
    files: dict[str, int] = {}
    mentioned = 0
    for _ in range(_MOST_ROUNDS):
        found = found or find_holdings(lake, settings, customer)
        lines = sum(found.unreadable_lines.values()) if unreadable else 0
        mentions = found.mentions if unreadable else _PLACES.empty_table()
        if found.empty and not mentions.num_rows and not lines:
            break
        for table, places in (
            (quarantined_transactions, found.bad_labels),
            *((table, found.tables[table.name]) for table in ERASED_TABLES),
        ):
            removed = remove(lake, table, places)
            tables[table.name] += removed
            if removed:
                logger.info(f"{table.name}: {removed:,} rows removed")
        for table in (raw_transactions, quarantined_transactions):
            remove(lake, table, _present(lake, table, settings, mentions))
        mentioned += mentions.num_rows
        for file in found.files:
            if file.rows or (unreadable and file.unreadable):
                stripped = strip(file, settings, ids, unreadable=unreadable)
                name = printable(file.path)
                files[name] = files.get(name, 0) + stripped.rows
                mentioned += stripped.unreadable if unreadable else 0
                logger.info(f"{name}: {stripped.rows:,} rows removed")
        found = None
    return ErasureReport(tables, files, mentioned)


def remove(lake: Lake, table: Table, places: pa.Table) -> int:
    """Deletes the rows at the positions from a table; gives how many there were. Safe to repeat.

    Raises:
        LakeError: the table cannot be written; earlier positions stay deleted.
    """
    removed = 0
    for start in range(0, places.num_rows, _POSITIONS_A_COMMIT):
        removed += _delete(lake, table, _predicate(places.slice(start, _POSITIONS_A_COMMIT)))
    return removed


def vacuum_now(lake: Lake) -> int:
    """Removes every file that the newest version of a table does not use, and its local copy; gives how many.

    A reader that holds an older version fails. Files that a writer has not committed yet stay.

    Raises:
        LakeError: a table cannot be written.
    """
    removed = 0
    for table in filter(lake.exists, ERASED_TABLES):
        handle = lake.open(table)
        try:
            removed += len(handle.vacuum(0, dry_run=False, enforce_retention_duration=False))
        except (DeltaError, OSError) as error:
            raise table_error(lake.uri(table), error) from error
        if isinstance(handle, RemoteTable):
            used = {handle.copied_to / path for path in add_actions(handle)["path"].to_pylist()}
            for copy in handle.copied_to.rglob("*.parquet"):
                if copy not in used:
                    copy.unlink(missing_ok=True)
    return removed


@retry_conflicts
def _delete(lake: Lake, table: Table, predicate: str) -> int:
    handle = lake.open(table)
    # A compaction or a recomputation may rewrite the same files meanwhile.
    with commit_errors(handle):
        note = CommitProperties(custom_metadata={"erased": "a customer"})
        return int(handle.delete(predicate, commit_properties=note)["num_deleted_rows"])


def _predicate(places: pa.Table) -> str:
    """SQL that meets exactly the positions; its bounds let Delta see that rows which are appended meanwhile do not."""
    parts = []
    for stream in places.group_by(list(SOURCE_PARTITION_COLUMNS)).aggregate([("offset", "list")]).to_pylist():
        offsets = sorted(stream["offset_list"])
        partition = SourcePartition(*(stream[name] for name in SOURCE_PARTITION_COLUMNS))
        parts.append(
            f"({is_of_source_partition(partition)} "
            f'and "offset" >= {offsets[0]} and "offset" <= {offsets[-1]} '
            f'and "offset" in ({", ".join(map(str, offsets))}))'
        )
    return " or ".join(parts)


# ---------------------------------------------------------------------------------------------------------
# Looking.


@dataclass(frozen=True)
class _Owned:
    """Positions of a customer's messages and the transaction ids in them."""

    places: pa.Table
    transactions: frozenset[str]

    @classmethod
    def empty(cls) -> _Owned:
        return cls(_PLACES.empty_table(), frozenset())

    def plus(self, other: _Owned) -> _Owned:
        return _Owned(_union(self.places, other.places), self.transactions | other.transactions)


def _of_features(lake: Lake, settings: Settings, ids: Sequence[str]) -> _Owned:
    with connect(settings) as connection:
        register_view(connection, "features", lake.open(transaction_features))
        rows = connection.sql(
            f"select transaction_id, {position_columns()} from features where list_contains($ids, customer_id)",
            params={"ids": list(ids)},
        ).to_arrow_table()
    return _Owned(rows.select(list(POSITION_COLUMNS)).cast(_PLACES), frozenset(rows["transaction_id"].to_pylist()))


def _of_bodies(lake: Lake, table: Table, settings: Settings, ids: Sequence[str]) -> tuple[_Owned, pa.Table]:
    """A table's messages that are the customer's, and the positions of those that only mention the id."""
    decoder = transaction_decoder(settings)
    mention = mention_of(ids)
    owned, mentions = _Owned.empty(), _PLACES.empty_table()
    for batch in _candidates(lake, table, ids, decoder):
        valid, rejected = parse_transactions(batch, settings.contract, decoder)
        mine = valid.filter(pc.is_in(valid["customer_id"], pa.array(list(ids))))
        places = [mine.select(list(POSITION_COLUMNS)).cast(_PLACES)]
        transactions = set(mine["transaction_id"].to_pylist())
        mentioned = []
        for row in rejected.to_pylist():
            customers, transaction = _read_anyhow(row, settings, decoder)
            place = {name: row[name] for name in POSITION_COLUMNS}
            if customers is None:
                if _mentions(row, mention):
                    mentioned.append(place)
            elif customers & set(ids):
                places.append(pa.Table.from_pylist([place], _PLACES))
                transactions |= transaction
        owned = owned.plus(_Owned(pa.concat_tables(places), frozenset(transactions)))
        mentions = pa.concat_tables([mentions, pa.Table.from_pylist(mentioned, _PLACES)])
    return owned, mentions


def _candidates(lake: Lake, table: Table, ids: Sequence[str], decoder: Decoder | None) -> Iterator[pa.Table]:
    """Rows that may be the customer's, in batches: those that hold the id's characters, or may hold them in disguise.

    A backslash may begin an escape; a framed body may hold a number that is no text.
    """
    handle = lake.open(table)
    names = RAW_TRANSACTIONS.names
    columns = [*names, "reason"] if table is quarantined_transactions else names
    needles = [name.encode() for name in ids]
    for batch in batches(handle, columns, batch_rows=BODY_ROWS):
        rows = pa.Table.from_batches([batch])
        if table is quarantined_transactions:
            rows = rows.filter(pc.invert(pc.starts_with(rows["reason"], "label_"))).drop_columns(["reason"])
        rows = rows.cast(RAW_TRANSACTIONS)
        value, key = (rows[name].combine_chunks() for name in ("value", "key"))
        held = pc.or_(pc.match_substring(value, b"\\"), pc.starts_with(value, MAGIC))
        for needle in needles:
            held = pc.or_(held, pc.match_substring(value, needle))
        # A null body may be the deletion marker of a key.
        held = pc.fill_null(held, False)
        if decoder is not None:
            held = pc.or_(held, pc.fill_null(pc.invert(pc.starts_with(value, b"{")), False))
        for needle in needles:
            held = pc.or_(held, pc.fill_null(pc.match_substring(key, needle), False))
        if rows["headers"].null_count < rows.num_rows:
            held = pc.or_(held, pc.is_valid(rows["headers"].combine_chunks()))
        candidates = rows.filter(held)
        if candidates.num_rows:
            yield candidates


def _read_anyhow(row: dict[str, Any], settings: Settings, decoder: Decoder | None) -> tuple[set[str] | None, set[str]]:
    """The customer ids of a body that the parser refuses (None: it names none), and its transaction ids."""
    body = _as_json(row, decoder)
    customers = ids_in(body, {settings.contract.payload_field("customer_id"), "customer_id"})
    return customers, ids_in(body, {settings.contract.payload_field("transaction_id"), "transaction_id"}) or set()


def _as_json(row: dict[str, Any], decoder: Decoder | None) -> bytes | None:
    """The row's body, of a framed one its JSON; None where that cannot be had."""
    body: bytes | None = row["value"]
    if not body or decoder is None:
        return body
    header = next((pair["value"] for pair in row["headers"] or () if pair["key"] == ID_HEADER), None)
    try:
        return decoder.json_body(body, header)
    except Rejected:
        return None


def _mentions(row: dict[str, Any], mention: re.Pattern[bytes]) -> bool:
    parts = [row["value"], row["key"], *(header["value"] for header in row["headers"] or ())]
    return any(part and mention.search(part) for part in parts)


def _own_transactions(lake: Lake, settings: Settings, transactions: frozenset[str], ids: Sequence[str]) -> pa.Table:
    """The transaction ids but for those whose first message is another customer's: a repeated id is not theirs."""
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


def _with_retries(lake: Lake, settings: Settings, places: pa.Table) -> pa.Table:
    """The positions, and those of the same messages before or after they were retried from quarantine."""
    if not places.num_rows or not lake.exists(retried_messages):
        return places
    with connect(settings) as connection:
        register_view(connection, "log", lake.open(retried_messages))
        while True:
            connection.register("places", places)
            origins = ", ".join(f'origin_{name} as "{name}"' for name in POSITION_COLUMNS)
            joined = same_position("places", "log", "origin_")
            linked = connection.sql(
                f"""select {origins} from log semi join places using ({position_columns()})
                union all select {position_columns()} from log where exists (select 1 from places where {joined})"""
            ).to_arrow_table()
            more = _union(places, linked.cast(_PLACES))
            if more.num_rows == places.num_rows:
                return places
            places = more


def _labels_of(lake: Lake, settings: Settings, transactions: pa.Table) -> pa.Table:
    if not transactions.num_rows or not lake.exists(fraud_labels):
        return _PLACES.empty_table()
    with connect(settings) as connection:
        register_view(connection, "labels", lake.open(fraud_labels))
        connection.register("own", transactions)
        rows = connection.sql(
            f"select {position_columns()} from labels semi join own using (transaction_id)"
        ).to_arrow_table()
    return rows.cast(_PLACES)


def _bad_labels_of(lake: Lake, settings: Settings, transactions: pa.Table) -> pa.Table:
    """Positions of quarantined labels of the transactions, as far as those can be read."""
    from fraud_assets.kafka.schemas import label_decoder

    own = set(transactions["transaction_id"].to_pylist())
    if not own or not lake.exists(quarantined_transactions):
        return _PLACES.empty_table()
    decoder = label_decoder(settings)
    names = {settings.contract.payload_field("transaction_id"), "transaction_id"}
    places: list[dict[str, Any]] = []
    columns = [*POSITION_COLUMNS, "value", "headers", "reason"]
    for batch in batches(lake.open(quarantined_transactions), columns, batch_rows=BODY_ROWS):
        places += [
            {name: row[name] for name in POSITION_COLUMNS}
            for row in batch.filter(pc.starts_with(batch.column("reason"), "label_")).to_pylist()
            if (ids_in(_as_json(row, decoder), names) or set()) & own
        ]
    return pa.Table.from_pylist(places, _PLACES)


def _present(lake: Lake, table: Table, settings: Settings, places: pa.Table) -> pa.Table:
    """Those of the positions that the table holds."""
    if not places.num_rows or not lake.exists(table):
        return _PLACES.empty_table()
    with connect(settings) as connection:
        register_view(connection, "held", lake.open(table))
        connection.register("places", places)
        rows = connection.sql(
            f"select {position_columns()} from held semi join places using ({position_columns()})"
        ).to_arrow_table()
    return rows.cast(_PLACES)


def _union(first: pa.Table, second: pa.Table) -> pa.Table:
    both = pa.concat_tables([first, second])
    return both.group_by(list(POSITION_COLUMNS)).aggregate([]).select(list(POSITION_COLUMNS)).cast(_PLACES)


def _minus(places: pa.Table, others: pa.Table) -> pa.Table:
    if not places.num_rows or not others.num_rows:
        return _union(places, _PLACES.empty_table())
    return places.join(others, keys=list(POSITION_COLUMNS), join_type="left anti").cast(_PLACES)
