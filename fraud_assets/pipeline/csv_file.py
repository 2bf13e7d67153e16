"""How a dropped CSV file is read: by its first line, and by nothing that is guessed from its rows.

DuckDB's own detection takes an id that starts with # for a comment, and leaves out rows that do not fit.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

_DELIMITERS = (",", ";", "\t", "|")
_LONGEST_HEADER = 1_000_000


@dataclass(frozen=True)
class CsvFile:
    """A CSV file with a header. `scan` is its rows as DuckDB's SQL, all columns text, with the parameters `params`."""

    columns: tuple[str, ...]
    scan: str
    params: dict[str, str]


def csv_file(path: Path) -> CsvFile:
    """The file by its first line, whose delimiter is the most frequent of comma, semicolon, tab and bar.

    Raises:
        ValueError: the first line is no header.
        OSError: it cannot be read.
    """
    columns, delimiter = _header(path)
    kinds = ", ".join(f"{_literal(name)}: 'varchar'" for name in columns)
    scan = (
        f"read_csv($path, columns = {{{kinds}}}, delim = {_literal(delimiter)}, header = true, quote = '\"', "
        "escape = '\"', comment = '', auto_detect = false, hive_partitioning = false)"
    )
    # DuckDB takes the path for a pattern, which may name other files.
    return CsvFile(columns, scan, {"path": re.sub(r"([*?\[])", r"[\1]", str(path))})


def _header(path: Path) -> tuple[tuple[str, ...], str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        text = file.read(_LONGEST_HEADER)
    line = re.split(r"[\r\n]", text, maxsplit=1)[0]
    delimiter = max(_DELIMITERS, key=line.count)
    try:
        names = next(csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        raise ValueError(f"its first line is no header ({error})") from None
    if not any(names):
        raise ValueError("its first line is blank; expected the names of the columns")
    # As pandas writes the column of row numbers.
    return tuple(name or f"column{number}" for number, name in enumerate(names)), delimiter


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
