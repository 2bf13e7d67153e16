"""Dropped files of JSON lines: the bytes of a line are the body, except that names of fields are put right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from fraud_assets.core.bodies import Rejected, json_object, strip_byte_order_mark
from fraud_assets.core.field_paths import MISSING, value_at
from fraud_assets.ingest.files.contents import Contents, UnusableFile
from fraud_assets.ingest.files.field_names import payload_names
from fraud_assets.ingest.files.labels import LabelKeys
from fraud_assets.ingest.files.parquet_file import LARGEST_ROW
from fraud_assets.lake.positions import NOTHING
from fraud_assets.settings import CONTRACT_FIELDS, Settings

_SNIFFED_LINES = 100
_PRETTY = "It is pretty-printed JSON, an object over several lines; write one JSON object per line, as `jq -c .` does."
_raw_values = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def examine_json_lines(path: Path, settings: Settings) -> Contents:
    """Reads a file of JSON lines.

    Raises:
        UnusableFile: it holds no JSON lines.
    """
    keys = LabelKeys.of(settings)
    rows, last, objects = 0, NOTHING, 0
    has_labels = False
    first: list[bytes] = []
    for number, line in _lines(path):
        rows, last = rows + 1, number
        if rows <= _SNIFFED_LINES:
            first.append(strip_byte_order_mark(line))
            objects += first[-1].lstrip().startswith(b"{")
            if rows == 1 and first[-1].lstrip().startswith(b"["):
                raise UnusableFile("It is a JSON array; write one JSON object per line.")
        has_labels = has_labels or keys.keys_of(line)[0] is not None
    if rows == 0:
        raise UnusableFile("It holds no row.")
    if _is_pretty_printed(first):
        raise UnusableFile(_PRETTY)
    if objects == 0:
        raise UnusableFile("None of its first lines is a JSON object; write one JSON object per line.")
    return Contents(lambda: _chunks(path, settings), rows, last, has_labels, True)


def _is_pretty_printed(lines: list[bytes]) -> bool:
    """Whether the first lines are together one object, or the beginning of one, and the first alone is none."""
    if len(lines) < 2 or not lines[0].lstrip().startswith(b"{"):
        return False
    text = b"\n".join(lines).decode("utf-8", "replace").strip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        end = error.pos
        if end < len(text):
            return False
    except RecursionError:
        return False
    return "\n" in text[:end]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Row numbers and bytes of the lines that are not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, LARGEST_ROW + 1), b"")):
            if len(line) > LARGEST_ROW:
                raise UnusableFile(f"Line {number + 1:,} is longer than {LARGEST_ROW:,} bytes.")
            body = line.rstrip(b"\r\n")
            if body.strip():
                yield number, body


def _chunks(path: Path, settings: Settings) -> Iterator[tuple[pa.Array, pa.Array]]:
    limit_rows, limit_bytes = settings.land_batch_rows, settings.land_batch_bytes
    names = _Names(settings)
    offsets: list[int] = []
    values: list[bytes] = []
    size = 0
    for number, line in _lines(path):
        offsets.append(number)
        values.append(names.put_right(line))
        size += len(line)
        if len(values) >= limit_rows or size >= limit_bytes:
            yield pa.array(offsets, pa.int64()), pa.array(values, pa.binary())
            offsets, values, size = [], [], 0
    if values:
        yield pa.array(offsets, pa.int64()), pa.array(values, pa.binary())


class _Names:
    """Renames keys of a line as columns of a CSV or Parquet file are renamed. Other lines stay as they are."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._payloads = [settings.contract.payload_field(field) for field in CONTRACT_FIELDS]
        self._quick = [f'"{payload.rpartition(".")[2]}"'.encode() for payload in self._payloads]
        self._known: dict[tuple[str, ...], dict[str, str]] = {}

    def put_right(self, line: bytes) -> bytes:
        """The line with the payload's names for the contract's fields, values byte for byte."""
        if all(name in line for name in self._quick):
            return line
        try:
            payload = json_object(line, LARGEST_ROW)
            values = _raw_values(strip_byte_order_mark(line))
        except (Rejected, ValueError, RecursionError):  # the parser will say why
            return line
        names = self._names(payload)
        if all(name == key for key, name in names.items()):
            return line
        pairs = (
            json.dumps(names[key], ensure_ascii=False).encode() + b": " + bytes(raw) for key, raw in values.items()
        )
        return b"{" + b", ".join(pairs) + b"}"

    def _names(self, payload: dict[str, Any]) -> dict[str, str]:
        present = {path for path in self._payloads if "." in path and value_at(payload, path) is not MISSING}
        if present:
            return payload_names(payload, self._settings, present)
        keys = tuple(payload)
        known = self._known.get(keys)
        if known is None:
            known = payload_names(payload, self._settings)
            if len(self._known) < _SNIFFED_LINES:
                self._known[keys] = known
        return known
