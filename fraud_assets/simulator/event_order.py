"""Converts rows to messages: transactions in the order of the rows, and each label at its place in event time."""

from __future__ import annotations

import heapq
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import TIME
from fraud_assets.kafka.producer import Message
from fraud_assets.settings import CONTRACT_FIELDS, LABEL_FIELDS, Settings

TableOrBatch: TypeAlias = pa.RecordBatch | pa.Table

RAW = "raw"
"""Optional column with bodies that are sent unchanged, because they do not fit the columns of the contract."""


@dataclass
class EventOrder:
    """Makes messages from batches of rows and counts the messages.

    The rows have the contract's columns, and for labels `is_fraud`, `labelled_at` or both. Without `labelled_at`, the
    label of a fraud comes FRAUD_FEEDBACK_DELAY_DAYS after its transaction, and a genuine transaction has no label,
    because a transaction without a label counts as genuine. A label is sent just before the first transaction that is
    not older than it. The labels up to `now` follow the last transaction; later labels are not sent.

    Attributes:
        settings: define the contract and the topics.
        now: the time up to which labels are sent after the last transaction.
        transactions: number of transactions that were yielded.
        labels: number of labels that were yielded.
        labels_not_due: number of labels after `now`; set when the messages end.
    """

    settings: Settings
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    transactions: int = 0
    labels: int = 0
    labels_not_due: int = 0
    _pending: list[tuple[int, int, Message]] = field(default_factory=list)

    def messages(self, batches: Iterable[TableOrBatch]) -> Iterator[Message]:
        """Yields the messages; keeps one batch and the labels that are not due in memory."""
        for batch in batches:
            labels = self._labels(batch)
            if not labels and not self._pending:
                for message in make_transaction_messages(batch, self.settings):
                    self.transactions += 1
                    yield message
                continue
            times = _microseconds(_times(batch))
            for row, message in enumerate(make_transaction_messages(batch, self.settings)):
                if (time := times[row]) is not None:
                    yield from self._pop_due(time)
                self.transactions += 1
                yield message
                if row in labels:
                    labelled_at, label = labels[row]
                    heapq.heappush(self._pending, (labelled_at, self.transactions, label))
        yield from self._pop_due(round(self.now.timestamp() * 1e6))
        self.labels_not_due = len(self._pending)

    def _pop_due(self, time: int) -> Iterator[Message]:
        while self._pending and self._pending[0][0] <= time:
            self.labels += 1
            yield heapq.heappop(self._pending)[2]

    def _labels(self, batch: TableOrBatch) -> dict[int, tuple[int, Message]]:
        """Returns time (microseconds since 1970) and message of the labels in a batch, by row number."""
        names = set(batch.schema.names)
        if not names & {"is_fraud", "labelled_at"}:
            return {}
        fraud = convert_flags(batch.column("is_fraud")) if "is_fraud" in names else None
        if "labelled_at" in names:
            labelled_at = convert_times(batch.column("labelled_at"))
        else:
            delay = pa.scalar(timedelta(days=self.settings.feedback_delay_days), pa.duration("us"))
            labelled_at = pc.if_else(pc.fill_null(fraud, False), pc.add(_times(batch), delay), pa.scalar(None, TIME))
        known = pc.is_valid(labelled_at).to_numpy(zero_copy_only=False).nonzero()[0]
        if len(known) == 0:
            return {}
        rows = pa.table(
            {
                "transaction_id": batch.column("transaction_id"),
                "is_fraud": pa.repeat(True, batch.num_rows) if fraud is None else fraud,
                "labelled_at": labelled_at,
            }
        ).take(known)
        messages = make_label_messages(rows, self.settings)
        times = rows["labelled_at"].cast(pa.int64()).to_pylist()
        return {int(row): (time, message) for row, time, message in zip(known, times, messages, strict=True)}


