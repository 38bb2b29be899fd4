"""From several annotators' ranks of an item to one decision, and from the decision to comparisons.

Zhongjing's procedure: two annotators rank each item independently, and a third expert decides where they disagree;
where every answer is wrong, an honest "I don't know" is better than each of them. Annotators who agree are averaged.
What isn't decided is kept in the store as set aside, with its ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from rayrl.config.feedback import AdmissionConfig, HumanConfig
from rayrl.feedback.pairs import Pair, verdict_on
from rayrl.feedback.rankings import Item
from rayrl.rewards.text import is_chinese
from rayrl.types import Comparison, PromptRow, Verdict


@dataclass(frozen=True)
class Decision:
    """What an item's annotators, or the third, decided."""

    item: Item
    rater: str
    """`human:NAME`, or `human:NAME+NAME` where they were averaged."""
    ranks: list[float] | None
    """One an answer; None where nothing is decided."""
    all_wrong: bool
    reason: str | None
    """Why nothing is decided."""
    for_third: bool
    """Whether a third annotator has to decide."""


def disagreement(first: Sequence[int], second: Sequence[int]) -> float:
    """Share of the pairs of answers, in [0, 1], that two rankings order differently.

    A tie in one and an order in the other counts half (Fagin's K with p = 1/2, over the number of pairs).
    """
    pairs = list(combinations(range(len(first)), 2))
    signs = ((_sign(first[j] - first[i]), _sign(second[j] - second[i])) for i, j in pairs)
    return sum(abs(one - other) / 2 for one, other in signs) / len(pairs)


def decide(item: Item, config: HumanConfig) -> Decision:
    """The third's ranking where there is one; else the annotators' mean ranks, if they are enough and agree."""
    if config.third in item.ranks:
        ranks = [float(rank) for rank in item.ranks[config.third]]
        return Decision(item, f"human:{config.third}", ranks, item.all_wrong[config.third], None, False)
    names = sorted(item.ranks)
    rater = f"human:{'+'.join(names)}"
    if len(names) < config.min_annotators:
        reason = f"ranked by {len(names)}, and min_annotators is {config.min_annotators}"
        return Decision(item, rater, None, False, reason, False)
    wrong = {item.all_wrong[name] for name in names}
    if len(wrong) > 1:
        return Decision(item, rater, None, False, "annotators disagree on whether all answers are wrong", True)
    apart = [disagreement(item.ranks[one], item.ranks[other]) for one, other in combinations(names, 2)]
    if apart and max(apart) > config.max_disagreement + 1e-9:
        reason = f"annotators disagree by {max(apart):.2f}, and max_disagreement is {config.max_disagreement:g}"
        return Decision(item, rater, None, False, reason, True)
    means = [fmean(item.ranks[name][index] for name in names) for index in range(len(item.answers))]
    return Decision(item, rater, means, wrong.pop(), None, False)


def comparisons(decision: Decision, admission: AdmissionConfig | None) -> list[Comparison]:
    """All pairs of the item's answers; margin is the distance in rank, ties are kept.

    Where all answers are wrong, the admission of not knowing also beats each of them, by its rank: it stands above the
    first.
    """
    item = decision.item
    rows = [_compare(decision, i, j) for i, j in combinations(range(len(item.answers)), 2)]
    if decision.all_wrong and admission is not None and decision.ranks is not None:
        text = admission_for(item.prompt, admission)
        for index, rank in enumerate(decision.ranks):
            pair = Pair(f"{item.prompt.id}/admission-{index}", item.prompt, text, item.answers[index], item.origin)
            scores = {"all_wrong": [name for name, wrong in item.all_wrong.items() if wrong]}
            rows.append(verdict_on(pair, decision.rater, "a", margin=rank, scores=scores))
    return rows


def admission_for(prompt: PromptRow, admission: AdmissionConfig) -> str:
    """The admission in the language of the patient's last turn."""
    return admission.zh if is_chinese(prompt.messages[-1]["content"]) else admission.en


def _compare(decision: Decision, i: int, j: int) -> Comparison:
    item = decision.item
    pair = Pair(f"{item.prompt.id}/{i}-{j}", item.prompt, item.answers[i], item.answers[j], item.origin)
    scores = {"ranks": {name: [ranks[i], ranks[j]] for name, ranks in item.ranks.items()}}
    if decision.ranks is None:
        return verdict_on(pair, decision.rater, "set_aside", scores=scores, reason=decision.reason)
    distance = decision.ranks[j] - decision.ranks[i]
    verdict: Verdict = "tie" if abs(distance) < 1e-9 else "a" if distance > 0 else "b"
    return verdict_on(pair, decision.rater, verdict, margin=abs(distance), scores=scores)


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)
