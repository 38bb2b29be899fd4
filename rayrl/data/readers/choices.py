"""Formats of preferences: pairs of a chosen and a rejected answer, and lists of answers from best to worst.

One parser each, from a decoded row to a prompt with K ranked answers. The label tool's files have their own module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rayrl.data.readers.dialogues import QUESTIONS, Row, first_key, history_turns, one, system_turn
from rayrl.data.readers.rows import BadRow, kind_of
from rayrl.data.readers.turns import Rules, Turn, checked_text, messages_of, spoken_turn
from rayrl.types import Message

_CHOSEN = ("chosen", "response_chosen")
_REJECTED = ("rejected", "response_rejected")
_TURN_LISTS = ("messages", "conversations", "prompt")
_SPOKEN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]*")


@dataclass(frozen=True)
class Choice:
    """A prompt and its ranked answers. `used`: the keys that are taken up; all others are the prompt's fields."""

    messages: list[Message]
    answers: list[str]
    ranks: list[int]
    used: frozenset[str]
    reference: str | None = None
    margin: float | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    prompt_id: str | None = None


@dataclass(frozen=True)
class ChoiceFormat:
    """One format of preferences."""

    matches: Callable[[Row], bool]
    parse: Callable[[Row, Rules], Choice]


def prompt_messages(turns: list[Turn], rules: Rules) -> list[Message]:
    """Checked messages that end with the user's turn."""
    messages = messages_of(turns, rules)
    if messages[-1]["role"] != "user":
        raise BadRow("the prompt ends with the assistant's turn, expected the user's")
    return messages


def check_different(answers: list[str]) -> None:
    """BadRow where two answers have one text: which of them was meant can't be told."""
    texts = [" ".join(answer.split()) for answer in answers]
    for number, text in enumerate(texts, start=1):
        if text in texts[: number - 1]:
            raise BadRow(f"answers {texts.index(text) + 1} and {number} have the same text; set aside")


def _parse_pair(row: Row, rules: Rules) -> Choice:
    chosen_key, rejected_key = first_key(row, _CHOSEN), first_key(row, _REJECTED)
    if chosen_key is None or rejected_key is None:
        raise BadRow(f"key {'chosen' if chosen_key is None else 'rejected'!r} is missing, or null")
    turns, used = _prompt_turns(row, rules)
    before_chosen, chosen = _answer(chosen_key, row[chosen_key], spoken=not turns)
    before_rejected, rejected = _answer(rejected_key, row[rejected_key], spoken=not turns)
    if before_chosen != before_rejected:
        raise BadRow("chosen and rejected answer different dialogues")
    messages = prompt_messages(before_chosen or turns, rules)
    answers = [checked_text(chosen_key, chosen, rules), checked_text(rejected_key, rejected, rules)]
    check_different(answers)
    reference, fields = row.get("reference"), row.get("fields")
    if reference is not None:
        checked_text("reference", reference, rules)
    if fields is not None and not isinstance(fields, Mapping):
        raise BadRow(f"fields is {kind_of(fields)}, expected a mapping")
    group = row.get("prompt_id", row.get("group"))
    return Choice(
        messages,
        answers,
        [1, 2],
        used | {chosen_key, rejected_key, "reference", "fields", "margin", "prompt_id", "group"},
        reference,
        _margin(row.get("margin")),
        fields or {},
        group if isinstance(group, str) else None,
    )


def _margin(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise BadRow(f"margin is {kind_of(value)}, expected a number of at least 0")
    return float(value)


def _prompt_turns(row: Row, rules: Rules) -> tuple[list[Turn], frozenset[str]]:
    """The prompt's turns, perhaps none, and the keys they are in."""
    key = next((key for key in _TURN_LISTS if isinstance(row.get(key), list)), None)
    if key is not None:
        turns = [spoken_turn(turn, number) for number, turn in enumerate(row[key], start=1)]
        return [*system_turn(row), *turns], frozenset({key, "system"})
    key = first_key(row, QUESTIONS)
    if key is None:
        return [], frozenset()
    question = one(key, row[key])
    extra = one("input", row.get("input"))
    if isinstance(question, str) and isinstance(extra, str) and extra.strip():
        question = f"{question}\n{extra}"
    turns = _dialogue_text(question) or [Turn("user", question)]
    turns = [*system_turn(row), *history_turns(row.get("history"), rules), *turns]
    return turns, frozenset({key, "input", "history", "system"})


def _answer(name: str, value: Any, *, spoken: bool) -> tuple[list[Turn], Any]:
    """(turns before the answer, the answer), out of a text, a turn or a list of turns."""
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list):
        turns = [spoken_turn(turn, number) for number, turn in enumerate(value, start=1)]
    elif isinstance(value, str) and spoken:
        turns = _dialogue_text(value)
        if not turns:
            raise BadRow(f"no prompt: neither a key like 'conversations' or 'question', nor turns in {name}")
    else:
        return [], value
    if not turns or turns[-1].role != "assistant":
        raise BadRow(f"{name} doesn't end with the assistant's turn")
    return turns[:-1], turns[-1].content


def _dialogue_text(text: Any) -> list[Turn]:
    """Turns of a text like "Human: ... Assistant: ..." with blank lines between; none where it isn't one."""
    if not isinstance(text, str) or not re.match(r"\s*Human:", text):
        return []
    parts = _SPOKEN.split(text.strip())
    return [
        Turn({"Human": "user", "Assistant": "assistant"}[who], said)
        for who, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _parse_ranked_outputs(row: Row, rules: Rules) -> Choice:
    answers = row.get("output")
    if not isinstance(answers, list) or len(answers) < 2:
        raise BadRow("output isn't a list of two answers or more, best first")
    texts = [checked_text(f"item {number} of output", text, rules) for number, text in enumerate(answers, start=1)]
    check_different(texts)
    turns, used = _prompt_turns(row, rules)
    return Choice(prompt_messages(turns, rules), texts, list(range(1, len(texts) + 1)), used | {"output"})


def ranked_columns(row: Row) -> list[str]:
    """The row's keys rank1, rank2, ..., in order."""
    names: list[str] = []
    while f"rank{len(names) + 1}" in row:
        names.append(f"rank{len(names) + 1}")
    return names


CHOICES = {
    "preferences": ChoiceFormat(
        lambda row: first_key(row, _CHOSEN) is not None or first_key(row, _REJECTED) is not None, _parse_pair
    ),
    "ranked_outputs": ChoiceFormat(
        lambda row: isinstance(row.get("output"), list) and len(row["output"]) > 1 and bool(first_key(row, QUESTIONS)),
        _parse_ranked_outputs,
    ),
}
"""Formats of preferences, those with the rarer keys first."""
