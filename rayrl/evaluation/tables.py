"""A report's tables as files: CSV for programs, LaTeX (booktabs) for papers.

File names are the titles', in plain letters, so that two evaluations' tables of one kind have one name.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from rayrl.evaluation.stage_report import Table

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "−": "$-$", "–": "--", "±": r"$\pm$", "[": "{[}", "*": "{*}",
}  # fmt: skip
"""A bracket or star would belong to the command before it, which ends the row above."""
_NUMBER = r"[-+−]?[\d.,]+\s?(%|pp)?"
_PLAIN = re.compile(rf"{_NUMBER}( \({_NUMBER} to {_NUMBER}\))?")
_LONGEST = 200
"""Bytes of a file's name."""


def write_tables(folder: Path, tables: Sequence[Table]) -> None:
    """Writes NAME.csv and NAME.tex of every table into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for table in tables:
        name = file_name(table.title)
        while name in taken:
            name += "-2"
        taken.add(name)
        (folder / f"{name}.csv").write_text(to_csv(table), encoding="utf-8", errors="replace")
        (folder / f"{name}.tex").write_text(to_latex(table), encoding="utf-8", errors="replace")


def file_name(title: str) -> str:
    """Example: "Exams: by year (CMB)" -> "exams-by-year-cmb" """
    plain = unicodedata.normalize("NFKC", title).casefold()
    name = re.sub(r"[^\w]+", "-", plain).encode()[:_LONGEST].decode(errors="ignore")
    return name.strip("-") or "table"


def to_csv(table: Table) -> str:
    """Header and rows; a cell that a spreadsheet would run as a formula gets an apostrophe in front."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([[_plain(cell) for cell in row] for row in (table.header, *table.rows)])
    return out.getvalue()


def to_latex(table: Table) -> str:
    """A table environment that needs the package booktabs; CJK texts need a compiler that sets them (xelatex)."""
    columns = "l" + "r" * (len(table.header) - 1 - table.ends_in_words) + "l" * table.ends_in_words
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(table.title)}. {_latex(table.caption)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_row(table.header),
        r"\midrule",
        *(_latex_row(row) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def _latex(text: str) -> str:
    line = " ".join(text.split())
    plain = "".join(letter for letter in line if unicodedata.category(letter) not in ("Cc", "Cs"))
    return "".join(_LATEX.get(letter, letter) for letter in plain)


def _plain(cell: str) -> str:
    cell = cell.replace("\r\n", "\n").replace("\r", "\n")  # Python's writer doesn't quote a lone one
    first = unicodedata.normalize("NFKC", cell[:1])  # some spreadsheets take full-width signs too
    return f"'{cell}" if first in ("=", "+", "-", "@", "\t", "\n") and not _PLAIN.fullmatch(cell) else cell
