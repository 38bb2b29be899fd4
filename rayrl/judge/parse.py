"""Scores out of a judge's answer: JSON anywhere in the text, or lines like `A: 7`.

Lenient in form, strict in content: every criterion has to have a number inside the scale, or the answer counts as
unread and is asked for again. Of several JSON objects that fit, the last counts: models think first and answer last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

OVERALL = "overall"
"""What a score is called that a judge gave without telling criteria apart."""

CUT = "\n[cut at max_tokens]"
"""Stands behind an answer that its token limit cut: what looks like its last number may be half of one."""
_THOUGHTS_END = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_THOUGHTS_BEGIN = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_NUMBER = re.compile(r"^\s*(\d{1,3}(?:\.\d+)?)\s*(?:(?:/|out of)\s*(\d{1,3})|分|points?)?\s*$", re.IGNORECASE)
_LINE_VALUE = r"[\"'*_ \t]*[:：=][\"'*_ \t]*(\d{1,3}(?:\.\d+)?)(?![\d.]*\d)"
_LINE = (
    r"(?im)^[ \t>*_#\"'-]*(?:(?:answer|response|assistant|score|回答|答案|评分)[ _]*)*(?:of[ _]+)?LABEL" + _LINE_VALUE
)

Scores = dict[str, float]


class Unread(Exception):
    """No scores in the answer; the text says what is missing, and never quotes the answer."""


def without_thoughts(text: str) -> str | None:
    """What a reasoning model says after its thoughts; None where they never end."""
    said = _THOUGHTS_END.split(text)[-1]
    return None if _THOUGHTS_BEGIN.search(said) else said.strip()


def pair_scores(text: str, criteria: Sequence[str], low: float = 1, high: float = 10) -> tuple[Scores, Scores]:
    """Scores of answers A and B by criterion (or `overall` alone, where the judge gave one number each).

    Raises Unread.
    """
    text = _answer_of(text)
    problem = "it holds no JSON object and no lines `A: NUMBER`, `B: NUMBER`"
    for found in reversed(list(_objects(text))):
        sides = {_side(key): value for key, value in found.items()}
        if "a" in sides and "b" in sides:
            try:
                first, second = (_criteria(sides[side], criteria, low, high) for side in "ab")
                if set(first) == set(second):
                    return first, second
                problem = "A and B are scored on different criteria"
            except Unread as error:
                problem = str(error)
    _refuse_cut(text)
    lines = [_only_line(text, label, low, high) for label in ("A", "B")]
    if lines[0] is not None and lines[1] is not None:
        return {OVERALL: lines[0]}, {OVERALL: lines[1]}
    raise Unread(problem)


def answer_scores(text: str, criteria: Sequence[str], low: float = 0, high: float = 10) -> Scores:
    """Scores of a single answer by criterion (or `overall` alone). Raises Unread."""
    text = _answer_of(text)
    problem = "it holds no JSON object and no lines `CRITERION: NUMBER`"
    for found in reversed(list(_objects(text))):
        try:
            return _criteria(found, criteria, low, high)
        except Unread as error:
            problem = str(error)
    _refuse_cut(text)
    lines = {name: _only_line(text, re.escape(name), low, high) for name in criteria}
    scores = {name: score for name, score in lines.items() if score is not None}
    if len(scores) == len(lines):
        return scores
    overall = _only_line(text, f"(?:{OVERALL}|total|总分)", low, high)
    if overall is not None and not scores:
        return {OVERALL: overall}
    raise Unread(problem)


def _answer_of(text: str) -> str:
    """What stands behind the thoughts. Raises Unread where they never end: numbers in them are drafts."""
    answer = _THOUGHTS_END.split(text)[-1]
    if _THOUGHTS_BEGIN.search(answer):
        _refuse_cut(text)
        raise Unread("its thoughts never end")
    return answer


def _refuse_cut(text: str) -> None:
    if text.endswith(CUT):
        raise Unread("judge.max_tokens cut it: raise it")


def _objects(text: str) -> Iterator[Mapping[str, Any]]:
    """Every JSON object in the text that isn't inside another, in order."""
    decoder = json.JSONDecoder()
    position = text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = position + 1
        else:
            yield value
        position = text.find("{", end)


def _side(key: str) -> str:
    return re.sub(r"answer|response|assistant|scores?|回答|答案|[\W_]", "", key.casefold())


def _criteria(value: Any, criteria: Sequence[str], low: float, high: float) -> Scores:
    if not isinstance(value, Mapping):
        return {OVERALL: _number(value, OVERALL, low, high)}
    given = {_plain(key): inside for key, inside in value.items()}
    if set(given) & {"scores", "score"} and isinstance(inner := given.get("scores", given.get("score")), Mapping):
        given = {_plain(key): inside for key, inside in inner.items()}
    if not any(_plain(name) in given for name in criteria):
        for name in (OVERALL, "score", "total"):
            if name in given:
                return {OVERALL: _number(given[name], OVERALL, low, high)}
    scores: Scores = {}
    for name in criteria:
        if _plain(name) not in given:
            raise Unread(f"there is no score for {name}")
        scores[name] = _number(given[_plain(name)], name, low, high)
    return scores


def _plain(key: str) -> str:
    return re.sub(r"[\W_]+", " ", key.casefold()).strip()


def _number(value: Any, name: str, low: float, high: float) -> float:
    if isinstance(value, Mapping) and "score" in value:
        value = value["score"]
    if isinstance(value, str) and (match := _NUMBER.match(value)) and float(match[2] or high) == high:
        value = float(match[1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unread(f"the score for {name} is no number")
    if not low <= value <= high:  # not NaN either
        raise Unread(f"a score for {name} is outside {low:g} to {high:g}")
    return float(value)


def _only_line(text: str, label: str, low: float, high: float) -> float | None:
    """The number of the lines that begin with the label; None where there is none, or lines disagree."""
    numbers = {float(number) for number in re.findall(_LINE.replace("LABEL", label), text)}
    if len(numbers) != 1:
        return None
    (number,) = numbers
    return number if low <= number <= high else None
