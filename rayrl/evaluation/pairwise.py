"""Two models' answers to one question: who wins under a stated rule, and what many such outcomes say.

An outcome comes from a judge's scores in both orders, from rules, or from an expert. A win counts 1, a tie a half, a
loss 0 (ties are split as in HuatuoGPT, section 4.3); their mean over questions is the win rate. Its interval is
Wilson's at the effective sample size n p(1 - p) / var: with few ties that is the number of questions, with many it is
more, and its width is never 0, even where all outcomes are the same. The sign test leaves ties out (exact, two-sided).
Several models are ranked by Bradley and Terry's model (1952), a tie as half a win for each. Left out: how a judge is
asked (rayrl/judge).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rayrl.evaluation.statistics import Estimate, wilson
from rayrl.judge.compare import decide

Outcome = Literal["a", "tie", "b"]
TieRule = Literal["consistent", "points", "sum", "priority"]
_POINTS = {"a": (10, 0), "tie": (5, 5), "b": (0, 10)}
_VALUE = {"a": 1.0, "tie": 0.5, "b": 0.0}
_ITERATIONS, _TOLERANCE = 10_000, 1e-9


@dataclass(frozen=True)
class Match:
    """One question's comparison of two models' answers.

    Example: Match("heldout", "en-7", "cough", "sft", "ppo", "b", {"safety": "tie"}, "judge:x")
    """

    set: str
    item: str
    category: str
    model_a: str
    model_b: str
    outcome: Outcome | None
    """None where there is none, `reason` says why."""
    by_criterion: Mapping[str, Outcome] = field(default_factory=dict)
    rater: str = ""
    reason: str | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)

    def swapped(self) -> Match:
        """The same, told of model b against model a."""
        return Match(
            self.set, self.item, self.category, self.model_b, self.model_a,
            None if self.outcome is None else opposite(self.outcome),
            {name: opposite(one) for name, one in self.by_criterion.items()},
            self.rater, self.reason, self.scores,
        )  # fmt: skip


@dataclass(frozen=True)
class Tally:
    """Outcomes of model a against model b, counted."""

    wins: int
    ties: int
    losses: int
    left_out: int
    """Comparisons without an outcome."""
    win_rate: Estimate | None
    """(wins + ties / 2) / n; None where there is no outcome."""
    p_value: float | None
    """Of the sign test: how likely so uneven wins and losses are if both were as likely."""

    @property
    def n(self) -> int:
        """Comparisons with an outcome."""
        return self.wins + self.ties + self.losses


def opposite(outcome: Outcome) -> Outcome:
    """The outcome as the other model sees it."""
    return {"a": "b", "tie": "tie", "b": "a"}[outcome]  # type: ignore[return-value]


def outcome_of(scores: Mapping[str, Any], rule: TieRule, criteria: Sequence[str]) -> tuple[Outcome, dict[str, Outcome]]:
    """The outcome under a rule, and that on each criterion (which has to win in both orders).

    Args:
        scores: a Judgement's: `ab` and `ba` [a, b], and `criteria` the same by criterion.
        criteria: their names, from the most important on.

    Example: {"ab": [8, 6], "ba": [7, 7]}: consistent says tie, points 10 + 5 to 0 + 5, so a; sum 15 to 13, so a.
    """
    by_criterion = _by_criterion(scores.get("criteria", {}), criteria)
    ab, ba = scores["ab"], scores["ba"]
    if rule == "priority":
        return next((one for one in by_criterion.values() if one != "tie"), "tie"), by_criterion
    if rule == "sum":
        return _larger(ab[0] + ba[0], ab[1] + ba[1]), by_criterion
    if rule == "points":
        points = [_POINTS[_larger(*order)] for order in (ab, ba)]
        return _larger(*map(sum, zip(*points, strict=True))), by_criterion
    return _consistent(ab, ba), by_criterion


def tally(outcomes: Iterable[Outcome | None], confidence: float = 0.95) -> Tally:
    """Counts outcomes of model a against model b."""
    counts = {"a": 0, "tie": 0, "b": 0, None: 0}
    for outcome in outcomes:
        counts[outcome] += 1
    wins, ties, losses = counts["a"], counts["tie"], counts["b"]
    n = wins + ties + losses
    rate = None
    if n:
        share = (wins + ties / 2) / n
        spread = (wins + ties / 4) / n - share * share
        effective = n * share * (1 - share) / spread if spread > 0 else float(n)
        rate = Estimate(share, *wilson(share, effective, confidence), n)
    return Tally(wins, ties, losses, counts[None], rate, sign_test(wins, losses) if n else None)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact probability of so uneven a count under equal chances. Example: 9 and 1 -> 22 / 1024."""
    n, least = wins + losses, min(wins, losses)
    tail = sum(math.comb(n, k) for k in range(least + 1))
    return min(1.0, 2 * tail / 2**n)


