"""Judging for `rayrl eval`: two models' answers or consultations against each other, and single answers by themselves.

Everything that was asked lies in the judge's cache, so a run that was cut, or whose judge died, asks again only what
was never answered. Two answers of one text tie without being shown to anyone; an empty one loses to one that isn't.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from rayrl.config.eval import EvalConfig, PairwiseConfig, ScoredConfig
from rayrl.errors import RunError
from rayrl.evaluation.consultation import transcript
from rayrl.evaluation.pairwise import Match, Outcome, outcome_of
from rayrl.evaluation.question_numbers import Answered
from rayrl.evaluation.records import Talk
from rayrl.evaluation.scored import Scored
from rayrl.feedback.judge_rater import judge_pairs
from rayrl.feedback.pairs import Pair, form_of
from rayrl.feedback.rubric import Rubric
from rayrl.feedback.rubric_server import served
from rayrl.judge.compare import BUDGET_REASON
from rayrl.judge.prompts import Subject
from rayrl.judge.service import JudgeService
from rayrl.types import Comparison, Message, Origin, PromptRow

logger = logging.getLogger(__name__)

SAY_EVERY_S = 10.0
_SCORED_AT_ONCE = 256
SAME, EMPTY, UNANSWERED = "both answers have one text", "one answer is empty", "a model gave no answer"


@dataclass(frozen=True)
class _Contest:
    """Two models' answers to one item. `pair` is None where nobody has to be asked."""

    set: str
    item: str
    category: str
    model_a: str
    model_b: str
    pair: Pair | None
    outcome: Outcome | None = None
    reason: str | None = None

    def match(self, outcome: Outcome | None, reason: str | None, **rest: object) -> Match:
        return Match(self.set, self.item, self.category, self.model_a, self.model_b, outcome, reason=reason, **rest)  # type: ignore[arg-type]


def judge_matches(config: EvalConfig, answers: Sequence[Answered], talks: Sequence[Talk]) -> list[Match]:
    """All comparisons that `pairwise` asks for. Ray must be connected.

    Raises RunError where the budget is spent, or nothing got an outcome.
    """
    pairwise = config.pairwise
    if pairwise is None:
        return []
    contests = [*_of_answers(config, answers), *_of_talks(config, talks)]
    asked = {one.pair.id: one for one in contests if one.pair is not None}
    verdicts = _verdicts(pairwise, [one.pair for one in asked.values() if one.pair is not None])
    criteria = [criterion.name for criterion in pairwise.asked.criteria] if pairwise.asked is not None else []
    matches = []
    for one in contests:
        if one.pair is None:
            matches.append(one.match(one.outcome, one.reason))
            continue
        found = verdicts[one.pair.id]
        if found.verdict == "set_aside":
            matches.append(one.match(None, found.reason, rater=found.rater))
        elif "ab" not in found.scores:  # rules, which know no order
            outcome: Outcome = "tie" if found.verdict == "inconsistent" else found.verdict
            matches.append(one.match(outcome, None, rater=found.rater, scores=found.scores))
        else:
            outcome, by_criterion = outcome_of(found.scores, pairwise.ties, criteria)
            matches.append(one.match(outcome, None, rater=found.rater, scores=found.scores, by_criterion=by_criterion))
    return matches


def score_answers(config: ScoredConfig, answers: Sequence[Answered]) -> list[Scored]:
    """Every answer's scores. Ray must be connected. Raises RunError as `judge_matches`."""
    scored: list[Scored] = []
    with served(config.asked) as reachable:
        judge = JudgeService(reachable)
        for start in range(0, len(answers), _SCORED_AT_ONCE):
            part = answers[start : start + _SCORED_AT_ONCE]
            asked = [(one.row, one.answer.text or "") for one in part]
            for one, found in zip(part, judge.score_batch(asked, scale=(config.low, config.high)), strict=True):
                _stop_on_budget(found.reason)
                scored.append(Scored(one.set, one.row.id, one.category, one.model, found.criteria, found.reason))
            logger.info("scored %d of %d answers", len(scored), len(answers))
    _require([one.reason for one in scored], "scored: no answer")
    return scored


