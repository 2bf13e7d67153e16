"""Labels of a dropped file: the transactions' own bodies, read by the label parser with other field names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.bodies import Rejected, json_object
from fraud_assets.core.field_paths import MISSING, value_at
from fraud_assets.core.local_time import iso_text
from fraud_assets.core.parsing import parse_labels
from fraud_assets.core.schema import TIME
from fraud_assets.ingest.files.field_names import first_of, label_names, labelled_at_names
from fraud_assets.lake.duckdb_session import connect, quoted_name
from fraud_assets.settings import Settings

_LATEST = datetime(9999, 12, 31, tzinfo=UTC)
_ANY_SIZE = 2**31
_MOST_SHAPES = 1_000
_MOST_SPELLINGS = 4
_decode = msgspec.json.Decoder().decode


@dataclass
class LabelKeys:
    """Finds the label of a row, and the time of that label, whatever the capital letters of their names.

    Attributes:
        labels: names under which a row may have its label, the preferred first.
        times: names under which a row may have the time of its label, the preferred first.
    """

    labels: list[str]
    times: list[str]
    _nested: list[str]
    _may_have: re.Pattern[bytes]
    _seems_to_have: re.Pattern[bytes]
    _seen: list[bytes] = field(default_factory=list)
    _shapes: dict[tuple[str, ...], tuple[str | None, str | None]] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> LabelKeys:
        """The names that the settings give."""
        labels, times = label_names(settings), labelled_at_names(settings)
        names = b"|".join(re.escape(name.rpartition(".")[2]).encode() for name in labels)
        return cls(
            labels,
            times,
            [path for path in (labels[0], times[0]) if "." in path],
            re.compile(rb"(?:" + names + rb')"|\\', re.IGNORECASE),  # a name may be written with escapes
            re.compile(rb'"(' + names + rb')"\s*:\s*[^\sn]', re.IGNORECASE),
        )

    def keys_of(self, body: bytes | None) -> tuple[str | None, str | None]:
        """Where label and time are in a body, each None where it is not there, or null.

        A body that is no JSON object has a label if it looks like it: the parser says what is wrong.
        """
        if not body or not self._may_hold_a_label(body):
            return None, None
        try:
            payload = _decode(body)
        except (ValueError, RecursionError):
            try:
                payload = json_object(body, _ANY_SIZE)
            except Rejected:
                found = self._seems_to_have.search(body)
                return (None if found is None else found[1].decode()), None
        if type(payload) is not dict:
            return None, None
        if self._nested:
            keys = [*payload, *(path for path in self._nested if value_at(payload, path) is not MISSING)]
            label, time = first_of(keys, self.labels), first_of(keys, self.times)
            return _if_set(payload, label), _if_set(payload, time)
        label, time = self._names(tuple(payload))
        return (
            None if label is None or payload[label] is None else label,
            None if time is None or payload[time] is None else time,
        )

    def _may_hold_a_label(self, body: bytes) -> bool:
        for name in self._seen:
            if name in body:
                return True
        # The pattern ignores capital letters and takes longer than all else here.
        found = self._may_have.search(body)
        if found is not None and len(self._seen) < _MOST_SPELLINGS:
            self._seen.append(found[0])
        return found is not None

    def _names(self, shape: tuple[str, ...]) -> tuple[str | None, str | None]:
        found = self._shapes.get(shape)
        if found is None:
            found = first_of(shape, self.labels), first_of(shape, self.times)
            if len(self._shapes) < _MOST_SHAPES:
                self._shapes[shape] = found
        return found


def _if_set(payload: dict[str, Any], path: str | None) -> str | None:
    return None if path is None or value_at(payload, path) is None else path


def labels_of_file(batch: pa.Table, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """Good and rejected labels of a batch of a file's rows; a row without a label, or with null, has none.

    Where the row does not say when its label came, it came FRAUD_FEEDBACK_DELAY_DAYS after the transaction.
    """
    keys = LabelKeys.of(settings)
    groups: dict[tuple[str, str | None], list[int]] = {}
    for row, body in enumerate(batch["value"].to_pylist()):
        label, time = keys.keys_of(body)
        if label is not None:
            groups.setdefault((label, time), []).append(row)
    return _labels_of_groups(batch, groups, settings)


def labels_of_rows(rows: pa.Table, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """Good and rejected labels of rows of dropped files (`MESSAGES`), read as they are when a file lands.

    Each row is in one of the two: one without a label is rejected.
    """
    keys = LabelKeys.of(settings)
    groups: dict[tuple[str, str | None], list[int]] = {}
    for row, body in enumerate(rows["value"].to_pylist()):
        label, time = keys.keys_of(body)
        groups.setdefault((label or keys.labels[0], time), []).append(row)
    return _labels_of_groups(rows, groups, settings)


def _labels_of_groups(
    rows: pa.Table, groups: dict[tuple[str, str | None], list[int]], settings: Settings
) -> tuple[pa.Table, pa.Table]:
    parts = [
        _parse_labels(rows.take(pa.array(group, pa.int64())), label, time, settings)
        for (label, time), group in groups.items()
    ] or [_parse_labels(rows.slice(0, 0), label_names(settings)[0], None, settings)]
    if len(parts) == 1:
        return parts[0]
    good, rejected = (pa.concat_tables(tables).sort_by("offset") for tables in zip(*parts, strict=True))
    return good, rejected


def _parse_labels(
    rows: pa.Table, label_field: str, labelled_at_field: str | None, settings: Settings
) -> tuple[pa.Table, pa.Table]:
    mapping = {
        "transaction_id": settings.contract.payload_field("transaction_id"),
        "is_fraud": label_field,
        "labelled_at": labelled_at_field or settings.contract.payload_field("tx_datetime"),
    }
    good, rejected = parse_labels(rows, replace(settings.contract, field_mapping=mapping))
    if good.num_rows == 0:
        return good, rejected
    times = good["labelled_at"]
    if labelled_at_field is None:
        delayed = pc.add(times, pa.scalar(timedelta(days=settings.feedback_delay_days), pa.duration("us")))
        latest = pa.scalar(_LATEST, TIME)
        times = pc.if_else(pc.greater(delayed, latest), latest, delayed)
    times = times.cast(TIME)
    fields = {name: quoted_name(settings.contract.payload_field(name)) for name in mapping}
    with connect(settings) as connection:
        connection.register(
            "labels",
            pa.table(
                {
                    "transaction_id": good["transaction_id"],
                    "is_fraud": good["is_fraud"],
                    "labelled_at": iso_text(times),
                }
            ),
        )
        pairs = ", ".join(f"{payload} := {name}" for name, payload in fields.items())
        bodies = connection.sql(f"select to_json(struct_pack({pairs}))::varchar as body from labels").to_arrow_table()
        connection.unregister("labels")
    values = bodies.column("body").cast(pa.binary())
    names = good.column_names
    good = good.set_column(names.index("labelled_at"), good.schema.field("labelled_at"), times)
    return good.set_column(names.index("value"), good.schema.field("value"), values), rejected
