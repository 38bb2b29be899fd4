"""An evaluation's tables from its numbers: one shape for HTML, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rayrl.evaluation.exams.numbers import MEANS
from rayrl.evaluation.numbers import ALL, Number, columns_of, pivot
from rayrl.evaluation.stage_report import Table

_TITLES = {
    "metrics": "Answers",
    "differences": "Differences",
    "scores": "Scores by a judge",
    "consultations": "Consultations",
    "ranking": "Ranking",
    "judge check": "The judge against people",
}
_CAPTIONS = {
    "metrics": "Means over questions with 95% intervals. BLEU, GLEU and ROUGE are against the reference answers; "
    "corpus-bleu is over all answers together. Lengths count what the metrics count; -characters are characters.",
    "differences": "Paired, question by question, with 95% intervals.",
    "scores": "Means of a judge's points with 95% intervals.",
    "consultations": "With a simulated patient. Counts over texts: a diagnosis named among others counts as named.",
    "ranking": "Bradley-Terry strengths with 95% intervals by resampling questions; the mean of all is 0.",
    "judge check": "Scores of the same answers by the judge and by people.",
}
_WINS = "Share of questions that the first model wins, ties and loses. A tie counts half in the win rate."


def tables_of(numbers: Sequence[Number]) -> list[Table]:
    """All tables, the verdicts first."""
    tables: list[Table] = []
    for section in dict.fromkeys(number.section for number in numbers):
        own = [number for number in numbers if number.section == section]
        if section in ("pairwise", "experts"):
            tables += _wins(section, own)
        elif section == "exams":
            tables += _exams(own)
        elif section == "safety":
            tables += _safety(own)
        else:
            for set_name in dict.fromkeys(number.set for number in own):
                tables += _measures(section, set_name, [number for number in own if number.set == set_name])
    return tables


def _measures(section: str, set_name: str, numbers: Sequence[Number]) -> Iterator[Table]:
    """Measures down, models across; what belongs to a part of the set has a table of its own."""
    title = _TITLES[section] + ("" if section == "judge check" else f": {set_name}")
    whole = [number for number in numbers if number.split == ALL]
    yield _table(title, _CAPTIONS[section], "measure", whole, "measure", "model")
    for measure in dict.fromkeys(number.measure for number in numbers if number.split != ALL):
        parts = [number for number in numbers if number.split != ALL and number.measure == measure]
        yield _table(f"{title}, {measure} by category", _CAPTIONS[section], "category", parts, "split", "model")


def _wins(section: str, numbers: Sequence[Number]) -> Iterator[Table]:
    who = "Experts" if section == "experts" else "Wins"
    for set_name in dict.fromkeys(number.set for number in numbers):
        own = [number for number in numbers if number.set == set_name]
        whole = [number for number in own if number.split == ALL]
        yield _table(f"{who}: {set_name}", _WINS, "", whole, "model", "measure")
        for kind in ("criterion", "category"):
            parts = [number for number in own if number.split.startswith(f"{kind}: ")]
            pairs = dict.fromkeys(number.model for number in parts)
            for pair in pairs:
                of_pair = [number for number in parts if number.model == pair]
                title = f"{who} by {kind}: {set_name}" + (f", {pair}" if len(pairs) > 1 else "")
                rule = " On a criterion, whoever scores higher in both orders wins." if kind == "criterion" else ""
                yield _table(title, f"{pair}. {_WINS}{rule}", kind, of_pair, "split", "measure")


def _exams(numbers: Sequence[Number]) -> Iterator[Table]:
    whole = [number for number in numbers if number.split == ALL and number.measure == "accuracy"]
    means = [number for number in numbers if number.set == MEANS]
    table = pivot(whole, "set", "model")
    table |= {f"{MEANS}, {name}": row for name, row in pivot(means, "measure", "model").items()}
    caption = "Share of questions answered right, with 95% intervals; an answer without a choice counts as wrong."
    yield _from_pivot("Exams", caption, "exam", table)
    rest = [
        number for number in numbers if number.split == ALL and number.set != MEANS and number.measure != "accuracy"
    ]
    if rest:
        rows: dict[str, dict[str, Number]] = {}
        for number in rest:
            rows.setdefault(f"{number.set}: {number.measure}", {})[number.model] = number
        yield _from_pivot("Exams: what wasn't matched", "Answers that name no choice, or weren't there.", "exam", rows)
    for set_name in dict.fromkeys(number.set for number in numbers):
        parts = [number for number in numbers if number.set == set_name and number.split != ALL]
        if parts:
            yield _table(f"Exams: {set_name} by part", caption, "part", parts, "split", "model")


def _safety(numbers: Sequence[Number]) -> Iterator[Table]:
    for set_name in dict.fromkeys(number.set for number in numbers):
        rows: dict[str, dict[str, Number]] = {}
        for number in numbers:
            if number.set == set_name:
                rows.setdefault(f"{number.split}, {number.measure}", {})[number.model] = number
        caption = (
            "Share of answers that have the form that is due, and how many a person must read (flagged.csv). Rules see "
            "form, not medicine; there is no overall number on purpose."
        )
        yield _from_pivot(f"Safety: {set_name}", caption, "due", rows)


def _table(title: str, caption: str, corner: str, numbers: Sequence[Number], row: str, column: str) -> Table:
    return _from_pivot(title, caption, corner, pivot(numbers, row, column))


def _from_pivot(title: str, caption: str, corner: str, table: dict[str, dict[str, Number]]) -> Table:
    columns = columns_of(table)
    rows = []
    for name, cells in table.items():
        counts = {number.n for number in cells.values()}
        n = f"{counts.pop():,}" if len(counts) == 1 else "–".join(f"{count:,}" for count in (min(counts), max(counts)))
        rows.append((_label(name), *(_cell(cells[key]) if key in cells else "" for key in columns), n))
    return Table(title, caption, (corner, *columns, "n"), rows)


def _cell(number: Number) -> str:
    """Parts of a whole stand without their intervals: the win rate's says it."""
    return number.shown if number.measure in ("wins", "ties", "losses") else number.text


def _label(name: str) -> str:
    for kind in ("criterion: ", "category: "):
        name = name.removeprefix(kind)
    return name
