"""Judging for `rayrl eval`: which answers and consultations meet, and the scores of single answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import combinations

from rayrl.config.eval import EvalConfig, ScoredConfig
from rayrl.errors import RunError
from rayrl.evaluation.consultations.dialogue import transcript
from rayrl.evaluation.pairwise import Match
from rayrl.evaluation.question_numbers import Answered
from rayrl.evaluation.records import Talk
from rayrl.evaluation.scored import Scored
from rayrl.evaluation.versus import Contest, decide, require_some, stop_on_budget
from rayrl.feedback.rubric_server import served
from rayrl.judge.service import JudgeService
from rayrl.types import Message, PromptRow

logger = logging.getLogger(__name__)

_SCORED_AT_ONCE = 256


def judge_matches(config: EvalConfig, answers: Sequence[Answered], talks: Sequence[Talk]) -> list[Match]:
    """All comparisons that `pairwise` asks for. Ray must be connected. Raises as `versus.decide`."""
    if config.pairwise is None:
        return []
    matches = decide(config.pairwise, [*_of_answers(config, answers), *_of_talks(config, talks)])
    asked = [match.reason for match in matches if match.rater]
    failed = [match.reason for match in matches if match.rater and match.outcome is None]
    _check_judged("pairs", failed, len(asked), config.max_unanswered_fraction)
    return matches


def score_answers(config: ScoredConfig, answers: Sequence[Answered], max_failed: float) -> list[Scored]:
    """Every answer's scores. Ray must be connected. Raises RunError where the budget is spent or too few are scored."""
    scored: list[Scored] = []
    with served(config.asked) as reachable:
        judge = JudgeService(reachable)
        for start in range(0, len(answers), _SCORED_AT_ONCE):
            part = answers[start : start + _SCORED_AT_ONCE]
            asked = [(one.row, one.answer.text or "") for one in part]
            for one, found in zip(part, judge.score_batch(asked, scale=(config.low, config.high)), strict=True):
                stop_on_budget(found.reason)
                scored.append(Scored(one.set, one.row.id, one.category, one.model, found.criteria, found.reason))
            logger.info("scored %d of %d answers", len(scored), len(answers))
    require_some([one.reason for one in scored], "no answer")
    _check_judged("answers", [one.reason for one in scored if not one.criteria], len(scored), max_failed)
    return scored


def _check_judged(what: str, failed: Sequence[str | None], asked: int, max_fraction: float) -> None:
    """Raises RunError where the judge left out too many."""
    if failed and len(failed) > max_fraction * asked:
        raise RunError(
            f"the judge gave no verdict on {len(failed)} of {asked} {what} ({failed[0]}), more than "
            f"max_unanswered_fraction={max_fraction:g}; the same command asks again for what was never answered"
        )


def _of_answers(config: EvalConfig, answers: Sequence[Answered]) -> Iterator[Contest]:
    sets = {one.name for one in config.questions if one.pairwise}
    by_item: dict[tuple[str, str], dict[str, Answered]] = {}
    for one in answers:
        if one.set in sets:
            by_item.setdefault((one.set, one.row.id), {})[one.model] = one
    for (name, _), found in by_item.items():
        for a, b in _pairs(config):
            if a in found and b in found:
                row, category = found[a].row, found[a].category
                yield Contest(name, row, a, b, found[a].answer.text, found[b].answer.text, category)


def _of_talks(config: EvalConfig, talks: Sequence[Talk]) -> Iterator[Contest]:
    sets = {one.name for one in config.consultations if one.pairwise}
    by_item: dict[tuple[str, str], dict[str, Talk]] = {}
    for one in talks:
        if one.set in sets:
            by_item.setdefault((one.set, one.case.id), {})[one.model] = one
    for (name, _), found in by_item.items():
        for a, b in _pairs(config):
            if a in found and b in found:
                case = found[a].case
                row = PromptRow(case.id, [Message(role="user", content=case.case)], case.diagnosis)
                texts = _transcript(found[a]), _transcript(found[b])
                yield Contest(name, row, a, b, *texts, case.department, "consultation")


def _transcript(talk: Talk) -> str | None:
    """None where the talk was broken off by a failure; "" where the doctor never said anything."""
    messages = talk.dialogue.messages
    if talk.dialogue.ended == "failed":
        return None
    said = any(message["role"] == "assistant" for message in messages)
    return transcript(messages, talk.case.language) if said else ""


def _pairs(config: EvalConfig) -> list[tuple[str, str]]:
    assert config.pairwise is not None
    names = [model.name for model in config.models]
    if config.pairwise.against == "all":
        return list(combinations(names, 2))
    return [(names[0], other) for other in names[1:]]
