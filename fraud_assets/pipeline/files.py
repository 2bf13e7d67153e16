"""The drop folder: JSON lines, CSV and Parquet files to the landing tables, exactly once by content.

A file is a stream of its own: its lineage is the SHA-256 of its content, the offset is the row number. It is
read to its end before anything of it lands, so that a file that cannot be read lands nothing. Then its labels
land, where it has any, then its transactions, and the file moves to `processed/`.

With FRAUD_PSEUDONYMISE no file is kept: a receipt takes its place, and its lineage is a keyed HMAC, so that nobody
can try out what it may have held.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fraud_assets.core.local_time import iso_text
from fraud_assets.core.pseudonyms import keyed_hmac, pseudonymise
from fraud_assets.core.schema import MESSAGES, TIME, fraud_labels, raw_transactions
from fraud_assets.errors import LakeError, SettingError
from fraud_assets.lake.append import append_landed
from fraud_assets.lake.positions import FILE_LABELS_TOPIC, FILE_TOPIC, NOTHING, Stream, stored
from fraud_assets.lake.tables import Lake
from fraud_assets.pipeline.csv_file import csv_file
from fraud_assets.pipeline.landing import Progress, append_labels, never
from fraud_assets.settings import CONTRACT_FIELDS, Settings

JSON_LINES = (".jsonl", ".ndjson", ".json")
FORMATS = (*JSON_LINES, ".csv", ".parquet")

_PART = ".part"
_REASON = ".reason.txt"
_RECEIPT = ".receipt.json"
_LABEL_NAMES = ("is_fraud", "tx_fraud")
_SNIFFED_LINES = 100
_LOCK_PAUSE_SECONDS = 0.1
_KEPT_BATCHES = 2
"""A file of so many landing batches' bytes is converted once and kept; a larger one is converted in each pass."""

_LONGEST_LINE = 100_000_000  # bytes; a file without line ends must not fill the memory
_LONGEST_NAME = 255 - len(_RECEIPT) - len(".999999")  # bytes that a file system takes, less what is put behind
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
    """A file cannot be landed; the message says why, `plain` says it without quoting the file."""

    def __init__(self, reason: str, plain: str = "") -> None:
        super().__init__(reason)
        self.plain = plain or reason


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
    with _alone(settings, stop):
        for path in waiting_files(settings):
            if stop():
                break
            report = _land_file(path, lake, settings, progress, stop)
            if report is not None:
                reports.append(report)
    return reports


@contextmanager
def _alone(settings: Settings, stop: Callable[[], bool]) -> Iterator[None]:
    """One lander of files at a time: positions guard the tables, but a file moves under another's reading."""
    settings.home_path.mkdir(parents=True, exist_ok=True)
    with (settings.home_path / "files.lock").open("a") as lock:
        while not stop():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_LOCK_PAUSE_SECONDS)
        yield


def _land_file(
    path: Path, lake: Lake, settings: Settings, progress: Progress, stop: Callable[[], bool]
) -> FileReport | None:
    begun = time.monotonic()
    try:
        before = _state(path)
        content = _lineage(path, settings)
        contents = _examine(path, settings)
        if _state(path) != before:
            progress(f"{_name_of(path)} changed while it was read; it waits.")
            return None
    except FileNotFoundError:
        return None
    except (_UnusableFile, OSError) as error:
        if not settings.pseudonymise:
            moved, reason = _refuse(path, settings, error, progress)
        elif isinstance(error, OSError):
            raise  # of what cannot be read nothing can be kept, so nothing is removed
        elif _state(path) != before:
            progress(f"{_name_of(path)} changed while it was read; it waits.")
            return None
        else:
            moved, reason = _refuse_withheld(path, settings, error, content, progress)
        return FileReport(_name_of(path), seconds=time.monotonic() - begun, moved_to=moved, reason=reason)
    landed = _land_contents(path, contents, content, lake, settings, stop)
    if landed is None:
        return None
    if _state(path) != before:
        # What was examined has landed; what the file became since is another content, for the next look.
        progress(f"{_name_of(path)} changed while it landed; it waits.")
        return None
    if settings.pseudonymise:
        moved = _leave_receipt(path, settings, landed, content)
        removed = "; the file was removed, as FRAUD_PSEUDONYMISE says"
    else:
        moved, removed = _move(path, settings.processed), ""
    seconds = time.monotonic() - begun
    again = " (its content had landed before)" if contents.rows and not landed.rows and not landed.labels else ""
    progress(
        f"{_name_of(path)}: {landed.rows:,} rows, {landed.labels:,} labels landed in {seconds:.1f} s{again}{removed}"
    )
    return replace(landed, seconds=seconds, moved_to=moved)


