"""An evaluation's page: the result in a sentence, the papers' figures, tables, texts side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rayrl.evaluation.compare_report import Run, loss_plots
from rayrl.evaluation.consultations.dialogue import transcript
from rayrl.evaluation.exams.numbers import MEANS
from rayrl.evaluation.numbers import ALL, Number
from rayrl.evaluation.pairwise import Match
from rayrl.evaluation.plots import Bars, Drawing, Panel, Plot, Radar, Series
from rayrl.evaluation.question_numbers import Answered
from rayrl.evaluation.records import Records, SafetyAnswer, Talk
from rayrl.evaluation.report import evenly
from rayrl.evaluation.stage_report import Page, SideBySide, Table, TextGroup

_ITEMS, _TALKS, _FLAGGED, _BARS = 12, 6, 20, 24
_PARTS = {"wins": 0, "ties": 7, "losses": 1}
"""Measures, and the colours of their bars."""


def eval_page(
    models: Sequence[str],
    numbers: Sequence[Number],
    tables: Sequence[Table],
    records: Records,
    runs: Sequence[Run],
    facts: Sequence[tuple[str, str]] = (),
) -> Page:
    """The page of an evaluation. `facts`: how it was made: judge, patient, decoding."""
    text, detail, tone = headline(models, numbers)
    figures = [*_win_bars(numbers), *_exam_plot(numbers), *_radars(numbers)]
    sections: list[tuple[str, Sequence[Drawing]]] = [("Figures", figures)] if figures else []
    if runs:
        sections.append(("Training", loss_plots(runs)))
    sets = dict.fromkeys(n.set for n in numbers if n.set != MEANS and n.section != "judge check")
    return Page(
        kind="evaluation",
        headline=text,
        detail=detail,
        tone=tone,
        facts=[("Models", ", ".join(models)), ("Sets", ", ".join(sets)), *facts],
        tables=tables,
        sections=sections,
        figures_first=True,
        texts=[group for group in (*_answers(records), *_talks(records), _flagged(records.safety)) if group.items],
    )


def headline(models: Sequence[str], numbers: Sequence[Number]) -> tuple[str, str, str]:
    """The result in a sentence, what supports it, and how to mark it: good, bad or open."""
    rates = [n for n in numbers if n.section in ("pairwise", "experts") and n.split == ALL and n.measure == "win rate"]
    if rates:
        first = rates[0]
        low = 0.0 if first.low is None else first.low
        high = 1.0 if first.high is None else first.high
        winner, _, other = first.model.partition(" against ")
        detail = f"Win rate {first.text} over {first.n} questions of {first.set}; a tie counts half."
        if low > 0.5:
            return f"{winner} wins against {other}", detail, "good"
        if high < 0.5:
            return f"{winner} loses against {other}", detail, "bad"
        return f"{winner} and {other} can't be told apart", detail, "open"
    exams = [
        n for n in numbers if n.section == "exams" and n.split == ALL and n.measure in ("accuracy", "by questions")
    ]
    if exams:
        best = max((n for n in exams if n.set == exams[-1].set), key=lambda n: n.mean)
        return f"{best.model} answers {best.shown} right", f"{best.text} of {best.n} questions, {best.set}.", "open"
    return f"{', '.join(models)} evaluated", f"{len(numbers)} numbers in the tables below.", "open"


def _win_bars(numbers: Sequence[Number]) -> list[Drawing]:
    bars: list[Drawing] = []
    for section, who in (("pairwise", "Wins"), ("experts", "Experts' choices")):
        own = [n for n in numbers if n.section == section and n.measure in _PARTS]
        for set_name in dict.fromkeys(n.set for n in own):
            of_set = [n for n in own if n.set == set_name]
            bars.append(
                _bars(f"{who}: {set_name}", "Of the first model.", [n for n in of_set if n.split == ALL], "model")
            )
            for kind in ("criterion", "category"):
                parts = [n for n in of_set if n.split.startswith(f"{kind}: ")]
                for pair in dict.fromkeys(n.model for n in parts):
                    of_pair = [n for n in parts if n.model == pair]
                    if 1 < len({n.split for n in of_pair}) <= _BARS:
                        bars.append(_bars(f"{who} by {kind}: {set_name}", f"{pair}.", of_pair, "split"))
    return bars


def _bars(title: str, note: str, numbers: Sequence[Number], name: str) -> Bars:
    names = list(dict.fromkeys(getattr(n, name) for n in numbers))
    shares = {(getattr(n, name), n.measure): n.mean for n in numbers}
    parts = [(part, colour, [shares.get((one, part), 0.0) for one in names]) for part, colour in _PARTS.items()]
    shown = [one.partition(": ")[2] if name == "split" else one for one in names]
    return Bars(title, note, shown, parts)


def _exam_plot(numbers: Sequence[Number]) -> list[Drawing]:
    own = [n for n in numbers if n.section == "exams" and n.split == ALL and n.measure == "accuracy"]
    sets = list(dict.fromkeys(n.set for n in own))
    if not own:
        return []
    models = list(dict.fromkeys(n.model for n in own))
    series = []
    for i, model in enumerate(models):
        of_model = [n for n in own if n.model == model]
        x = [sets.index(n.set) + min(0.12, 0.8 / len(models)) * (i - (len(models) - 1) / 2) for n in of_model]
        low = [n.mean if n.low is None else n.low for n in of_model]
        high = [n.mean if n.high is None else n.high for n in of_model]
        series.append(Series(model, x, [n.mean for n in of_model], low, high, points=True))
    note = "Share of questions answered right, with 95% intervals."
    return [Plot("Exams", note, [Panel("right", series, percent=True)], wide=True, x_label="exam", x_names=sets)]


def _radars(numbers: Sequence[Number]) -> list[Drawing]:
    """Dimensions: a judge's points by criterion, and win rates by criterion."""
    radars: list[Drawing] = []
    scores = [n for n in numbers if n.section == "scores" and n.split == ALL and n.measure not in ("scored", "mean")]
    for set_name in dict.fromkeys(n.set for n in scores):
        own = [n for n in scores if n.set == set_name]
        values = [n.mean for n in own]
        radars.append(_radar(f"Scores: {set_name}", "Mean points.", own, "measure", min(0.0, *values), max(values)))
    wins = [
        n for n in numbers if n.section == "pairwise" and n.measure == "win rate" and n.split.startswith("criterion")
    ]
    for set_name in dict.fromkeys(n.set for n in wins):
        own = [n for n in wins if n.set == set_name]
        radars.append(_radar(f"Win rate by criterion: {set_name}", "0.5 is as good.", own, "split", 0.0, 1.0))
    return [radar for radar in radars if not radar.empty]


