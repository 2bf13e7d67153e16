"""Labels of a dropped file: the transactions' own bodies, read by the label parser with other field names."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import TIME
from fraud_assets.pipeline.file_columns import quoted
from fraud_assets.pipeline.file_contents import Contents, label_keys
from fraud_assets.settings import Settings

_LATEST = datetime(9999, 12, 31, tzinfo=UTC)


def labels_of_file(batch: pa.Table, contents: Contents, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """Good and rejected labels of a batch of the file's rows; a row without a label, or with null, has none.

    Where the row does not say when its label came, it came FRAUD_FEEDBACK_DELAY_DAYS after the transaction.
    """
    assert contents.label_field is not None
    labelled = batch.filter(_has_value(batch, contents.label_field))
    if contents.labelled_at_field is None:
        return _parse_labels(labelled, contents.label_field, None, settings)
    timed = _has_value(labelled, contents.labelled_at_field)
    parts = [
        _parse_labels(labelled.filter(timed), contents.label_field, contents.labelled_at_field, settings),
        _parse_labels(labelled.filter(pc.invert(timed)), contents.label_field, None, settings),
    ]
    good, rejected = (pa.concat_tables(tables).sort_by("offset") for tables in zip(*parts, strict=True))
    return good, rejected


def labels_of_rows(rows: pa.Table, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """Good and rejected labels of rows of dropped files (`MESSAGES`), read as they are when a file lands."""
    wanted, label_key = label_keys(settings)
    labelled_at = settings.payload_field("labelled_at")
    timed = _has_value(rows, labelled_at).combine_chunks().fill_null(False).to_pylist()
    groups: dict[tuple[str, bool], list[int]] = {}
    for row, body in enumerate(rows["value"].to_pylist()):
        found = {name.decode() for name in label_key.findall(body or b"")}
        label = min(found, key=lambda name: (wanted.index(name.lower()), name), default=wanted[0])
        groups.setdefault((label, timed[row]), []).append(row)
    parts = [
        _parse_labels(rows.take(pa.array(group)), label, labelled_at if has_time else None, settings)
        for (label, has_time), group in groups.items()
    ] or [_parse_labels(rows, wanted[0], None, settings)]
    good, rejected = (pa.concat_tables(tables).sort_by("offset") for tables in zip(*parts, strict=True))
    return good, rejected


def _has_value(batch: pa.Table, key: str) -> pa.ChunkedArray:
    """Whether a body has the key with a value other than null; the parser judges what it is."""
    pattern = re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:\s*[^\sn]"
    return pc.match_substring_regex(batch["value"], pattern)


def _parse_labels(
    rows: pa.Table, label_field: str, labelled_at_field: str | None, settings: Settings
) -> tuple[pa.Table, pa.Table]:
    from fraud_assets.core.parsing import parse_labels
    from fraud_assets.engines.duckdb import connect

    mapping = {
        "transaction_id": settings.payload_field("transaction_id"),
        "is_fraud": label_field,
        "labelled_at": labelled_at_field or settings.payload_field("tx_datetime"),
    }
    good, rejected = parse_labels(rows, settings.model_copy(update={"field_mapping": mapping}))
    if good.num_rows == 0:
        return good, rejected
    times = good["labelled_at"]
    if labelled_at_field is None:
        delayed = pc.add(times, pa.scalar(timedelta(days=settings.feedback_delay_days), pa.duration("us")))
        latest = pa.scalar(_LATEST, TIME)
        times = pc.if_else(pc.greater(delayed, latest), latest, delayed)
    times = times.cast(TIME)
    fields = {name: quoted(settings.payload_field(name)) for name in mapping}
    with connect(settings) as connection:
        connection.register(
            "labels",
            pa.table(
                {
                    "transaction_id": good["transaction_id"],
                    "is_fraud": good["is_fraud"],
                    "labelled_at": pc.replace_substring(times.cast(pa.string()), " ", "T"),
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