def _land_contents(
    path: Path, contents: _Contents, content: str, lake: Lake, settings: Settings, stop: Callable[[], bool]
) -> FileReport | None:
    """Lands the labels of an examined file, then its transactions; None where it was stopped in between."""
    name = _name_of(path)
    labels = quarantined = rows = size = 0
    if contents.label_field is not None:
        stream = Stream(FILE_LABELS_TOPIC + name, content, 0)
        known = stored(lake.open(fraud_labels), stream)
        for messages in _batches(contents, stream, known, settings):
            batch = pseudonymise(messages, settings)
            parsed = _labels(batch, contents, settings)
            landed, refused = append_labels(lake, settings, batch, parsed)
            labels, quarantined = labels + landed, quarantined + refused
            if stop():
                return None
    if contents.has_transactions:
        stream = Stream(FILE_TOPIC + name, content, 0)
        known = stored(lake.open(raw_transactions), stream)
        for messages in _batches(contents, stream, known, settings):
            batch = pseudonymise(messages, settings)
            rows += append_landed(lake, raw_transactions, batch, metadata={"file": name})
            size += batch["value"].nbytes
            if stop():
                return None
    return FileReport(name, rows, labels, quarantined, size)


def _refuse(path: Path, settings: Settings, error: Exception, progress: Progress) -> tuple[Path, str]:
    """Moves a file that cannot be landed to `failed/`, its reason beside it; gives where it is, and the reason."""
    reason = str(error)
    moved = _move(path, settings.failed)
    moved.with_name(f"{moved.name}{_REASON}").write_text(reason + "\n", "utf-8", "backslashreplace")
    progress(f"{_name_of(path)} cannot be landed: {reason} It is in {moved.parent}.")
    return moved, reason


def _refuse_withheld(
    path: Path, settings: Settings, error: _UnusableFile, content: str, progress: Progress
) -> tuple[Path, str]:
    """The same without the file and without a word of it."""
    kept = f"{error.plain}\n{path.stat().st_size} bytes, HMAC-SHA-256 {content}\n"
    moved = _withhold(path, settings.failed, _REASON, kept)
    progress(
        f"{_name_of(path)} cannot be landed: {error.plain} It was removed, as FRAUD_PSEUDONYMISE says; reason and HMAC "
        f"are in {moved.parent}."
    )
    return moved, error.plain


