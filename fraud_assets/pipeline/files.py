"""The drop folder: JSON lines, CSV and Parquet files to the landing tables, exactly once by content.

A file is a stream of its own: its lineage is the SHA-256 of its content, the offset is the row number. It is
read to its end before anything of it lands, so that a file that cannot be read lands nothing. Then its labels
land, where it has any, then its transactions, and the file moves to `processed/`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.schema import TIME, fraud_labels, raw_transactions
from fraud_assets.errors import LakeError, SettingError
from fraud_assets.kafka.consumer import MESSAGES
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.positions import FILE_LABELS_TOPIC, FILE_TOPIC, NOTHING, Stream, stored
from fraud_assets.lake.tables import Lake
from fraud_assets.pipeline.landing import Progress, append_labels, never
from fraud_assets.settings import CONTRACT_FIELDS, Settings

JSON_LINES = (".jsonl", ".ndjson", ".json")
FORMATS = (*JSON_LINES, ".csv", ".parquet")

_PART = ".part"
_LABEL_NAMES = ("is_fraud", "tx_fraud")
_SNIFFED_LINES = 100
_KEPT_BATCHES = 2
"""A file of so many landing batches' bytes is converted once and kept; a larger one is converted in each pass."""

_LATEST = datetime(9999, 12, 31, tzinfo=UTC)


@dataclass(frozen=True)
class FileReport:
    """What became of one file: rows and labels that landed now, and why it failed if it did."""

    name: str
    rows: int = 0
    labels: int = 0
    quarantined_labels: int = 0
    bytes: int = 0
    seconds: float = 0.0
    moved_to: Path | None = None
    reason: str = ""


class _UnusableFile(Exception):
    """A file cannot be landed; the message says why."""


@dataclass(frozen=True)
class _Contents:
    """A file that was read to its end: how to read it again, and what it holds."""

    chunks: Callable[[], Iterator[tuple[pa.Array, pa.Array]]]
    rows: int
    last: int
    label_field: str | None
    labelled_at_field: str | None
    has_transactions: bool


def waiting_files(settings: Settings) -> list[Path]:
    """Files of the drop folder that have been unchanged for FRAUD_FILE_QUIET_SECONDS, by name."""
    try:
        entries = sorted(settings.incoming.iterdir())
    except FileNotFoundError:
        return []
    ready = []
    for path in entries:
        if path.name.startswith(".") or path.name.lower().endswith(_PART):
            continue
        try:
            changed = path.stat().st_mtime
            # A file of the future (a copied time, another clock) would otherwise wait for that day.
            quiet = abs(time.time() - changed) >= settings.file_quiet_seconds
        except FileNotFoundError:
            continue
        if quiet and path.is_file():
            ready.append(path)
    return ready


