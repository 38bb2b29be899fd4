"""Judging two answers in both orders, and scoring a single one, over any function that asks a model.

A judge that prefers whatever stands first is common; a verdict counts only if the same answer wins in both orders, as
in HuatuoGPT. The rest is `inconsistent` and keeps its scores. Left out: how the model is reached (client.py).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rayrl.config.judge import CriterionConfig, JudgeConfig
from rayrl.judge import parse
from rayrl.judge.budget import BudgetExceeded
from rayrl.judge.client import CallFailed
from rayrl.judge.prompts import Subject, answer_messages, criteria_for, pair_messages
from rayrl.types import Message, PromptRow, Verdict

Ask = Callable[[list[Message]], Awaitable[str]]
"""Messages -> the model's answer. Raises CallFailed, BudgetExceeded."""

BUDGET_REASON = "judge budget"
"""How the reason begins where a raised budget would help."""
_EQUAL = 1e-9

T = TypeVar("T")


@dataclass(frozen=True)
class Judgement:
    """A verdict on answers a and b.

    Example: Judgement("b", 2.5, {"ab": [6.0, 8.0], "ba": [5.0, 8.0], "criteria": {...}}, None)
    """

    verdict: Verdict
    margin: float | None
    """Points on the scale from 1 to 10: b's lead over a, or a's over b, as the mean of both orders."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """By order, always [a, b]: `ab` with a shown first, `ba` with b; `criteria` the same by criterion. Where an answer
    couldn't be read, `unread` has its texts by order."""
    reason: str | None = None


@dataclass(frozen=True)
class AnswerScore:
    """A single answer's score. Example: AnswerScore(7.5, {"accuracy": 7.0, "conciseness": 8.0}, None)"""

    value: float | None
    """Weighted mean of the criteria, on the scale asked for; None where there is none, `reason` says why."""
    criteria: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    unread: str | None = None
    """The answer that couldn't be read."""


class _Unread(Exception):
    def __init__(self, reason: str, text: str) -> None:
        super().__init__(reason)
        self.reason, self.text = reason, text


async def compare(
    ask: Ask, prompt: PromptRow, a: str, b: str, config: JudgeConfig, subject: Subject = "answer"
) -> Judgement:
    """Judges two answers in both orders; whatever goes wrong with either sets the pair aside."""
    criteria = criteria_for(prompt, config)
    names = [criterion.name for criterion in criteria]

    async def scores(first: str, second: str) -> tuple[parse.Scores, parse.Scores]:
        return await _readable(
            ask,
            lambda attempt: pair_messages(prompt, first, second, config, attempt, subject),
            lambda text: parse.pair_scores(text, names),
            config.parse_retries,
        )

    ab, ba = await asyncio.gather(scores(a, b), scores(b, a), return_exceptions=True)
    failures = {order: found for order, found in (("ab", ab), ("ba", ba)) if isinstance(found, BaseException)}
    if failures or isinstance(ab, BaseException) or isinstance(ba, BaseException):
        unread = {order: error.text for order, error in failures.items() if isinstance(error, _Unread)}
        reasons = {_reason(error): order for order, error in failures.items()}
        return Judgement("set_aside", None, {"unread": unread} if unread else {}, "; ".join(reasons))
    by_criterion = {"ab": [ab[0], ab[1]], "ba": [ba[1], ba[0]]}
    means = {order: [mean_score(found, criteria) for found in pair] for order, pair in by_criterion.items()}
    verdict, margin = decide(means["ab"], means["ba"])
    return Judgement(verdict, margin, {**means, "criteria": by_criterion})


async def score(
    ask: Ask, prompt: PromptRow, answer: str, config: JudgeConfig, scale: tuple[int, int] = (0, 10)
) -> AnswerScore:
    """Scores one answer on the scale (lowest, highest); whatever goes wrong leaves it without a value."""
    criteria = criteria_for(prompt, config)
    names = [criterion.name for criterion in criteria]
    try:
        found = await _readable(
            ask,
            lambda attempt: answer_messages(prompt, answer, config, attempt, scale),
            lambda text: parse.answer_scores(text, names, *scale),
            config.parse_retries,
        )
    except (_Unread, CallFailed, BudgetExceeded) as error:
        return AnswerScore(None, {}, _reason(error), error.text if isinstance(error, _Unread) else None)
    return AnswerScore(mean_score(found, criteria), found)


def decide(ab: Sequence[float], ba: Sequence[float]) -> tuple[Verdict, float | None]:
    """Verdict and margin from the mean scores [a, b] of both orders.

    Example: [6, 8] and [5, 8]: b leads by 2 and by 3, so ("b", 2.5). [8, 6] and [5, 8]: ("inconsistent", None).
    """
    leads = [0.0 if abs(a - b) < _EQUAL else a - b for a, b in (ab, ba)]
    if leads == [0.0, 0.0]:
        return "tie", 0.0
    if leads[0] * leads[1] <= 0:
        return "inconsistent", None
    return ("a" if leads[0] > 0 else "b"), abs(sum(leads)) / 2


def mean_score(scores: Mapping[str, float], criteria: Sequence[CriterionConfig]) -> float:
    """The weighted mean of the criteria, or the one overall score."""
    if set(scores) == {parse.OVERALL}:
        return scores[parse.OVERALL]
    weights = {criterion.name: criterion.weight for criterion in criteria}
    total = math.fsum(weights[name] for name in scores)
    return math.fsum(weights[name] * value for name, value in scores.items()) / total


async def _readable(ask: Ask, messages: Callable[[int], list[Message]], read: Callable[[str], T], retries: int) -> T:
    """Asks until an answer can be read, each time with other words, since a cold model would repeat itself."""
    for attempt in range(retries + 1):
        text = await ask(messages(attempt))
        try:
            return read(text)
        except parse.Unread as error:
            problem = str(error)
    raise _Unread(f"the judge's answer can't be read ({retries + 1} tries): {problem}", text)


def _reason(error: BaseException) -> str:
    if isinstance(error, _Unread):
        return error.reason
    if isinstance(error, BudgetExceeded):
        return f"{BUDGET_REASON}: {error}"
    if isinstance(error, CallFailed):
        return str(error)
    raise error