def _leave_receipt(path: Path, settings: Settings, landed: FileReport, content: str) -> Path:
    """Removes a landed file and leaves a receipt in `processed/`; gives where that is."""
    receipt = {
        "file": _name_of(path),
        "bytes": path.stat().st_size,
        "hmac_sha256": content,
        "rows": landed.rows,
        "labels": landed.labels,
        "landed_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return _withhold(path, settings.processed, _RECEIPT, json.dumps(receipt) + "\n")


def _name_of(path: Path) -> str:
    """Its name for tables, reports and people; one that is not UTF-8 has question marks."""
    return path.name.encode("utf-8", "replace").decode()


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _lineage(path: Path, settings: Settings) -> str:
    """What a file is known by: the SHA-256 of its content, or a keyed HMAC of that with FRAUD_PSEUDONYMISE."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256")
    return keyed_hmac(content.digest(), settings) if settings.pseudonymise else content.hexdigest()


def _move(path: Path, folder: Path) -> Path:
    """Moves a file without overwriting another; gives where it is."""
    with _folder_faults(path, folder):
        target = _free_name(path, folder)
        shutil.move(path, target)
    return target


def _withhold(path: Path, folder: Path, suffix: str, receipt: str) -> Path:
    """Removes a file and leaves a receipt under its name and a suffix; gives where that is."""
    with _folder_faults(path, folder):
        target = _free_name(path, folder)
        written = target.with_name(target.name + suffix)
        written.write_text(receipt, "utf-8")
        path.unlink()
    return written


def _free_name(path: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = path.name if len(os.fsencode(path.name)) <= _LONGEST_NAME else _shortened(path)
    target, number = folder / name, 0
    while any(target.with_name(target.name + suffix).exists() for suffix in ("", _REASON, _RECEIPT)):
        number += 1
        target = folder / f"{Path(name).stem}.{number}{Path(name).suffix}"
    return target


def _shortened(path: Path) -> str:
    suffix = path.suffix if path.suffix.lower() in FORMATS else ""
    return os.fsencode(path.name)[: _LONGEST_NAME - len(suffix)].decode(errors="ignore") + suffix


@contextmanager
def _folder_faults(path: Path, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LakeError(
            f"{path} cannot be moved to {folder} ({error.strerror or error}). Check that both folders are writable; "
            "what landed of it is kept and will not land again."
        ) from error


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
        if _name_of(path) != path.name:
            raise _UnusableFile("Its name is not UTF-8 text; give it another.")
        return _examine_columns(path, settings, _csv_source if suffix == ".csv" else _parquet_source)
    except (duckdb.Error, pa.ArrowException, UnicodeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, not the content's
        if "Out of Memory" in str(error):
            raise SettingError(
                f"Setting FRAUD_DUCKDB_MEMORY_LIMIT is {settings.duckdb_memory_limit!r}: too little to read "
                f"{path}. Raise it."
            ) from error
        kind = suffix[1:].upper()
        raise _UnusableFile(
            f"It cannot be read as {kind}: {_in_short(error)}.", f"It cannot be read as {kind}."
        ) from error


def _in_short(error: Exception) -> str:
    """The words of a reader, without what one cannot do here and without all of a long line."""
    text = str(error).split("Possible fixes")[0].split("Stack Trace:")[0]
    if "state machine" in text:
        return "its lines do not all end alike, or a quoted value does not end"
    text = re.sub(r"Possible Solution:.*", "", text)
    text = re.sub(r"(Original Line: .{80}).*", r"\1…", text)
    return " ".join(text.split())[:500].rstrip(".")


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
    wanted, label_key = _label_keys(settings)
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
    label_field = min(spellings, key=lambda name: (wanted.index(name.lower()), name), default=None)
    return _Contents(
        lambda: _json_chunks(path, settings), rows, last, label_field, contract if has_time else None, True
    )


def _label_keys(settings: Settings) -> tuple[list[str], re.Pattern[bytes]]:
    """The names under which a body may have its label, the preferred first, and what finds them as keys."""
    wanted = list(dict.fromkeys([settings.payload_field("is_fraud").lower(), *_LABEL_NAMES]))
    names = b"|".join(re.escape(name).encode() for name in wanted)
    return wanted, re.compile(rb'"(' + names + rb')"\s*:', re.IGNORECASE)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Row numbers and bytes of the lines that are not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, _LONGEST_LINE + 1), b"")):
            if len(line) > _LONGEST_LINE:
                raise _UnusableFile(f"Line {number + 1:,} is longer than {_LONGEST_LINE:,} bytes.")
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
    csv = csv_file(path)

    def chunks() -> Iterator[pa.Table]:
        with connect(settings, spill=not settings.pseudonymise) as connection:
            rows = connection.sql(f"select * from {csv.scan}", params=csv.params)
            for batch in rows.to_arrow_reader(_chunk_rows(settings)):
                yield pa.Table.from_batches([batch])

    return _Source(csv.columns, chunks)


def _parquet_source(path: Path, settings: Settings) -> _Source:
    import pyarrow.parquet

    columns = pyarrow.parquet.read_schema(path).names

    def chunks() -> Iterator[pa.Table]:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_chunk_rows(settings), use_threads=False):
                # Of text that is not UTF-8 DuckDB would make no body at all.
                batch.validate(full=True)
                yield pa.Table.from_batches([batch])

    return _Source(columns, chunks)


def _examine_columns(path: Path, settings: Settings, open_source: Callable[[Path, Settings], _Source]) -> _Contents:
    source = open_source(path, settings)
    if len({column.lower() for column in source.columns}) < len(source.columns):
        raise _UnusableFile("Two of its columns have the same name, but for capital letters.")
    if any(not column or "\0" in column for column in source.columns):
        raise _UnusableFile("One of its columns has an empty name, or one with a NUL character.")
    names = _payload_names(source.columns, settings)
    payloads = {settings.payload_field(field): field for field in CONTRACT_FIELDS}
    missing = [shown for shown in payloads if shown not in names.values()]
    label_field = _first(names, [settings.payload_field("is_fraud"), *_LABEL_NAMES])
    labelled_at = _first(names, [settings.payload_field("labelled_at"), "labelled_at"])
    labels_alone = bool(
        label_field and labelled_at and settings.payload_field("transaction_id") in names.values() and missing
    )
    if missing and not labels_alone:
        remedy = "FRAUD_FIELD_MAPPING maps other names."
        raise _UnusableFile(
            f"It has no column {', '.join(missing)}; its columns are {', '.join(source.columns)[:300]}. {remedy}",
            # Of a CSV file without a header the columns are its first row.
            f"It has no column {', '.join(missing)}. {remedy}",
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
    with connect(settings, spill=not settings.pseudonymise) as connection:
        query = ""
        for chunk in source.chunks():
            table = _plain_columns(chunk)
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
        if pa.types.is_decimal(column.type):
            # Narrow ones would pass through a float, and 7 come out as 7.0.
            quoted = f"{quoted}::decimal(38, {column.type.scale})"
        if names[column.name] == label_field and (
            pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)
        ):
            # Files written by pandas have 0.0 and 1.0 where labels are missing elsewhere.
            quoted = f"case when {quoted} in (0, 1) then to_json({quoted}::int) else to_json({quoted}) end"
        fields.append(f"{_quoted(names[column.name])} := {quoted}")
    return f"select to_json(struct_pack({', '.join(fields)}))::varchar as body from chunk"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _plain_columns(table: pa.Table) -> pa.Table:
    """Timestamps as ISO 8601 text, in UTC with a Z where they have a zone, cut to microseconds.

    And what DuckDB does not take in a form that it does.
    """
    for index, column in enumerate(table.schema):
        values = table.column(index)
        if pa.types.is_timestamp(column.type):
            values = iso_text(values)
        elif isinstance(column.type, pa.JsonType):
            values = values.cast(column.type.storage_type)
        elif pa.types.is_decimal256(column.type):
            values = values.cast(pa.string())
        elif pa.types.is_float16(column.type):
            values = values.cast(pa.float32())
        table = table.set_column(index, column.name, values)
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


def labels_of_rows(rows: pa.Table, settings: Settings) -> tuple[pa.Table, pa.Table]:
    """Good and rejected labels of rows of dropped files (`MESSAGES`), read as they are when a file lands."""
    wanted, label_key = _label_keys(settings)
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
    fields = {name: _quoted(settings.payload_field(name)) for name in mapping}
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
