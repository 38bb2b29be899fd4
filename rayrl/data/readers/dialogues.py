"""Formats of dialogues: one parser each, from a decoded row to checked messages.

A format is told by a row's keys alone. `columns` has renamed a source's own keys before. docs/formats.md shows a row
of each.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rayrl.data.readers.rows import BadRow, kind_of
from rayrl.data.readers.turns import SPEAKERS, Rules, Turn, checked_text, messages_of, spoken_turn
from rayrl.types import Message

QUESTIONS = ("question", "ask", "query", "prompt", "instruct", "instruction", "问题", "提问")
ANSWERS = ("answer", "response", "output", "回答", "答案", "回复")
_TURN_LISTS = ("messages", "conversations", "conversation", "turns", "dialogue")
_PREFIX = re.compile(rf"\s*[<【]?({'|'.join(SPEAKERS)})[>】]?\s*[:：]\s*", re.IGNORECASE)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Dialogue:
    """What a row says. `used`: the keys that are taken up; all others are the record's fields."""

    messages: list[Message]
    used: frozenset[str]
    reference: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """One format of dialogues."""

    matches: Callable[[Row], bool]
    parse: Callable[[Row, Rules], Dialogue]


def one(name: str, value: Any) -> Any:
    """The only item of a list of one (huatuo26M's lists), else the value."""
    if isinstance(value, list):
        if len(value) != 1:
            raise BadRow(f"{name} is a list of {len(value)}, expected text or a list of one")
        return value[0]
    return value


def first_key(row: Row, names: tuple[str, ...]) -> str | None:
    """The first of `names` that the row has a value for."""
    return next((name for name in names if row.get(name) is not None), None)


def history_turns(history: Any, rules: Rules) -> list[Turn]:
    """Turns of `[[question, answer], ...]`, also as the text that JSON or Python writes for it.

    Null and an empty list or text are no history. BadRow where it isn't that.
    """
    if isinstance(history, str) and history.strip():
        history = literal("history", history, rules)
    if not history:
        return []
    if not isinstance(history, list):
        raise BadRow(f"history is {kind_of(history)}, expected a list of pairs")
    turns = []
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRow(f"item {number} of history isn't a pair of question and answer")
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return turns


def system_turn(row: Row) -> list[Turn]:
    """The row's system message, where it has one."""
    return [Turn("system", row["system"])] if row.get("system") else []


def literal(name: str, text: str, rules: Rules) -> Any:
    """The value that a JSON or Python literal stands for; BadRow where it is none. Nothing is executed."""
    if len(text) > rules.max_chars:
        raise BadRow(f"{name} has {len(text)} characters, more than max_chars, {rules.max_chars}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd escapes in patients' texts
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise BadRow(f"{name} is text that is neither JSON nor a Python literal") from None


def _prefixed(turns: Any, rules: Rules) -> list[Message]:
    """Messages of a list of texts, each with its speaker in front (问：… 答：…), or none with one: turn by turn."""
    if not isinstance(turns, list):
        raise BadRow(f"the dialogue is {kind_of(turns)}, expected a list of texts")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, str):
            raise BadRow(f"turn {number} is {kind_of(turn)}, expected text")
    found = [_PREFIX.match(turn) for turn in turns]
    if not any(found):
        roles = [("user", "assistant")[number % 2] for number in range(len(turns))]
        return messages_of(map(Turn, roles, turns), rules)
    spoken = []
    for number, (match, turn) in enumerate(zip(found, turns, strict=True), start=1):
        if match is None:
            raise BadRow(f"turn {number} has no speaker in front (问： or 答：)")
        spoken.append(Turn(SPEAKERS[match.group(1).lower()], turn[match.end() :]))
    return messages_of(spoken, rules)


def _parse_huatuogpt(row: Row, rules: Rules) -> Dialogue:
    if row.get("json_dialogue") is not None:
        turns = row["json_dialogue"]
        turns = literal("json_dialogue", turns, rules) if isinstance(turns, str) else turns
        return Dialogue(_prefixed(turns, rules), frozenset({"json_dialogue"}))
    return Dialogue(_prefixed(row.get("data"), rules), frozenset({"data"}))