def _radar(title: str, note: str, numbers: Sequence[Number], axis: str, low: float, high: float) -> Radar:
    axes = list(dict.fromkeys(getattr(n, axis) for n in numbers))
    found = {(n.model, getattr(n, axis)): n.mean for n in numbers}
    models = [m for m in dict.fromkeys(n.model for n in numbers) if all((m, one) in found for one in axes)]
    names = [one.removeprefix("criterion: ") for one in axes]
    return Radar(title, note, names, [(m, [found[m, one] for one in axes]) for m in models], low, high)


def _answers(records: Records) -> list[TextGroup]:
    groups = []
    for set_name in dict.fromkeys(one.set for one in records.answers):
        by_item: dict[str, list[Answered]] = {}
        for one in records.answers:
            if one.set == set_name:
                by_item.setdefault(one.row.id, []).append(one)
        shown = [_item(by_item[item], records.matches) for item in evenly(sorted(by_item), _ITEMS)]
        about = f"{len(shown)} of {len(by_item)} questions, at even distances by id, none chosen by its result."
        groups.append(TextGroup(f"Answers: {set_name}", about, shown))
    return groups


def _item(answers: Sequence[Answered], matches: Sequence[Match]) -> SideBySide:
    first = answers[0]
    texts = [(one.model, one.answer.text or "", "") for one in answers]
    if first.row.reference:
        texts.append(("Reference", first.row.reference, "reference"))
    turns = [(message["role"], message["content"]) for message in first.row.messages]
    chips = _chips(first.set, first.row.id, matches)
    return SideBySide(first.row.id, turns, texts, first.category, chips)


def _chips(set_name: str, item: str, matches: Sequence[Match]) -> list[tuple[str, str]]:
    own = [match for match in matches if (match.set, match.item) == (set_name, item)]
    said: Mapping[str | None, str] = {"tie": "tie", None: "no verdict"}
    return [
        (
            f"{one.model_a} or {one.model_b}",
            {"a": one.model_a, "b": one.model_b}.get(one.outcome or "", said.get(one.outcome, "")),
        )
        for one in own
    ]


def _talks(records: Records) -> list[TextGroup]:
    groups = []
    for set_name in dict.fromkeys(talk.set for talk in records.talks):
        by_case: dict[str, list[Talk]] = {}
        for talk in records.talks:
            if talk.set == set_name:
                by_case.setdefault(talk.case.id, []).append(talk)
        shown = []
        for case_id in evenly(sorted(by_case), _TALKS):
            talks = by_case[case_id]
            case = talks[0].case
            texts = [(talk.model, transcript(talk.dialogue.messages, case.language), "") for talk in talks]
            if case.diagnosis:
                texts.append(("The case's diagnosis", case.diagnosis, "reference"))
            chips = _chips(set_name, case_id, records.matches)
            shown.append(SideBySide(case_id, [("user", case.case)], texts, case.department, chips))
        about = f"{len(shown)} of {len(by_case)} cases; above, what the patient alone was told."
        groups.append(TextGroup(f"Consultations: {set_name}", about, shown))
    return groups


def _flagged(answers: Sequence[SafetyAnswer]) -> TextGroup:
    flagged = [one for one in answers if one.finding is not None and one.finding.flags]
    shown = []
    for one in evenly(flagged, _FLAGGED):
        finding = one.finding
        assert finding is not None
        turns = [(message["role"], message["content"]) for message in finding.row.prompt.messages]
        chips = [("due", finding.row.expect), ("why", "; ".join(finding.flags))]
        shown.append(SideBySide(finding.row.prompt.id, turns, [(one.model, finding.answer, "")], one.model, chips))
    about = (
        f"{len(shown)} of {len(flagged)} answers to safety requests that a person must read; flagged.csv has them all."
    )
    return TextGroup("To be read by a person", about, shown)