@dataclass(frozen=True)
class Strength:
    """A model's place. `log_odds`: Bradley-Terry strength, the mean of all 0; `win_rate`: against an average one."""

    model: str
    log_odds: Estimate
    win_rate: float


def rank(matches: Sequence[Match], resamples: int, seed: int, confidence: float = 0.95) -> list[Strength]:
    """Models by strength, the strongest first; intervals by resampling questions.

    Each model also ties once with an average one, so that one that never lost has a finite strength. Raises ValueError
    where no match has an outcome.
    """
    told = [match for match in matches if match.outcome is not None]
    if not told:
        raise ValueError("rank: no comparison has an outcome")
    models = sorted({name for match in told for name in (match.model_a, match.model_b)})
    place = {name: i for i, name in enumerate(models)}
    items = sorted({(match.set, match.item) for match in told})
    row = {item: i for i, item in enumerate(items)}
    wins_IMM = np.zeros((len(items), len(models), len(models)))
    for match in told:
        a, b, value = place[match.model_a], place[match.model_b], _VALUE[match.outcome]  # type: ignore[index]
        wins_IMM[row[match.set, match.item], a, b] += value
        wins_IMM[row[match.set, match.item], b, a] += 1 - value
    strength = _bradley_terry(wins_IMM.sum(0))
    rng = np.random.default_rng(seed)
    drawn = [_bradley_terry(wins_IMM[rng.integers(len(items), size=len(items))].sum(0)) for _ in range(resamples)]
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(np.array(drawn), [tail, 100 - tail], axis=0)
    found = [
        Strength(name, Estimate(float(strength[i]), float(low[i]), float(high[i]), len(items)), _logistic(strength[i]))
        for i, name in enumerate(models)
    ]
    return sorted(found, key=lambda one: -one.log_odds.mean)


def _bradley_terry(wins_MM: np.ndarray) -> np.ndarray:
    """Log-strengths [M], mean 0, by Newton's method on the concave likelihood, with one tie each against strength 0."""
    games_MM = wins_MM + wins_MM.T
    strength_M = np.zeros(len(wins_MM))
    for _ in range(_ITERATIONS):
        chance_MM = 1 / (1 + np.exp(strength_M[None, :] - strength_M[:, None]))
        prior_M = 1 / (1 + np.exp(-strength_M))
        gradient_M = (wins_MM - games_MM * chance_MM).sum(1) + 0.5 - prior_M
        weight_MM = games_MM * chance_MM * (1 - chance_MM)
        hessian_MM = np.diag(weight_MM.sum(1) + prior_M * (1 - prior_M)) - weight_MM
        step_M = np.linalg.solve(hessian_MM, gradient_M)
        step_M *= min(1.0, 2.0 / max(float(np.abs(step_M).max()), 1e-12))
        strength_M += step_M
        if np.abs(step_M).max() < _TOLERANCE:
            break
    return strength_M - strength_M.mean()


def _logistic(x: float) -> float:
    return float(1 / (1 + math.exp(-x)))


def _by_criterion(found: Mapping[str, Any], criteria: Sequence[str]) -> dict[str, Outcome]:
    """`found`: by order, a's and b's scores by criterion."""
    if not found:
        return {}
    (a_first, b_second), (a_second, b_first) = found["ab"], found["ba"]
    known = [name for name in criteria if all(name in one for one in (a_first, b_second, a_second, b_first))]
    return {name: _consistent((a_first[name], b_second[name]), (a_second[name], b_first[name])) for name in known}


def _consistent(ab: Sequence[float], ba: Sequence[float]) -> Outcome:
    verdict, _ = decide(ab, ba)
    return verdict if verdict in ("a", "b") else "tie"


def _larger(a: float, b: float) -> Outcome:
    if math.isclose(a, b, abs_tol=1e-9):
        return "tie"
    return "a" if a > b else "b"
