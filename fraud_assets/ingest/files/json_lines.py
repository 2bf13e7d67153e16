"""Reads dropped JSON lines files: the bytes of a line are the message body, except that field names are corrected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from fraud_assets.core.bodies import Rejected, parse_json_object, strip_byte_order_mark
from fraud_assets.core.field_paths import MISSING, get_value
from fraud_assets.ingest.files.contents import Contents, UnusableFileError
from fraud_assets.ingest.files.field_names import map_payload_names
from fraud_assets.ingest.files.labels import LabelKeys
from fraud_assets.ingest.files.parquet_file import LARGEST_ROW
from fraud_assets.lake.positions import NOTHING
from fraud_assets.settings import CONTRACT_FIELDS, Settings

_SNIFFED_LINES = 100
_CACHED_SHAPES = 100
_PRETTY = "It is pretty-printed JSON, an object over several lines. Write one JSON object per line, as `jq -c .` does."
_decode_raw_values = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def examine_json_lines(path: Path, settings: Settings) -> Contents:
    """Reads a whole file of JSON lines and returns its contents.

    Raises:
        UnusableFileError: the file does not hold JSON lines.
    """
    keys = LabelKeys.from_settings(settings)
    rows, last, objects = 0, NOTHING, 0
    has_labels = False
    first: list[bytes] = []
    for number, line in _read_lines(path):
        rows, last = rows + 1, number
        if rows <= _SNIFFED_LINES:
            first.append(strip_byte_order_mark(line))
            objects += first[-1].lstrip().startswith(b"{")
            if rows == 1 and first[-1].lstrip().startswith(b"["):
                raise UnusableFileError("It is a JSON array. Write one JSON object per line.")
        has_labels = has_labels or keys.find_keys(line)[0] is not None
    if rows == 0:
        raise UnusableFileError("It has no rows.")
    if _is_pretty_printed(first):
        raise UnusableFileError(_PRETTY)
    if objects == 0:
        raise UnusableFileError("None of its first lines is a JSON object. Write one JSON object per line.")
    return Contents(lambda: _read_chunks(path, settings), rows, last, has_labels, True)


def _is_pretty_printed(lines: list[bytes]) -> bool:
    """Returns whether the lines together are one object or its beginning, and the first line alone is not an object."""
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


def _read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields row numbers and bytes of the lines that are not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, LARGEST_ROW + 1), b"")):
            if len(line) > LARGEST_ROW:
                raise UnusableFileError(f"Line {number + 1:,} is longer than {LARGEST_ROW:,} bytes.")
            body = line.rstrip(b"\r\n")
            if body.strip():
                yield number, body


def _read_chunks(path: Path, settings: Settings) -> Iterator[tuple[pa.Array, pa.Array]]:
    limit_rows, limit_bytes = settings.land_batch_rows, settings.land_batch_bytes
    renamer = _KeyRenamer(settings)
    offsets: list[int] = []
    values: list[bytes] = []
    size = 0
    for number, line in _read_lines(path):
        offsets.append(number)
        values.append(renamer.rename(line))
        size += len(line)
        if len(values) >= limit_rows or size >= limit_bytes:
            yield pa.array(offsets, pa.int64()), pa.array(values, pa.binary())
            offsets, values, size = [], [], 0
    if values:
        yield pa.array(offsets, pa.int64()), pa.array(values, pa.binary())


class _KeyRenamer:
    """Renames the keys of a line in the same way as the columns of CSV and Parquet files. Other lines do not change."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._payloads = [settings.contract.payload_field(field) for field in CONTRACT_FIELDS]
        self._quoted_names = [f'"{payload.rpartition(".")[2]}"'.encode() for payload in self._payloads]
        self._names_by_shape: dict[tuple[str, ...], dict[str, str]] = {}

    def rename(self, line: bytes) -> bytes:
        """Returns the line with the payload names of the contract's fields. The bytes of the values do not change."""
        # Most lines already have the right names and need no parsing.
        if all(name in line for name in self._quoted_names):
            return line
        try:
            payload = parse_json_object(line, LARGEST_ROW)
            values = _decode_raw_values(strip_byte_order_mark(line))
        except (Rejected, ValueError, RecursionError):
            return line  # The parser reports what is wrong with the line.
        names = self._map_names(payload)
        if all(name == key for key, name in names.items()):
            return line
        pairs = (
            json.dumps(names[key], ensure_ascii=False).encode() + b": " + bytes(raw) for key, raw in values.items()
        )
        return b"{" + b", ".join(pairs) + b"}"

    def _map_names(self, payload: dict[str, Any]) -> dict[str, str]:
        present = {path for path in self._payloads if "." in path and get_value(payload, path) is not MISSING}
        if present:
            return map_payload_names(payload, self._settings, present)
        keys = tuple(payload)
        known = self._names_by_shape.get(keys)
        if known is None:
            known = map_payload_names(payload, self._settings)
            if len(self._names_by_shape) < _CACHED_SHAPES:
                self._names_by_shape[keys] = known
        return known
