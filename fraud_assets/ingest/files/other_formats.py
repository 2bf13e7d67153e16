"""Recognizes dropped files whose first bytes do not match their suffix, and names the fix."""

from __future__ import annotations

from pathlib import Path

_HEAD_BYTES = 4_096
_UNPACK = "Decompress it and drop it again."
_SAVE = "Save it as UTF-8 and drop it again."
_SIGNATURES = (
    (b"\x1f\x8b", f"It is a gzip archive. {_UNPACK}"),
    (b"BZh", f"It is a bzip2 archive. {_UNPACK}"),
    (b"\xfd7zXZ\0", f"It is an xz archive. {_UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"It is a zstd archive. {_UNPACK}"),
    (b"\x04\x22\x4d\x18", f"It is an LZ4 archive. {_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"It is a 7z archive. {_UNPACK}"),
    (b"PK\3\4", "It is a ZIP archive or an Excel workbook. Unpack it, or export it as CSV, and drop it again."),
    (b"\xd0\xcf\x11\xe0", "It is an Excel workbook. Export it as CSV and drop it again."),
    (b"Obj\1", "It is an Avro file, which landing does not read. Write it as Parquet, CSV or JSON lines."),
    (b"ORC", "It is an ORC file, which landing does not read. Write it as Parquet, CSV or JSON lines."),
    (b"\xff\xfe", f"It is UTF-16 text. {_SAVE}"),
    (b"\xfe\xff", f"It is UTF-16 text. {_SAVE}"),
)
_PARQUET = (b"PAR1", b"PARE")


def describe_other_format(path: Path) -> str | None:
    """Returns the actual format of a file and the fix, or None if the first bytes can match the suffix.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    parquet = path.suffix.lower() == ".parquet"
    if head.startswith(_PARQUET):
        return None if parquet else "It is a Parquet file. Give it the suffix .parquet and drop it again."
    for signature, sentence in _SIGNATURES:
        # Text can start with the letters of a short signature, but it has no NUL and is UTF-8.
        if head.startswith(signature) and not _is_text(head):
            return sentence
    if _is_utf16(head):
        return f"It is UTF-16 text. {_SAVE}"
    if parquet:
        if not head:
            return "It is empty."
        return (
            "It is text, not Parquet. Give it the suffix .csv or .jsonl and drop it again." if _is_text(head) else None
        )
    return None


def _is_text(head: bytes) -> bool:
    try:
        head[: _HEAD_BYTES - 3].decode("utf-8")
    except UnicodeDecodeError as error:
        # The head can end within a character.
        return error.start >= len(head) - 4 and b"\0" not in head
    return b"\0" not in head and b"\1" not in head


def _is_utf16(head: bytes) -> bool:
    """Returns whether every second byte at the start is NUL, as in UTF-16 without a byte order mark."""
    start = head[:64]
    return len(start) >= 4 and (not any(start[1::2]) or not any(start[::2])) and any(start)