def make_transaction_messages(rows: TableOrBatch, settings: Settings) -> Iterator[Message]:
    """Yields a transaction message for each row, keyed by customer, so that a customer's payments stay in order."""
    keys = _texts(rows.column("customer_id"))
    raw = rows.column(RAW).to_pylist() if RAW in rows.schema.names else itertools.repeat(None)
    for key, body, verbatim in zip(keys, _bodies(rows, CONTRACT_FIELDS, settings), raw):  # noqa: B905
        yield Message(settings.transactions_topic, _key(key), body if verbatim is None else verbatim)


def make_label_messages(rows: TableOrBatch, settings: Settings) -> Iterator[Message]:
    """Yields a label message for each row, keyed by its transaction."""
    keys = _texts(rows.column("transaction_id"))
    for key, body in zip(keys, _bodies(rows, LABEL_FIELDS, settings), strict=True):
        yield Message(settings.labels_topic, _key(key), body)


def convert_flags(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Converts 0 and 1, true and false, as numbers or text, to bool; other values become null."""
    if pa.types.is_boolean(column.type):
        return column
    if not pa.types.is_string(column.type):
        one, zero = (pc.equal(column, pa.scalar(number, column.type)) for number in (1, 0))
        return pc.if_else(one, True, pc.if_else(zero, False, pa.scalar(None, pa.bool_())))
    text = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    true, false = (pc.is_in(text, pa.array(values)) for values in (["1", "true", "1.0"], ["0", "false", "0.0"]))
    return pc.if_else(true, True, pc.if_else(false, False, pa.scalar(None, pa.bool_())))


def convert_times(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Converts times to timestamp[us, UTC].

    A time without a zone is UTC; a text that is not an ISO 8601 time becomes null.
    """
    if pa.types.is_timestamp(column.type):
        # The cast of a timestamp without a zone keeps the wall clock, which is UTC by contract.
        return pc.cast(column, TIME, safe=False)
    if pa.types.is_date(column.type):
        return pc.cast(pc.cast(column, pa.timestamp("us")), TIME)
    return pa.array([_time(text) for text in column.to_pylist()], TIME)


def _times(rows: TableOrBatch) -> pa.Array | pa.ChunkedArray:
    return convert_times(rows.column("tx_datetime"))


def _microseconds(times: pa.Array | pa.ChunkedArray) -> list[int | None]:
    # Integers, because making a Python datetime for each row of a large file takes longer than all other steps.
    numbers: list[int | None] = times.cast(pa.int64()).to_pylist()
    return numbers


def _time(text: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _bodies(rows: TableOrBatch, fields: tuple[str, ...], settings: Settings) -> Iterator[bytes]:
    """Yields JSON objects with the fields under their payload names.

    Formatting column by column is ten times faster than row by row.
    """
    names = [json.dumps(settings.contract.payload_field(name)).replace("%", "%%") for name in fields]
    template = "{" + ", ".join(f"{name}: %s" for name in names) + "}"
    for values in zip(*(_as_json(rows.column(name)) for name in fields), strict=True):
        yield (template % values).encode()


def _as_json(column: pa.Array | pa.ChunkedArray) -> list[str]:
    """Returns each value of a column as JSON text: integers as integers, times as ISO 8601 in UTC."""
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        text = pc.strftime(convert_times(column).cast(pa.timestamp("us")), "%Y-%m-%dT%H:%M:%SZ")
        return ["null" if value is None else f'"{value}"' for value in text.to_pylist()]
    if pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        return ["null" if value is None else str(value) for value in column.to_pylist()]
    if pa.types.is_floating(kind):
        return [repr(v) if v is not None and math.isfinite(v) else json.dumps(v) for v in column.to_pylist()]
    return [json.dumps(value) for value in column.to_pylist()]


def _key(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _texts(column: pa.Array | pa.ChunkedArray) -> list[str | None]:
    return [None if value is None else str(value) for value in column.to_pylist()]