def _parse_turns(row: Row, rules: Rules) -> Dialogue:
    key = first_key(row, _TURN_LISTS)
    if key is None:
        raise BadRow("key 'messages' or 'conversations' is missing")
    if not isinstance(row[key], list):
        raise BadRow(f"{key} is {kind_of(row[key])}, expected a list")
    turns = system_turn(row) + [spoken_turn(turn, number) for number, turn in enumerate(row[key], start=1)]
    messages = messages_of(turns, rules)
    reference = row.get("reference")
    if reference is not None:
        checked_text("reference", reference, rules)
    fields = row.get("fields")
    if fields is not None and not isinstance(fields, Mapping):
        raise BadRow(f"fields is {kind_of(fields)}, expected a mapping")
    return Dialogue(messages, frozenset({key, "system", "reference", "fields"}), reference, fields or {})


def _parse_alpaca(row: Row, rules: Rules) -> Dialogue:
    for key in ("instruction", "output"):
        if row.get(key) is None:
            raise BadRow(f"key {key!r} is missing, or null")
    question, extra = one("instruction", row["instruction"]), one("input", row.get("input"))
    answer = one("output", row["output"])
    if isinstance(extra, str) and extra.strip():
        question = f"{checked_text('instruction', question, rules)}\n{extra}"
    turns = [
        *system_turn(row),
        *history_turns(row.get("history"), rules),
        Turn("user", question),
        Turn("assistant", answer),
    ]
    used = frozenset({"instruction", "input", "output", "history", "system"})
    return Dialogue(messages_of(turns, rules), used)


def _parse_qa(row: Row, rules: Rules) -> Dialogue:
    question, answer = first_key(row, QUESTIONS), first_key(row, ANSWERS)
    if question is None:
        raise BadRow("no question: there is no key like 'question', 'ask' or 'query' with a value")
    turns = [*system_turn(row), *history_turns(row.get("history"), rules), Turn("user", one(question, row[question]))]
    if answer is not None:
        turns.append(Turn("assistant", one(answer, row[answer])))
    return Dialogue(messages_of(turns, rules), frozenset({question, answer or question, "history", "system"}))


def _parse_doctorglm(row: Row, rules: Rules) -> Dialogue:
    rounds = row.get("paragraph")
    if not isinstance(rounds, list):
        raise BadRow(f"paragraph is {kind_of(rounds)}, expected a list")
    turns = []
    for number, item in enumerate(rounds, start=1):
        if not isinstance(item, Mapping) or "q" not in item or "a" not in item:
            raise BadRow(f"item {number} of paragraph isn't a mapping with 'q' and 'a'")
        answer = item["a"]
        if isinstance(answer, list) and answer and all(isinstance(line, str) for line in answer):
            answer = "\n".join(answer)  # the lines of one answer
        turns += [Turn("user", item["q"]), Turn("assistant", answer)]
    return Dialogue(messages_of(turns, rules), frozenset({"paragraph"}))


def _has_turns(row: Row, role: str) -> bool:
    key = first_key(row, _TURN_LISTS)
    turns = row[key] if key is not None else None
    return isinstance(turns, list) and any(isinstance(turn, Mapping) and role in turn for turn in turns)


DIALOGUES = {
    "huatuogpt": Format(lambda row: isinstance(row.get("data"), list) or "json_dialogue" in row, _parse_huatuogpt),
    "doctorglm": Format(lambda row: isinstance(row.get("paragraph"), list), _parse_doctorglm),
    "sharegpt": Format(lambda row: _has_turns(row, "from"), _parse_turns),
    "messages": Format(lambda row: first_key(row, _TURN_LISTS) is not None, _parse_turns),
    "alpaca": Format(lambda row: "instruction" in row and "output" in row, _parse_alpaca),
    "qa": Format(lambda row: first_key(row, QUESTIONS) is not None, _parse_qa),
}
"""Formats of dialogues, those with the rarer keys first."""
