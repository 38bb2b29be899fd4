"""Who wins, question by question: two answers put before a judge in both orders, or before rules.

Everything that was asked lies in the judge's cache, so a run that was cut, or whose judge died, asks again only what
was never answered. Two answers of one text tie without being shown to anyone; an empty one loses to one that isn't.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayrl.config.versus import VersusConfig
from rayrl.errors import RunError
from rayrl.evaluation.pairwise import Match, Outcome, outcome_of, tally
from rayrl.feedback.judge_rater import judge_pairs
from rayrl.feedback.pairs import Pair, form_of
from rayrl.feedback.rubric import Rubric
from rayrl.feedback.rubric_server import served
from rayrl.judge.compare import BUDGET_REASON
from rayrl.judge.prompts import Subject
from rayrl.judge.service import JudgeService
from rayrl.types import Comparison, Origin, PromptRow

logger = logging.getLogger(__name__)

SAY_EVERY_S = 10.0
SAME, EMPTY, UNANSWERED = "both answers have one text", "one answer is empty", "a model gave no answer"


@dataclass(frozen=True)
class Contest:
    """Two models' answers to one question. Example: Contest("heldout", row, "sft", "ppo", "Rest.", "How long?")"""

    set: str
    row: PromptRow
    model_a: str
    model_b: str
    answer_a: str | None
    """None where the model gave none."""
    answer_b: str | None
    category: str = ""
    subject: Subject = "answer"

    @property
    def id(self) -> str:
        """Unique among the contests of a run."""
        return "/".join((self.set, self.row.id, self.model_a, self.model_b))

    def decided(self, outcome: Outcome | None, reason: str | None = None, **rest: Any) -> Match:
        """Its outcome."""
        own = (self.set, self.row.id, self.category, self.model_a, self.model_b)
        return Match(*own, outcome, reason=reason, **rest)


def decide(config: VersusConfig, contests: Sequence[Contest]) -> list[Match]:
    """Every contest's outcome, in order. For a judge, Ray must be connected.

    Raises RunError where the judge's budget is spent, or it judged nothing at all.
    """
    settled = {contest.id: _without_asking(contest) for contest in contests}
    verdicts = _verdicts(config, [_pair(one) for one in contests if settled[one.id] is None])
    criteria = [criterion.name for criterion in config.asked.criteria] if config.asked is not None else []
    matches = []
    for contest in contests:
        match = settled[contest.id]
        matches.append(match if match is not None else _judged(contest, verdicts[contest.id], config, criteria))
    return matches


def check(config: VersusConfig | None) -> None:
    """Raises UserError for rules or options that don't exist, before anything starts."""
    if config is not None and config.rubric is not None:
        Rubric(config.rubric)


def win_metrics(matches: Sequence[Match]) -> dict[str, float]:
    """`eval/win_rate` of model a with its interval, and the shares, for a training run's row; {} without an outcome."""
    counts = tally(match.outcome for match in matches)
    rate = counts.win_rate
    if rate is None or rate.low is None or rate.high is None:
        return {}
    shares = {"wins": counts.wins, "ties": counts.ties, "losses": counts.losses}
    out = {"eval/win_rate": rate.mean, "eval/win_rate_low": rate.low, "eval/win_rate_high": rate.high}
    return out | {f"eval/{name}": count / counts.n for name, count in shares.items()}


def stop_on_budget(reason: str | None) -> None:
    """Raises RunError where that is why something wasn't judged."""
    if reason is not None and reason.startswith(BUDGET_REASON):
        raise RunError(f"{reason}; raise it, and the same command goes on: what was answered isn't paid for again")


def require_some(reasons: Sequence[str | None], what: str) -> None:
    """Raises RunError where every one of them has a reason to have failed. `what`: "no pair"."""
    if reasons and all(reason is not None for reason in reasons):
        raise RunError(f"{what} of {len(reasons)} was judged ({reasons[0]}); mend it and run again")


def _without_asking(contest: Contest) -> Match | None:
    a, b = contest.answer_a, contest.answer_b
    if a is None or b is None:
        return contest.decided(None, UNANSWERED)
    if a.strip() == b.strip():
        return contest.decided("tie", SAME)
    if not a.strip() or not b.strip():
        return contest.decided("b" if b.strip() else "a", EMPTY)
    return None


def _pair(contest: Contest) -> Pair:
    origin = Origin(contest.set, "distilled", form_of(contest.row), contest.set, 0)
    return Pair(contest.id, contest.row, contest.answer_a or "", contest.answer_b or "", origin, contest.subject)


def _judged(contest: Contest, found: Comparison, config: VersusConfig, criteria: Sequence[str]) -> Match:
    if found.verdict == "set_aside":
        return contest.decided(None, found.reason, rater=found.rater)
    if config.rubric is not None:  # which knows no order
        outcome: Outcome = "tie" if found.verdict == "inconsistent" else found.verdict
        return contest.decided(outcome, rater=found.rater, scores=found.scores)
    outcome, by_criterion = outcome_of(found.scores, config.ties, criteria)
    return contest.decided(outcome, rater=found.rater, scores=found.scores, by_criterion=by_criterion)


def _verdicts(config: VersusConfig, pairs: Sequence[Pair]) -> Mapping[str, Comparison]:
    """By the pair's id."""
    if not pairs:
        return {}
    if config.rubric is not None:
        rated = Rubric(config.rubric).rate(pairs)
        require_some([row.reason if row.verdict == "set_aside" else None for row in rated], "no pair")
        return {pair.id: row for pair, row in zip(pairs, rated, strict=True)}
    assert config.asked is not None
    verdicts: dict[str, Comparison] = {}
    last = time.monotonic()
    with served(config.asked) as reachable:
        for row in judge_pairs(pairs, JudgeService(reachable)):
            verdicts[row.id.removesuffix(f"/{row.rater}")] = row
            if time.monotonic() - last >= SAY_EVERY_S:
                last = time.monotonic()
                logger.info("judged %d of %d pairs", len(verdicts), len(pairs))
    for row in verdicts.values():
        stop_on_budget(row.reason)
    require_some([row.reason if row.verdict == "set_aside" else None for row in verdicts.values()], "no pair")
    return verdicts
