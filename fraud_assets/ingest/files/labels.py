"""Reads the labels of a dropped file: the label parser reads the transaction bodies with other field names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.bodies import Rejected, parse_json_object
from fraud_assets.core.field_paths import MISSING, get_value
from fraud_assets.core.local_time import format_iso
from fraud_assets.core.parsing import parse_labels
from fraud_assets.core.schema import TIME
from fraud_assets.ingest.files.field_names import find_first, find_label_names, find_labelled_at_names
from fraud_assets.lake.duckdb_session import connect, quote_name
from fraud_assets.settings import Settings

_LATEST = datetime(9999, 12, 31, tzinfo=UTC)
_ANY_SIZE = 2**31
_CACHED_SHAPES = 1_000
_CACHED_SPELLINGS = 4
_decode = msgspec.json.Decoder().decode


@dataclass
class LabelKeys:
    """Finds the label of a row and the time of that label, ignoring the case of their names.

    Attributes:
        labels: names that the label of a row can have, in order of preference.
        times: names that the time of a label can have, in order of preference.
    """

    labels: list[str]
    times: list[str]
    _nested: list[str]
    _label_pattern: re.Pattern[bytes]
    _set_label_pattern: re.Pattern[bytes]
    _seen_spellings: list[bytes] = field(default_factory=list)
    _keys_by_shape: dict[tuple[str, ...], tuple[str | None, str | None]] = field(default_factory=dict)

    @classmethod
    def from_settings(cls, settings: Settings) -> LabelKeys:
        """Returns the names that the settings define."""
        labels, times = find_label_names(settings), find_labelled_at_names(settings)
        names = b"|".join(re.escape(name.rpartition(".")[2]).encode() for name in labels)
        return cls(
            labels,
            times,
            [path for path in (labels[0], times[0]) if "." in path],
            re.compile(rb"(?:" + names + rb')"|\\', re.IGNORECASE),  # A name can be written with escapes.
            re.compile(rb'"(' + names + rb')"\s*:\s*[^\sn]', re.IGNORECASE),
        )

    def find_keys(self, body: bytes | None) -> tuple[str | None, str | None]:
        """Returns the keys of the label and of its time in a body, each None if it is missing or null.

        A body that is not a JSON object counts as labeled if it seems to have a label. The parser then reports the
        error.
        """
        if not body or not self._may_have_label(body):
            return None, None
        try:
            payload = _decode(body)
        except (ValueError, RecursionError):
            try:
                payload = parse_json_object(body, _ANY_SIZE)
            except Rejected:
                found = self._set_label_pattern.search(body)
                return (None if found is None else found[1].decode()), None
        if type(payload) is not dict:
            return None, None
        if self._nested:
            keys = [*payload, *(path for path in self._nested if get_value(payload, path) is not MISSING)]
            label, time = find_first(keys, self.labels), find_first(keys, self.times)
            return _path_if_set(payload, label), _path_if_set(payload, time)
        label, time = self._find_in_shape(tuple(payload))
        return (
            None if label is None or payload[label] is None else label,
            None if time is None or payload[time] is None else time,
        )

    def _may_have_label(self, body: bytes) -> bool:
        for name in self._seen_spellings:
            if name in body:
                return True
        # The pattern ignores case and is the slowest step here.
        found = self._label_pattern.search(body)
        if found is not None and len(self._seen_spellings) < _CACHED_SPELLINGS:
            self._seen_spellings.append(found[0])
        return found is not None

    def _find_in_shape(self, shape: tuple[str, ...]) -> tuple[str | None, str | None]:
        found = self._keys_by_shape.get(shape)
        if found is None:
            found = find_first(shape, self.labels), find_first(shape, self.times)
            if len(self._keys_by_shape) < _CACHED_SHAPES:
                self._keys_by_shape[shape] = found
        return found


def _path_if_set(payload: dict[str, Any], path: str | None) -> str | None:
    return None if path is None or get_value(payload, path) is None else path


def parse_file_labels(batch: pa.Table, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """Returns the valid and the rejected labels of a batch of rows of a file.

    A row whose label is missing or null has no label. A label without a time counts from FRAUD_FEEDBACK_DELAY_DAYS
    after its transaction.
    """
    keys = LabelKeys.from_settings(settings)
    groups: dict[tuple[str, str | None], list[int]] = {}
    for row, body in enumerate(batch["value"].to_pylist()):
        label, time = keys.find_keys(body)
        if label is not None:
            groups.setdefault((label, time), []).append(row)
    return _labels_of_groups(batch, groups, settings)


def parse_landed_labels(rows: pa.Table, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """Returns the valid and the rejected labels of rows of dropped files (`MESSAGES`), parsed as when a file lands.

    Each row is in one of the two tables: a row without a label is rejected.
    """
    keys = LabelKeys.from_settings(settings)
    groups: dict[tuple[str, str | None], list[int]] = {}
    for row, body in enumerate(rows["value"].to_pylist()):
        label, time = keys.find_keys(body)
        groups.setdefault((label or keys.labels[0], time), []).append(row)
    return _labels_of_groups(rows, groups, settings)


def _labels_of_groups(
    rows: pa.Table, groups: dict[tuple[str, str | None], list[int]], settings: Settings
) -> tuple[pa.Table, pa.Table]:
    parts = [
        _parse_labels(rows.take(pa.array(group, pa.int64())), label, time, settings)
        for (label, time), group in groups.items()
    ] or [_parse_labels(rows.slice(0, 0), find_label_names(settings)[0], None, settings)]
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
    fields = {name: quote_name(settings.contract.payload_field(name)) for name in mapping}
    with connect(settings) as connection:
        connection.register(
            "labels",
            pa.table(
                {
                    "transaction_id": good["transaction_id"],
                    "is_fraud": good["is_fraud"],
                    "labelled_at": format_iso(times),
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