def _of_answers(config: EvalConfig, answers: Sequence[Answered]) -> Iterator[_Contest]:
    sets = {one.name for one in config.questions if one.pairwise}
    by_item: dict[tuple[str, str], dict[str, Answered]] = {}
    for one in answers:
        if one.set in sets:
            by_item.setdefault((one.set, one.row.id), {})[one.model] = one
    for (name, item), by_model in by_item.items():
        for a, b in _pairs(config):
            if a in by_model and b in by_model:
                row, category = by_model[a].row, by_model[a].category
                texts = by_model[a].answer.text, by_model[b].answer.text
                yield _contest(name, item, category, a, b, row, texts, "answer")


def _of_talks(config: EvalConfig, talks: Sequence[Talk]) -> Iterator[_Contest]:
    sets = {one.name for one in config.consultations if one.pairwise}
    by_item: dict[tuple[str, str], dict[str, Talk]] = {}
    for one in talks:
        if one.set in sets:
            by_item.setdefault((one.set, one.case.id), {})[one.model] = one
    for (name, item), by_model in by_item.items():
        for a, b in _pairs(config):
            if a in by_model and b in by_model:
                case = by_model[a].case
                row = PromptRow(case.id, [Message(role="user", content=case.case)], case.diagnosis)
                texts = tuple(_transcript(by_model[model]) for model in (a, b))
                yield _contest(name, item, case.department, a, b, row, (texts[0], texts[1]), "consultation")


def _transcript(talk: Talk) -> str | None:
    """None where the doctor never said anything."""
    messages = talk.dialogue.messages
    said = any(message["role"] == "assistant" for message in messages)
    return transcript(messages, talk.case.language) if said else None


def _pairs(config: EvalConfig) -> list[tuple[str, str]]:
    assert config.pairwise is not None
    names = [model.name for model in config.models]
    if config.pairwise.against == "all":
        return list(combinations(names, 2))
    return [(names[0], other) for other in names[1:]]


def _contest(
    name: str, item: str, category: str, a: str, b: str, row: PromptRow, texts: tuple[str | None, str | None],
    subject: Subject,
) -> _Contest:  # fmt: skip
    own = (name, item, category, a, b)
    if texts[0] is None or texts[1] is None:
        return _Contest(*own, None, None, UNANSWERED)
    if texts[0].strip() == texts[1].strip():
        return _Contest(*own, None, "tie", SAME)
    if not texts[0].strip() or not texts[1].strip():
        return _Contest(*own, None, "b" if texts[1].strip() else "a", EMPTY)
    origin = Origin(name, "distilled", form_of(row), name, 0)
    pair = Pair("/".join((name, item, a, b)), row, texts[0], texts[1], origin, subject)
    return _Contest(*own, pair)


def _verdicts(config: PairwiseConfig, pairs: Sequence[Pair]) -> Mapping[str, Comparison]:
    """By the pair's id."""
    if not pairs:
        return {}
    if config.rubric is not None:
        rated = Rubric(config.rubric).rate(pairs)
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
        _stop_on_budget(row.reason)
    _require([row.reason if row.verdict == "set_aside" else None for row in verdicts.values()], "pairwise: no pair")
    return verdicts


def _stop_on_budget(reason: str | None) -> None:
    if reason is not None and reason.startswith(BUDGET_REASON):
        raise RunError(f"{reason}; raise it, and the same command goes on: what was answered isn't paid for again")


def _require(reasons: Sequence[str | None], what: str) -> None:
    """RunError where every one has a reason to have failed."""
    if reasons and all(reason is not None for reason in reasons):
        raise RunError(f"{what} of {len(reasons)} was judged ({reasons[0]}); mend it and run again")
