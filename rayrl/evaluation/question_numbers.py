"""Numbers of the answers to a set of questions: metrics, who wins, scores; overall, by category, against the baseline.

Records in, Number out; nothing here asks a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from rayrl.evaluation.answers import Answer
from rayrl.evaluation.bootstrap import bootstrap_means
from rayrl.evaluation.numbers import ALL, Number, Unit
from rayrl.evaluation.pairwise import Match, rank, tally
from rayrl.evaluation.scored import Agreement, Scored
from rayrl.evaluation.statistics import Estimate, paired_difference, paired_share_difference, proportion_interval
from rayrl.evaluation.text_metrics import MetricRow, measure
from rayrl.rewards.questions import asks_question
from rayrl.types import PromptRow

SHARES = ("asks", "ended", "answered")
ASKS_NEEDED, ASKS_NOT_NEEDED = "asks, something missing", "asks, nothing missing"
BY_CATEGORY = ("rouge-l", "asks", "length")
"""Metrics that have a table by category."""
_PER_CATEGORY = 3
"""Questions of a category, on average, from which on its numbers are shown."""


@dataclass(frozen=True)
class Answered:
    """One model's answer to one question of a set."""

    set: str
    row: PromptRow
    category: str
    model: str
    answer: Answer


def metric_numbers(
    set_name: str,
    records: Sequence[Answered],
    models: Sequence[str],
    level: Literal["characters", "words"],
    language: Literal["en", "zh"],
    seed: int,
    resamples: int,
) -> Iterator[Number]:
    """Metrics of every model, and its differences from the first one where they are paired."""
    by_model = {name: [record for record in records if record.model == name] for name in models}
    for name, own in by_model.items():
        answered = [record for record in own if record.answer.text is not None]
        yield Number.of("metrics", set_name, ALL, name, "answered", _share(len(answered), len(own)), "share")
        if not answered:
            continue
        ended = [record.answer.ended for record in answered if record.answer.ended is not None]
        if ended:
            yield Number.of("metrics", set_name, ALL, name, "ended", _share(sum(ended), len(ended)), "share")
        for measure_name, estimate in measure(_rows(answered), level, language, seed, resamples).items():
            yield Number.of("metrics", set_name, ALL, name, measure_name, estimate, _unit(measure_name))
        yield from _asking(set_name, name, answered)
        yield from _by_category(set_name, name, answered, level, language, seed, resamples)
    first = models[0]
    for name in models[1:]:
        yield from _differences(set_name, by_model[first], by_model[name], first, name)


def match_numbers(
    section: str, matches: Sequence[Match], models: Sequence[str], seed: int, resamples: int
) -> Iterator[Number]:
    """Wins, ties, losses and the win rate of every pair of models: by set, category and criterion; and the ranking.

    A pair is told as the later model against the earlier one, in the order of `models`.
    """
    place = {name: i for i, name in enumerate(models)}
    told = [match if place[match.model_a] > place[match.model_b] else match.swapped() for match in matches]
    for set_name in dict.fromkeys(match.set for match in told):
        of_set = [match for match in told if match.set == set_name]
        pairs = dict.fromkeys((match.model_a, match.model_b) for match in of_set)
        for a, b in pairs:
            own = [match for match in of_set if (match.model_a, match.model_b) == (a, b)]
            yield from _tallied(section, set_name, ALL, f"{a} against {b}", [match.outcome for match in own])
            for criterion in dict.fromkeys(name for match in own for name in match.by_criterion):
                outcomes = [match.by_criterion.get(criterion) for match in own]
                yield from _tallied(section, set_name, f"criterion: {criterion}", f"{a} against {b}", outcomes)
            for category in categories_of(match.category for match in own):
                outcomes = [match.outcome for match in own if match.category == category]
                yield from _tallied(section, set_name, f"category: {category}", f"{a} against {b}", outcomes)
        names = {name for pair in pairs for name in pair}
        if len(pairs) == len(list(combinations(names, 2))) > 1 and any(match.outcome for match in of_set):
            for one in rank(of_set, resamples, seed):
                yield Number.of("ranking", set_name, ALL, one.model, "strength (log-odds)", one.log_odds)
                n = one.log_odds.n
                yield Number(
                    "ranking", set_name, ALL, one.model, "wins against an average model", one.win_rate, None, None, n,
                    "share",
                )  # fmt: skip


def scored_numbers(scored: Sequence[Scored], seed: int, resamples: int) -> Iterator[Number]:
    """Means by criterion of every model, overall and by category."""
    for set_name in dict.fromkeys(one.set for one in scored):
        of_set = [one for one in scored if one.set == set_name]
        items = {one.item: one.category for one in of_set}
        categories = categories_of(items.values())
        for model in dict.fromkeys(one.model for one in of_set):
            own = [one for one in of_set if one.model == model]
            told = [one for one in own if one.criteria]
            yield Number.of("scores", set_name, ALL, model, "scored", _share(len(told), len(own)), "share")
            for name in dict.fromkeys(name for one in told for name in one.criteria):
                values = [one.criteria[name] for one in told if name in one.criteria]
                yield Number.of("scores", set_name, ALL, model, name, _mean(values, seed, resamples))
            means = [(one.category, one.mean) for one in told if one.mean is not None]
            if means:
                yield Number.of("scores", set_name, ALL, model, "mean", _mean([m for _, m in means], seed, resamples))
            for category in categories:
                values = [mean for of, mean in means if of == category]
                if values:
                    estimate = _mean(values, seed, resamples)
                    yield Number.of("scores", set_name, f"category: {category}", model, "mean", estimate)


