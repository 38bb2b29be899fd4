"""Numbers of exams: accuracy by exam, year and type, and means over exams.

Accuracy counts a question as wrong where the answer names no choice, and says beside it how many those are
("unmatched", and "unanswered" where there was no answer at all): neither is ever taken for a letter. HuatuoGPT-II's
averages are unweighted over exams; both means are given, unweighted and weighted by questions. Questions of one case or
matched group aren't independent: where there are such groups, intervals resample groups; else they are Wilson's. Where
all groups are alike, resampling would give no width: then it is Wilson's for as many questions as there are groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rayrl.evaluation.bootstrap import bootstrap, ratio
from rayrl.evaluation.numbers import ALL, Number
from rayrl.evaluation.statistics import Estimate, paired_share_difference, proportion_interval, wilson
from rayrl.types import ExamItem

MEANS = "mean over exams"


@dataclass(frozen=True)
class ExamAnswer:
    """A model's choice on one question."""

    set: str
    item: ExamItem
    model: str
    chosen: str | None
    """Letters, ascending; None where there is no choice."""
    answered: bool = True
    """False where the model gave no answer, or the question doesn't fit it."""
    text: str | None = None
    """What the choice was read from."""

    @property
    def right(self) -> bool:
        """Whether exactly the right letters were chosen."""
        return self.chosen == self.item.answer


def exam_numbers(answers: Sequence[ExamAnswer], seed: int, resamples: int) -> Iterator[Number]:
    """Accuracy and what wasn't matched, of every model on every set, by exam, year and type; then the means."""
    models = dict.fromkeys(one.model for one in answers)
    sets = dict.fromkeys(one.set for one in answers)
    for set_name in sets:
        for model in models:
            own = [one for one in answers if (one.set, one.model) == (set_name, model)]
            if own:
                yield from _of_set(set_name, model, own, seed, resamples)
        yield from _differences(set_name, list(models), answers)
    if len(sets) > 1:
        for model in models:
            by_set = [[one for one in answers if (one.set, one.model) == (name, model)] for name in sets]
            if all(by_set):
                yield Number.of("exams", MEANS, ALL, model, "unweighted", _unweighted(by_set, seed, resamples), "share")
                whole = [one for of_set in by_set for one in of_set]
                yield Number.of("exams", MEANS, ALL, model, "by questions", accuracy(whole, seed, resamples), "share")


def accuracy(answers: Sequence[ExamAnswer], seed: int, resamples: int) -> Estimate:
    """Share of questions answered right."""
    groups: dict[str, list[int]] = {}
    for one in answers:
        own = f"group {one.item.group}" if one.item.group else f"item {one.item.id}"
        counts = groups.setdefault(f"{one.set}/{one.item.exam}/{own}", [0, 0])
        counts[0] += one.right
        counts[1] += 1
    if len(groups) == len(answers):
        return proportion_interval(sum(one.right for one in answers), len(answers))
    values = np.array(list(groups.values()), dtype=np.float64)
    (found,) = bootstrap(values, lambda sums: ratio(sums[:, :1], sums[:, 1:]), seed=seed, resamples=resamples)
    low, high = found.low, found.high
    if low == high and len(groups) > 1:
        low, high = wilson(found.mean, len(groups))
    return Estimate(found.mean, low, high, len(answers))


def _of_set(set_name: str, model: str, own: Sequence[ExamAnswer], seed: int, resamples: int) -> Iterator[Number]:
    n = len(own)
    yield Number.of("exams", set_name, ALL, model, "accuracy", accuracy(own, seed, resamples), "share")
    unmatched = sum(one.answered and one.chosen is None for one in own)
    yield Number.of("exams", set_name, ALL, model, "unmatched", proportion_interval(unmatched, n), "share")
    unanswered = sum(not one.answered for one in own)
    if unanswered:
        yield Number.of("exams", set_name, ALL, model, "unanswered", proportion_interval(unanswered, n), "share")
    matched = [one for one in own if one.chosen is not None]
    if matched and len(matched) < n:
        estimate = accuracy(matched, seed, resamples)
        yield Number.of("exams", set_name, ALL, model, "accuracy of matched", estimate, "share")
    keys: list[tuple[str, Callable[[ExamItem], str]]] = [
        ("exam", lambda item: item.exam),
        ("year", lambda item: item.year),
        ("type", lambda item: item.type),
    ]
    for label, key in keys:
        parts = sorted({key(one.item) for one in own} - {""})
        for part in parts if len(parts) > 1 else []:
            of_part = [one for one in own if key(one.item) == part]
            estimate = accuracy(of_part, seed, resamples)
            yield Number.of("exams", set_name, f"{label}: {part}", model, "accuracy", estimate, "share")


def _differences(set_name: str, models: Sequence[str], answers: Sequence[ExamAnswer]) -> Iterator[Number]:
    """Each model's accuracy less the first one's, question by question."""
    right: dict[str, dict[str, bool]] = {model: {} for model in models}
    for one in answers:
        if one.set == set_name:
            right[one.model][one.item.id] = one.right
    first = next((model for model in models if right[model]), None)
    for model in models:
        if first is not None and model != first and right[model].keys() & right[first].keys():
            estimate = paired_share_difference(right[first], right[model])
            yield Number.of("differences", set_name, ALL, f"{model} against {first}", "accuracy", estimate, "points")


def _unweighted(sets: Sequence[Sequence[ExamAnswer]], seed: int, resamples: int) -> Estimate:
    """The mean of the exams' accuracies.

    Its interval comes from theirs: the distances to their ends add up in squares (Zou and Donner 2008, Statistics in
    Medicine 27), which keeps a width where every answer is right. None where an exam has none.
    """
    found = [accuracy(own, seed, resamples) for own in sets]
    mean = sum(one.mean for one in found) / len(found)
    below = [one.mean - one.low for one in found if one.low is not None]
    above = [one.high - one.mean for one in found if one.high is not None]
    if len(below) < len(found) or len(above) < len(found):
        return Estimate(mean, None, None, len(found))
    return Estimate(mean, mean - math.hypot(*below) / len(found), mean + math.hypot(*above) / len(found), len(found))