def land_files(
    lake: Lake, settings: Settings, progress: Progress, stop: Callable[[], bool] = never
) -> list[FileReport]:
    """Lands every waiting file, each exactly once by content, and moves it to `processed/` or `failed/`.

    `stop` is asked between commits; a file that is stopped or killed half-way stays and goes on next time.

    Raises:
        LakeError: a table cannot be written; the file stays where it is.
    """
    if not waiting_files(settings):
        return []
    reports = []
    with _alone(settings):
        for path in waiting_files(settings):
            if stop():
                break
            report = _land_file(path, lake, settings, progress, stop)
            if report is not None:
                reports.append(report)
    return reports


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One lander of files at a time: positions guard the tables, but a file moves under another's reading."""
    settings.home_path.mkdir(parents=True, exist_ok=True)
    with (settings.home_path / "files.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _land_file(
    path: Path, lake: Lake, settings: Settings, progress: Progress, stop: Callable[[], bool]
) -> FileReport | None:
    begun = time.monotonic()
    try:
        before = _state(path)
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        contents = _examine(path, settings)
        if _state(path) != before:
            progress(f"{path.name} changed while it was read; it waits.")
            return None
    except FileNotFoundError:
        return None
    except (_UnusableFile, OSError) as error:
        reason = str(error)
        moved = _move(path, settings.failed)
        moved.with_name(f"{moved.name}.reason.txt").write_text(reason + "\n")
        progress(f"{path.name} cannot be landed: {reason} It is in {moved.parent}.")
        return FileReport(path.name, seconds=time.monotonic() - begun, moved_to=moved, reason=reason)
    name = path.name.encode("utf-8", "replace").decode()
    labels = quarantined = rows = size = 0
    if contents.label_field is not None:
        stream = Stream(FILE_LABELS_TOPIC + name, content, 0)
        known = stored(lake.open(fraud_labels), stream)
        for batch in _batches(contents, stream, known, settings):
            parsed = _labels(batch, contents, settings)
            landed, refused = append_labels(lake, settings, batch, parsed)
            labels, quarantined = labels + landed, quarantined + refused
            if stop():
                return None
    if contents.has_transactions:
        stream = Stream(FILE_TOPIC + name, content, 0)
        known = stored(lake.open(raw_transactions), stream)
        for batch in _batches(contents, stream, known, settings):
            rows += append_landed(lake, raw_transactions, batch, metadata={"file": name})
            size += batch["value"].nbytes
            if stop():
                return None
    if _state(path) != before:
        # What was examined has landed; what the file became since is another content, for the next look.
        progress(f"{path.name} changed while it landed; it waits.")
        return None
    moved = _move(path, settings.processed)
    seconds = time.monotonic() - begun
    again = " (its content had landed before)" if contents.rows and not rows and not labels else ""
    progress(f"{path.name}: {rows:,} rows, {labels:,} labels landed in {seconds:.1f} s{again}")
    return FileReport(path.name, rows, labels, quarantined, size, seconds, moved)


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _move(path: Path, folder: Path) -> Path:
    """Moves a file without overwriting another; gives where it is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target, number = folder / path.name, 0
        while target.exists() or target.with_name(f"{target.name}.reason.txt").exists():
            number += 1
            target = folder / f"{path.stem}.{number}{path.suffix}"
        shutil.move(path, target)
    except OSError as error:
        raise LakeError(
            f"{path} cannot be moved to {folder} ({error.strerror or error}). Check that both folders are writable; "
            "what landed of it is kept and will not land again."
        ) from error
    return target


def _examine(path: Path, settings: Settings) -> _Contents:
    """Reads the whole file once.

    Raises:
        _UnusableFile: it cannot be read, or has not the columns that it needs.
        SettingError: DuckDB has too little memory for it.
    """
    import duckdb

    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise _UnusableFile(f"The suffix {path.suffix!r} is unknown; known are {', '.join(FORMATS)}.")
    try:
        if suffix in JSON_LINES:
            return _examine_json_lines(path, settings)
        return _examine_columns(path, settings, _csv_source if suffix == ".csv" else _parquet_source)
    except (duckdb.Error, pa.ArrowException, UnicodeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, not the content's
        if "Out of Memory" in str(error):
            raise SettingError(
                f"Setting FRAUD_DUCKDB_MEMORY_LIMIT is {settings.duckdb_memory_limit!r}: too little to read "
                f"{path}. Raise it."
            ) from error
        words = " ".join(str(error).split("Possible fixes")[0].split()).rstrip(".")
        raise _UnusableFile(f"It cannot be read as {suffix[1:].upper()}: {words[:500]}.") from error


def _batches(contents: _Contents, stream: Stream, known: int, settings: Settings) -> Iterator[pa.Table]:
    """The rows beyond `known` as messages of the stream, in landing batches."""
    waiting: list[pa.Table] = []
    rows = size = 0
    for offsets, values in contents.chunks():
        if len(offsets) == 0 or offsets[-1].as_py() <= known:
            continue
        count = len(offsets)
        chunk = pa.table(
            {
                "topic": pa.repeat(pa.scalar(stream.topic), count),
                "lineage": pa.repeat(pa.scalar(stream.lineage), count),
                "partition": pa.repeat(pa.scalar(stream.partition, pa.int32()), count),
                "offset": offsets,
                **{name: pa.nulls(count, MESSAGES.field(name).type) for name in ("timestamp", "key", "headers")},
                "value": values,
            }
        ).select(MESSAGES.names)
        waiting.append(chunk.cast(MESSAGES))
        rows, size = rows + count, size + values.nbytes
        if rows >= settings.land_batch_rows or size >= settings.land_batch_bytes:
            yield pa.concat_tables(waiting)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield pa.concat_tables(waiting)


def _chunk_rows(settings: Settings) -> int:
    """Rows that are converted at a time: small against a landing batch where rows are large."""
    return max(1, min(settings.land_batch_rows, settings.land_batch_bytes // 1_000))


# ---------------------------------------------------------------------------------------------------------
# JSON lines: the bytes of a line are the body.


def _examine_json_lines(path: Path, settings: Settings) -> _Contents:
    wanted = dict.fromkeys([settings.payload_field("is_fraud").lower(), *_LABEL_NAMES])
    label_key = re.compile(rb'"(' + b"|".join(re.escape(n).encode() for n in wanted) + rb')"\s*:', re.IGNORECASE)
    contract = settings.payload_field("labelled_at")
    time_key = json.dumps(contract).encode()
    rows, last, objects = 0, NOTHING, 0
    spellings: set[str] = set()
    has_time = False
    for number, line in _lines(path):
        rows, last = rows + 1, number
        if rows <= _SNIFFED_LINES:
            objects += line.lstrip().startswith(b"{")
            if rows == 1 and line.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
                raise _UnusableFile("It is a JSON array; write one JSON object per line.")
        found = label_key.search(line)
        if found is not None:
            spellings.add(found[1].decode())
            has_time = has_time or time_key in line
    if rows == 0:
        raise _UnusableFile("It holds no row.")
    if objects == 0:
        raise _UnusableFile("None of its first lines is a JSON object; write one JSON object per line.")
    label_field = min(spellings, key=lambda name: (list(wanted).index(name.lower()), name), default=None)
    return _Contents(
        lambda: _json_chunks(path, settings), rows, last, label_field, contract if has_time else None, True
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Row numbers and bytes of the lines that are not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file):
            body = line.rstrip(b"\r\n")
            if body.strip():
                yield number, body


def _json_chunks(path: Path, settings: Settings) -> Iterator[tuple[pa.Array, pa.Array]]:
    limit_rows, limit_bytes = settings.land_batch_rows, settings.land_batch_bytes
    offsets: list[int] = []
    values: list[bytes] = []
    size = 0
    for number, line in _lines(path):
        offsets.append(number)
        values.append(line)
        size += len(line)
        if len(values) >= limit_rows or size >= limit_bytes:
            yield pa.array(offsets, pa.int64()), pa.array(values, pa.binary())
            offsets, values, size = [], [], 0
    if values:
        yield pa.array(offsets, pa.int64()), pa.array(values, pa.binary())


# ---------------------------------------------------------------------------------------------------------
# CSV and Parquet: a row becomes a JSON object, with the names of the contract's fields put right.


@dataclass(frozen=True)
class _Source:
    """Column names of a file, and its rows in their order as Arrow tables; times are ISO text by then."""

    columns: Sequence[str]
    chunks: Callable[[], Iterator[pa.Table]]


def _csv_source(path: Path, settings: Settings) -> _Source:
    from fraud_assets.engines.duckdb import connect

    # Everything is text, so that no card-number-like integer passes through a float; empty means null.
    query = "select * from read_csv($path, all_varchar = true, header = true, sample_size = 20480)"

    with connect(settings) as connection:
        columns = connection.sql(query, params={"path": str(path)}).columns

    def chunks() -> Iterator[pa.Table]:
        with connect(settings) as connection:
            reader = connection.sql(query, params={"path": str(path)}).to_arrow_reader(_chunk_rows(settings))
            for batch in reader:
                yield pa.Table.from_batches([batch])

    return _Source(columns, chunks)


def _parquet_source(path: Path, settings: Settings) -> _Source:
    import pyarrow.parquet

    columns = pyarrow.parquet.read_schema(path).names

    def chunks() -> Iterator[pa.Table]:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_chunk_rows(settings), use_threads=False):
                yield pa.Table.from_batches([batch])

    return _Source(columns, chunks)


def _examine_columns(path: Path, settings: Settings, open_source: Callable[[Path, Settings], _Source]) -> _Contents:
    source = open_source(path, settings)
    if len(set(source.columns)) < len(source.columns):
        raise _UnusableFile("Two of its columns have the same name.")
    names = _payload_names(source.columns, settings)
    payloads = {settings.payload_field(field): field for field in CONTRACT_FIELDS}
    missing = [shown for shown in payloads if shown not in names.values()]
    label_field = _first(names, [settings.payload_field("is_fraud"), *_LABEL_NAMES])
    labelled_at = _first(names, [settings.payload_field("labelled_at"), "labelled_at"])
    labels_alone = bool(
        label_field and labelled_at and settings.payload_field("transaction_id") in names.values() and missing
    )
    if missing and not labels_alone:
        raise _UnusableFile(
            f"It has no column {', '.join(missing)}; its columns are {', '.join(source.columns)[:300]}. "
            "FRAUD_FIELD_MAPPING maps other names."
        )

    def chunks() -> Iterator[tuple[pa.Array, pa.Array]]:
        return _column_chunks(source, names, label_field, settings)

    rows = size = 0
    kept: list[tuple[pa.Array, pa.Array]] = []
    for chunk in chunks():
        rows, size = rows + len(chunk[0]), size + chunk[1].nbytes
        if size <= _KEPT_BATCHES * settings.land_batch_bytes:
            kept.append(chunk)
        else:
            kept.clear()
    if sum(len(offsets) for offsets, _ in kept) == rows:
        return _Contents(lambda: iter(kept), rows, rows - 1, label_field, labelled_at, not labels_alone)
    return _Contents(chunks, rows, rows - 1, label_field, labelled_at, not labels_alone)


def _first(names: dict[str, str], wanted: Sequence[str]) -> str | None:
    """The name (as the JSON has it) of the first wanted column that is there, whatever its case."""
    by_case = {name.lower(): name for name in reversed(names.values())}
    return next((by_case[name.lower()] for name in wanted if name.lower() in by_case), None)


def _payload_names(columns: Sequence[str], settings: Settings) -> dict[str, str]:
    """Name in the JSON of each column: the payload's for a contract field, else its own."""
    names = {column: column for column in columns}
    for field in CONTRACT_FIELDS:
        payload = settings.payload_field(field)
        if payload in columns:
            continue
        for wanted in (payload, field):
            found = next((column for column in columns if column.lower() == wanted.lower()), None)
            if found is not None:
                names[found] = payload
                break
    return names