def agreement_numbers(agreements: Sequence[Agreement]) -> Iterator[Number]:
    """Judge against people, by criterion."""
    for one in agreements:
        values: list[tuple[str, float | None, Unit]] = [
            ("Pearson", one.pearson, "score"),
            ("Spearman", one.spearman, "score"),
            ("at most a point apart", one.within_one, "share"),
        ]
        for name, value, unit in values:
            if value is not None:
                yield Number("judge check", "scores", ALL, one.criterion, name, value, None, None, one.n, unit)
        yield Number.of("judge check", "scores", ALL, one.criterion, "judge minus people", one.difference)


def categories_of(values: Iterable[str]) -> list[str]:
    """Categories to tell apart: none where there is but one, or where most hold a single question."""
    counts = Counter(value for value in values if value)
    return sorted(counts) if len(counts) > 1 and counts.total() >= _PER_CATEGORY * len(counts) else []


def _rows(records: Sequence[Answered]) -> list[MetricRow]:
    return [MetricRow(one.row.id, one.answer.text or "", one.row.reference) for one in records]


def _unit(measure_name: str) -> Unit:
    if measure_name in SHARES:
        return "share"
    return "number" if measure_name.startswith(("length", "without")) else "score"


def _asking(set_name: str, model: str, records: Sequence[Answered]) -> Iterator[Number]:
    """The share that asks where the patient left something out, and where nothing is missing."""
    for label, missing in ((ASKS_NEEDED, True), (ASKS_NOT_NEEDED, False)):
        own = _about(records, missing)
        if own:
            asking = sum(asks_question(one.answer.text or "") for one in own)
            yield Number.of("metrics", set_name, ALL, model, label, _share(asking, len(own)), "share")


def _about(records: Sequence[Answered], missing: bool) -> list[Answered]:
    """Those whose question says whether something is missing, and it is (or isn't)."""
    told = [one for one in records if isinstance(one.row.fields.get("missing_info"), list)]
    return [one for one in told if bool(one.row.fields["missing_info"]) is missing]


def _by_category(
    set_name: str,
    model: str,
    records: Sequence[Answered],
    level: Literal["characters", "words"],
    language: Literal["en", "zh"],
    seed: int,
    resamples: int,
) -> Iterator[Number]:
    for category in categories_of(one.category for one in records):
        own = _rows([one for one in records if one.category == category])
        for name, estimate in measure(own, level, language, seed, resamples).items():
            if name in BY_CATEGORY:
                yield Number.of("metrics", set_name, f"category: {category}", model, name, estimate, _unit(name))


def _differences(
    set_name: str, before: Sequence[Answered], after: Sequence[Answered], first: str, name: str
) -> Iterator[Number]:
    """Paired differences of what every answer has by itself: whether it asks, and its length in characters."""
    pair = f"{name} against {first}"
    told = [[one for one in records if one.answer.text is not None] for records in (before, after)]
    for label, missing in (("asks", None), (ASKS_NEEDED, True), (ASKS_NOT_NEEDED, False)):
        own = told if missing is None else [_about(records, missing) for records in told]
        asking = [{one.row.id: asks_question(one.answer.text or "") for one in records} for records in own]
        if any(item in asking[1] for item in asking[0]):
            estimate = paired_share_difference(asking[0], asking[1])
            yield Number.of("differences", set_name, ALL, pair, label, estimate, "points")
    lengths = [{one.row.id: float(len("".join((one.answer.text or "").split()))) for one in own} for own in told]
    if any(item in lengths[1] for item in lengths[0]):
        estimate = paired_difference(lengths[0], lengths[1])
        yield Number.of("differences", set_name, ALL, pair, "length-characters", estimate, "number")


def _tallied(section: str, set_name: str, split: str, pair: str, outcomes: Sequence[str | None]) -> Iterator[Number]:
    counts = tally(outcomes)  # type: ignore[arg-type]
    n = counts.n
    if counts.win_rate is None:
        yield Number(section, set_name, split, pair, "without outcome", counts.left_out, None, None, n, "number")
        return
    for label, count in (("wins", counts.wins), ("ties", counts.ties), ("losses", counts.losses)):
        yield Number.of(section, set_name, split, pair, label, _share(count, n), "share")
    yield Number.of(section, set_name, split, pair, "win rate", counts.win_rate, "share")
    if counts.p_value is not None:
        yield Number(section, set_name, split, pair, "p (sign test)", counts.p_value, None, None, n, "probability")
    if counts.left_out:
        yield Number(section, set_name, split, pair, "without outcome", counts.left_out, None, None, n, "number")


def _share(count: float, n: int) -> Estimate:
    return proportion_interval(count, n)


def _mean(values: Sequence[float], seed: int, resamples: int) -> Estimate:
    return bootstrap_means(np.array(values, dtype=np.float64)[:, None], seed=seed, resamples=resamples)[0]
