"""How far raters agree: Cohen's kappa, Krippendorff's alpha, overall and by department.

Cohen (1960, 1968) for two raters, Krippendorff (2011) for any number and with gaps. A coefficient is None where it
isn't defined: nothing in common, or no variation at all. Verdicts on a pair are counted in both orders of its answers,
because which of them is called a is chance: that makes the raters' chance agreement independent of the order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np

from rayrl.feedback.rankings import Item
from rayrl.types import Comparison

DEPARTMENT = "department"
"""The key of `fields` by which agreement is told apart."""
_FLIPPED = {"a": "b", "b": "a", "tie": "tie"}


def cohen_kappa(
    first: Sequence[Any],
    second: Sequence[Any],
    categories: Sequence[Any],
    weights: Literal["nominal", "linear", "quadratic"] = "nominal",
) -> float | None:
    """kappa = 1 - sum(w * observed) / sum(w * expected), for N ratings by two raters.

    `categories`: all possible ratings, in order of their size where weights aren't nominal. w is 0 on the diagonal; off
    it 1, or the distance |i - j|, or its square. Raises ValueError for a rating that is no category.
    """
    place = {category: index for index, category in enumerate(categories)}
    unknown = [rating for rating in (*first, *second) if rating not in place]
    if unknown or len(first) != len(second):
        raise ValueError(f"ratings must be as many from both raters, each one of {categories}, got {unknown[:1]}")
    observed = np.zeros((len(place), len(place)))
    for one, other in zip(first, second, strict=True):
        observed[place[one], place[other]] += 1
    distance = np.abs(np.subtract.outer(np.arange(len(place)), np.arange(len(place))))
    power = {"nominal": 0, "linear": 1, "quadratic": 2}[weights]
    weight = np.where(distance == 0, 0.0, distance.astype(float) ** power)
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0)) / max(len(first), 1)
    chance = (weight * expected).sum()
    return None if chance == 0 else float(1 - (weight * observed).sum() / chance)


def ordinal_alpha(ratings: Sequence[Sequence[int | None]]) -> float | None:
    """Krippendorff's alpha for ranks: one row an annotator, one column an answer, None where he didn't rank it."""
    import krippendorff

    table = np.array([[np.nan if rating is None else rating for rating in row] for row in ratings], dtype=float)
    shared = table[:, (~np.isnan(table)).sum(axis=0) >= 2] if table.size else table
    if shared.size == 0 or len(np.unique(shared[~np.isnan(shared)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=shared, level_of_measurement="ordinal"))


def annotator_agreement(items: Sequence[Item], third: str) -> dict[str, dict[str, Any]]:
    """Agreement of the annotators, without the third: of `all` items with at least two, and by department.

    Each: items; alpha_ranks (Krippendorff, ordinal); kappa_ranks (Cohen, quadratic weights) and kappa_verdicts (on the
    pairs of answers), the mean over pairs of annotators weighed by what they share; same_verdicts, the raw share.
    """
    shared = [item for item in items if len(set(item.ranks) - {third}) >= 2]
    if not shared:
        return {}
    departments = defaultdict(list)
    for item in shared:
        departments[str(item.prompt.fields.get(DEPARTMENT, "not given"))].append(item)
    table = {"all": _agreement(shared, third)}
    if len(departments) > 1 or "not given" not in departments:
        table |= {name: _agreement(departments[name], third) for name in sorted(departments)}
    return table


def rater_agreement(rows: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Agreement of every two raters on the pairs that both gave a verdict on: raters, pairs, same_verdicts, kappa."""
    verdicts: dict[str, dict[Hashable, str]] = defaultdict(dict)
    for row in rows:
        if row.verdict in _FLIPPED:
            turned = row.answer_a > row.answer_b
            turns = tuple((message["role"], message["content"]) for message in row.prompt.messages)
            key = (turns, *sorted((row.answer_a, row.answer_b)))
            verdicts[row.rater][key] = _FLIPPED[row.verdict] if turned else row.verdict
    table = []
    for one, other in combinations(sorted(verdicts), 2):
        keys = [key for key in verdicts[one] if key in verdicts[other]]
        if keys:
            first, second = [verdicts[one][key] for key in keys], [verdicts[other][key] for key in keys]
            agreed = {"same_verdicts": _same(first, second), "kappa": _verdict_kappa(first, second)}
            table.append({"raters": [one, other], "pairs": len(keys), **agreed})
    return table


def _agreement(items: Sequence[Item], third: str) -> dict[str, Any]:
    names = sorted({name for item in items for name in item.ranks} - {third})
    ranks, kappas, same = [], [], []
    for one, other in combinations(names, 2):
        both = [item for item in items if one in item.ranks and other in item.ranks]
        if not both:
            continue
        first, second = _all_ranks(both, one), _all_ranks(both, other)
        categories = range(1, max(*first, *second) + 1)
        ranks.append((len(first), cohen_kappa(first, second, categories, "quadratic")))
        left, right = _all_verdicts(both, one), _all_verdicts(both, other)
        kappas.append((len(left), _verdict_kappa(left, right)))
        same.append((len(left), _same(left, right)))
    columns = [[rank for item in items for rank in item.ranks.get(name, [None] * len(item.answers))] for name in names]
    return {
        "items": len(items),
        "alpha_ranks": ordinal_alpha(columns),
        "kappa_ranks": _mean(ranks),
        "kappa_verdicts": _mean(kappas),
        "same_verdicts": _mean(same),
    }


def _all_ranks(items: Sequence[Item], name: str) -> list[int]:
    return [rank for item in items for rank in item.ranks[name]]


def _all_verdicts(items: Sequence[Item], name: str) -> list[str]:
    return [
        "tie" if one == other else "a" if one < other else "b"
        for item in items
        for one, other in combinations(item.ranks[name], 2)
    ]


def _verdict_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    both = [[*verdicts, *(_FLIPPED[verdict] for verdict in verdicts)] for verdicts in (first, second)]
    return cohen_kappa(both[0], both[1], tuple(_FLIPPED))


def _same(first: Sequence[str], second: Sequence[str]) -> float:
    return sum(one == other for one, other in zip(first, second, strict=True)) / len(first)


def _mean(values: Sequence[tuple[int, float | None]]) -> float | None:
    known = [(count, value) for count, value in values if value is not None]
    total = sum(count for count, _ in known)
    return sum(count * value for count, value in known) / total if total else None