def _column_chunks(
    source: _Source, names: dict[str, str], label_field: str | None, settings: Settings
) -> Iterator[tuple[pa.Array, pa.Array]]:
    from fraud_assets.engines.duckdb import connect

    start = 0
    with connect(settings) as connection:
        query = ""
        for chunk in source.chunks():
            table = _iso_times(chunk)
            query = query or _json_query(table.schema, names, label_field)
            connection.register("chunk", table)
            bodies = connection.sql(query).to_arrow_table().column("body").combine_chunks()
            connection.unregister("chunk")
            yield pa.array(range(start, start + len(bodies)), pa.int64()), bodies.cast(pa.binary())
            start += len(bodies)


def _json_query(schema: pa.Schema, names: dict[str, str], label_field: str | None) -> str:
    """SQL that makes one JSON object of each row of `chunk`, in order."""
    fields = []
    for column in schema:
        quoted = _quoted(column.name)
        if names[column.name] == label_field and pa.types.is_floating(column.type):
            # Files written by pandas have 0.0 and 1.0 where labels are missing elsewhere.
            quoted = f"case when {quoted} in (0, 1) then to_json({quoted}::int) else to_json({quoted}) end"
        fields.append(f"{_quoted(names[column.name])} := {quoted}")
    return f"select to_json(struct_pack({', '.join(fields)}))::varchar as body from chunk"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _iso_times(table: pa.Table) -> pa.Table:
    """Timestamps as ISO 8601 text, in UTC with a Z where they have a zone; cut to microseconds."""
    for index, column in enumerate(table.schema):
        if not pa.types.is_timestamp(column.type):
            continue
        zone = "UTC" if column.type.tz else None
        text = table.column(index).cast(pa.timestamp("us", zone), safe=False).cast(pa.string())
        table = table.set_column(index, column.name, pc.replace_substring(text, " ", "T"))
    return table


# ---------------------------------------------------------------------------------------------------------
# Labels of a file: the transactions' own bodies, read by the label parser with other field names.


def _labels(batch: pa.Table, contents: _Contents, settings: Settings) -> tuple[pa.Table, pa.Table]:
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
    fields = {name: _quoted(settings.payload_field(name)) for name in mapping}
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
