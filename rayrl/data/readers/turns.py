"""Turns of a dialogue, in whatever words a source has for its speakers, to checked messages.

A dialogue is taken as it stands or not at all, unless `mend_turns` says otherwise: patient and doctor alternate, the
patient begins, and both speak.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rayrl.data.readers.rows import BadRow, kind_of, short, why_not_text
from rayrl.types import Message

SPEAKERS = {
    "system": "system",
    "系统": "system",
    **dict.fromkeys(("user", "human", "patient", "client", "问", "病人", "患者", "用户"), "user"),
    **dict.fromkeys(("assistant", "gpt", "doctor", "bot", "chatgpt", "model", "答", "医生"), "assistant"),
    "huatuogpt": "assistant",
}
"""Who speaks, in lower case -> the message's role."""
_ROLE_KEYS = ("role", "from", "speaker")
_TEXT_KEYS = ("content", "value", "text")


@dataclass(frozen=True)
class Rules:
    """What a source asks of its rows. See SourceConfig."""

    mend_turns: bool = False
    max_chars: int = 100_000
    items: Mapping[str, Any] = field(default_factory=dict)
    """The label tool's items, by their key."""


@dataclass(frozen=True)
class Turn:
    """One turn before it is checked. Example: Turn("user", "I have a headache.")"""

    role: str
    content: Any


def checked_text(name: str, value: Any, rules: Rules) -> str:
    """`value`, or BadRow where it isn't a text of permitted length."""
    reason = why_not_text(name, value)
    if reason is not None:
        raise BadRow(reason)
    if len(value) > rules.max_chars:
        raise BadRow(f"{name} has {len(value)} characters, more than max_chars, {rules.max_chars}")
    text: str = value
    return text


def speaker(name: Any, where: str) -> str:
    """The role that a speaker's name stands for; BadRow where it is none."""
    role = SPEAKERS.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        said = short(name) if len(short(name)) <= 24 else kind_of(name)
        raise BadRow(f"{where} has the role {said}, expected one like user, human, patient, assistant, doctor")
    return role


def spoken_turn(value: Any, number: int) -> Turn:
    """A turn out of `{role|from|speaker, content|value|text}`; BadRow where it isn't one."""
    where = f"turn {number}"
    if not isinstance(value, Mapping):
        raise BadRow(f"{where} is {kind_of(value)}, expected a mapping with a role and a text")
    role = next((key for key in _ROLE_KEYS if value.get(key) is not None), None)
    text = next((key for key in _TEXT_KEYS if value.get(key) is not None), None)
    if role is None:
        raise BadRow(f"{where} has no role")
    if text is None:
        raise BadRow(f"{where} has no text")
    return Turn(speaker(value[role], where), value[text])


def messages_of(turns: Iterable[Turn], rules: Rules) -> list[Message]:
    """Checked messages: perhaps a system message, then user and assistant in turns, whoever comes last.

    Raises BadRow where a turn is empty, too long or no text, where turns don't alternate, or where one side is silent.
    """
    given = list(turns)
    if not given:
        raise BadRow("the dialogue is empty")
    system = given[0].role == "system"
    if system and isinstance(given[0].content, str | None) and not (given[0].content or "").strip():
        given, system = given[1:], False
    messages = []
    for number, turn in enumerate(given, start=1):
        content = checked_text(f"turn {number}, the {turn.role}'s,", turn.content, rules)
        if turn.role == "system" and number > 1:
            raise BadRow(f"turn {number} is a system message, which may only come first")
        messages.append(Message(role=turn.role, content=content))  # type: ignore[typeddict-item]
    head, talk = (messages[:1], messages[1:]) if system else ([], messages)
    talk = _mended(talk) if rules.mend_turns else talk
    _check_order(talk)
    return head + talk


def _mended(talk: list[Message]) -> list[Message]:
    joined: list[Message] = []
    for message in talk:
        if joined and joined[-1]["role"] == message["role"]:
            content = f"{joined[-1]['content']}\n{message['content']}"
            joined[-1] = Message(role=message["role"], content=content)
        elif joined or message["role"] == "user":
            joined.append(message)
    return joined


def _check_order(talk: list[Message]) -> None:
    if not any(message["role"] == "user" for message in talk):
        raise BadRow("nobody asks: the dialogue has no user's turn")
    for number, message in enumerate(talk):
        expected = ("user", "assistant")[number % 2]
        if message["role"] != expected:
            if number == 0:
                raise BadRow("the dialogue begins with the assistant's turn, expected the user's (see mend_turns)")
            raise BadRow(f"the turns number {number} and {number + 1} are both the {message['role']}'s")
