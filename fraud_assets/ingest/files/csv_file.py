"""Reads a dropped CSV file. The first line alone determines the format; the rows are not used to guess it.

DuckDB's own detection treats an id that starts with # as a comment and skips rows that do not fit. Without detection
DuckDB still accepts a row with too many values if the last ones are empty, so Arrow checks the number of values.
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
"""Number of bytes that the row check reads at a time. DuckDB rejects even shorter lines as too long."""

MISSING_VALUES = ("NULL", "null", "nan", "NaN", "NaT", "None", "<NA>", "\\N")
"""Spellings of a missing value in pandas, PostgreSQL, MySQL and Spark. In quotes they are text."""


@dataclass(frozen=True)
class CsvFile:
    """A CSV file with a header.

    Attributes:
        columns: column names, from the header.
        scan: a DuckDB SQL expression for the rows. All columns are text; a value that is empty or spelled as in
            `MISSING_VALUES` is null.
        params: parameters of `scan`.
    """

    columns: tuple[str, ...]
    scan: str
    params: dict[str, str]


def read_csv_description(path: Path) -> CsvFile:
    """Returns the description of a file, from its first line.

    The delimiter is the most frequent of comma, semicolon, tab and bar.

    Raises:
        ValueError: the first line is not a header, or a row has more or fewer values than the header.
        OSError: the file cannot be read.
    """
    columns, delimiter = _read_header(path)
    _check_widths(path, columns, delimiter)
    kinds = ", ".join(f"{_quote_literal(name)}: 'varchar'" for name in columns)
    missing = ", ".join(map(_quote_literal, ("", *MISSING_VALUES)))
    read = (
        f"read_csv($path, columns = {{{kinds}}}, delim = {_quote_literal(delimiter)}, header = true, quote = '\"', "
        f"escape = '\"', comment = '', nullstr = [{missing}], allow_quoted_nulls = false, auto_detect = false, "
        "hive_partitioning = false)"
    )
    # A program that quotes all values writes a missing one as "".
    scan = f"(select nullif(columns(*), '') from {read})"
    # DuckDB treats the path as a pattern, which could match other files.
    return CsvFile(columns, scan, {"path": re.sub(r"([*?\[])", r"[\1]", str(path))})


def _read_header(path: Path) -> tuple[tuple[str, ...], str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        text = file.read(_LONGEST_HEADER)
    line = re.split(r"[\r\n]", text, maxsplit=1)[0]
    delimiter = max(_DELIMITERS, key=line.count)
    try:
        names = next(csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        raise ValueError(f"its first line is not a header ({error})") from None
    if not any(names):
        raise ValueError("its first line is blank; it must hold the names of the columns")
    # Pandas writes the column of row numbers without a name.
    return tuple(name or f"column{number}" for number, name in enumerate(names)), delimiter


def _check_widths(path: Path, columns: tuple[str, ...], delimiter: str) -> None:
    """Raises `ValueError` if a row has more or fewer values than the header."""
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
            _raise_wrong_width(path, len(columns), delimiter, found[0])
        # DuckDB reads the values and reports any other error.


def _raise_wrong_width(path: Path, expected: int, delimiter: str, found: int) -> None:
    """Raises `ValueError` with the line number of the first row that has another number of values."""
    first_line = 1
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if row and len(row) != expected:
                    raise ValueError(_describe_width(f"line {first_line:,}", len(row), expected))
                first_line = reader.line_num + 1
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise ValueError(f"a quoted value in line {first_line:,} is not closed") from None
            raise ValueError(f"line {first_line:,} cannot be split into values: {error}") from None
    raise ValueError(_describe_width("a row", found, expected))


def _describe_width(place: str, found: int, expected: int) -> str:
    values = "1 value" if found == 1 else f"{found:,} values"
    return f"{place} has {values}, but the header has {expected:,}; quote values that contain the delimiter"


def _quote_literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
