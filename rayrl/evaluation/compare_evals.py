"""Evaluations side by side: the numbers that two or more of them share, on one page.

An exam whose questions differ between evaluations (their split hashes say so) is named, since its numbers then can't be
compared. Intervals are each evaluation's own; a difference between two has none here, as its questions may be others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rayrl.errors import UserError
from rayrl.evaluation.numbers import ALL, NUMBERS, Number, read_numbers
from rayrl.evaluation.stage_report import Page, Table, render_page

_Key = tuple[str, str]
"""Model and measure."""


@dataclass(frozen=True)
class Evaluation:
    """What `rayrl eval` left in a folder."""

    name: str
    numbers: Sequence[Number]
    split_hashes: dict[str, str]
    """Of each exam."""


def is_evaluation(folder: Path) -> bool:
    """Whether the folder is one of `rayrl eval`."""
    return (folder / NUMBERS).is_file()


def read_evaluation(text: str) -> Evaluation:
    """From `NAME=FOLDER`. Raises UserError where that isn't a finished evaluation's."""
    name, equals, path = text.partition("=")
    folder = Path(path).expanduser()
    if not equals or not name or not is_evaluation(folder):
        raise UserError(f"{text!r}: name each evaluation and its folder, as NAME=FOLDER; all must be of `rayrl eval`")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    hashes = {exam: one["split_hash"] for exam, one in summary["sets"].items()}
    return Evaluation(name, read_numbers(folder / NUMBERS), hashes)


def write_evaluations(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Writes the page to `path`."""
    html = render_page(path.stem, evaluations_page(evaluations), {})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8", errors="replace")


def evaluations_page(evaluations: Sequence[Evaluation]) -> Page:
    """The page of several evaluations. Raises UserError where they share no number."""
    differing = _differing_exams(evaluations)
    tables = _tables(evaluations)
    if not tables:
        raise UserError("the evaluations share no set, model and measure: there is nothing to compare")
    detail = "Numbers of the same set, model and measure, with each evaluation's own 95% interval."
    if differing:
        detail += f" Not the same questions: {', '.join(differing)}."
    return Page(
        kind="comparison",
        headline=" and ".join(one.name for one in evaluations),
        detail=detail,
        tone="bad" if differing else "open",
        tables=tables,
    )


def _differing_exams(evaluations: Sequence[Evaluation]) -> list[str]:
    exams = sorted({exam for one in evaluations for exam in one.split_hashes})
    return [exam for exam in exams if len({one.split_hashes.get(exam) for one in evaluations} - {None}) > 1]


def _tables(evaluations: Sequence[Evaluation]) -> list[Table]:
    groups: dict[tuple[str, str], dict[_Key, dict[str, Number]]] = {}
    for one in evaluations:
        for number in one.numbers:
            if number.split == ALL:
                rows = groups.setdefault((number.section, number.set), {})
                rows.setdefault((number.model, number.measure), {})[one.name] = number
    tables = []
    for (section, set_name), rows in groups.items():
        shared = {key: cells for key, cells in rows.items() if len(cells) > 1}
        if shared:
            header = ("model, measure", *(one.name for one in evaluations), "last - first")
            body = [_row(key, cells, evaluations) for key, cells in shared.items()]
            tables.append(Table(f"{section.capitalize()}: {set_name}", "", header, body))
    return tables


def _row(key: _Key, cells: dict[str, Number], evaluations: Sequence[Evaluation]) -> list[str]:
    texts = [cells[one.name].text if one.name in cells else "" for one in evaluations]
    first, last = cells.get(evaluations[0].name), cells.get(evaluations[-1].name)
    if first is None or last is None or first.unit == "probability":
        return [", ".join(key), *texts, ""]
    unit = "points" if first.unit == "share" else first.unit
    change = Number("", "", "", "", "", last.mean - first.mean, None, None, 0, unit)
    return [", ".join(key), *texts, change.shown]
