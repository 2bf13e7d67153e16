"""How a dropped CSV file is read: by its first line, and by nothing that is guessed from its rows.

DuckDB's own detection takes an id that starts with # for a comment, and leaves out rows that do not fit. Without the
detection it still accepts a row with too many values if the last ones are empty, so Arrow checks the number of values.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

_DELIMITERS = (",", ";", "\t", "|")
_LONGEST_HEADER = 1_000_000
_CHECKED_BYTES = 16_000_000
"""Bytes that the check of the rows reads at a time. DuckDB refuses shorter lines than this as too long."""

MISSING_VALUES = ("NULL", "null", "nan", "NaN", "NaT", "None", "<NA>", "\\N")
"""How pandas, PostgreSQL, MySQL and Spark write a missing value. In quotes these spellings are text."""


@dataclass(frozen=True)
class CsvFile:
    """A CSV file with a header. `scan` is its rows as DuckDB's SQL, all columns text, with the parameters `params`.

    A value that is empty or spelled as in `MISSING_VALUES` is null.
    """

    columns: tuple[str, ...]
    scan: str
    params: dict[str, str]


def csv_file(path: Path) -> CsvFile:
    """The file by its first line, whose delimiter is the most frequent of comma, semicolon, tab and bar.

    Raises:
        ValueError: the first line is no header, or a row has more or fewer values than the header.
        OSError: it cannot be read.
    """
    columns, delimiter = _header(path)
    _check_widths(path, columns, delimiter)
    kinds = ", ".join(f"{_literal(name)}: 'varchar'" for name in columns)
    missing = ", ".join(map(_literal, ("", *MISSING_VALUES)))
    read = (
        f"read_csv($path, columns = {{{kinds}}}, delim = {_literal(delimiter)}, header = true, quote = '\"', "
        f"escape = '\"', comment = '', nullstr = [{missing}], allow_quoted_nulls = false, auto_detect = false, "
        "hive_partitioning = false)"
    )
    # A writer that quotes all values writes a missing one as "".
    scan = f"(select nullif(columns(*), '') from {read})"
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


def _check_widths(path: Path, columns: tuple[str, ...], delimiter: str) -> None:
    """Raises `ValueError` for a row that has not one value for each column of the header."""
    found: list[int] = []

    def stop(row: pyarrow.csv.InvalidRow) -> str:
        found.append(row.actual_columns)
        return "error"

    names = [f"f{number}" for number in range(len(columns))]
    try:
        with pyarrow.csv.open_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False, column_names=names, skip_rows_after_names=1, block_size=_CHECKED_BYTES
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=stop
            ),
            convert_options=pyarrow.csv.ConvertOptions(include_columns=names[:1], column_types={"f0": pa.binary()}),
        ) as rows:
            for _ in rows:
                pass
    except pa.ArrowInvalid:
        if found:
            _tell_width(path, len(columns), delimiter, found[0])
        # Whatever else Arrow does not like is DuckDB's to judge: it reads the values.


def _tell_width(path: Path, expected: int, delimiter: str, found: int) -> None:
    """Raises `ValueError` with the line of the first row of another width."""
    begun = 1
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if row and len(row) != expected:
                    raise ValueError(_width_text(f"line {begun:,}", len(row), expected))
                begun = reader.line_num + 1
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise ValueError(f"a quoted value in line {begun:,} does not end") from None
            raise ValueError(f"line {begun:,} cannot be split into values: {error}") from None
    raise ValueError(_width_text("a row", found, expected))


def _width_text(place: str, found: int, expected: int) -> str:
    values = "1 value" if found == 1 else f"{found:,} values"
    return f"{place} has {values}, but the header has {expected:,}; quote a value that holds the delimiter"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
