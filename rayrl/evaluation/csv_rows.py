"""CSV files that people fill in, as spreadsheets save them: with a byte order mark or without, with any line ends."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CsvRows:
    """What a file holds. `rows`: the line on which each ends, and its cells by column, "" where there is none."""

    columns: Sequence[str]
    rows: Sequence[tuple[int, dict[str, str]]]


def read_csv(path: str) -> CsvRows:
    """A file's rows, their cells without white space around them.

    Raises OSError, UnicodeDecodeError, or csv.Error where a quote is never closed: the rows after it would be lost.
    """
    text = Path(path).expanduser().read_bytes().decode("utf-8-sig")
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", restval="", strict=True)
    rows = []
    try:
        columns = list(reader.fieldnames or [])
        for row in reader:
            rows.append((reader.line_num, {name: (row[name] or "").strip() for name in columns}))
    except csv.Error as error:
        raise csv.Error(f"the row after line {reader.line_num}: {error}") from None
    return CsvRows(columns, rows)
