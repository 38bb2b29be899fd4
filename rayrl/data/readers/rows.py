"""What every reader shares: the rows it took, those it didn't and why, and the checks of a row's text.

Rows are refused rather than repaired, and a reason never quotes a patient's words: it names keys, kinds and places.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from rayrl.errors import UserError
from rayrl.types import Message, Origin, PromptRow

ROLES = ("system", "user", "assistant")
ROW_KEYS = ("id", "messages", "reference", "fields")
# C0 and C1 controls but tab, line feed and carriage return; and halves of UTF-16 pairs, which JSON can escape
# into a text that no encoding takes.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
_WORDS = re.compile("[\u3400-\u9fff]{9}")
"""So many Chinese characters in a row are a sentence."""

T = TypeVar("T")


@dataclass(frozen=True)
class Rejected:
    """A row that wasn't taken. Example: Rejected("prompts.jsonl", 7, "messages is empty")"""

    file: str
    line: int
    """Line of a text file, row of a table, item of a JSON list; from 1."""
    reason: str


@dataclass(frozen=True)
class Read(Generic[T]):
    """What a source held, in the order of its files and lines."""

    rows: list[T]
    rejected: list[Rejected]
    origins: list[Origin] = field(default_factory=list)
    """Where each of `rows` comes from."""
    source: str = ""
    """The source's name in the configuration."""


class BadRow(ValueError):
    """The reason, in words, why a row can't be taken."""


class BadLine(str):
    """The reason, in words, why a line couldn't even be decoded, or can't be taken."""


def check_read(read: Read[Any], max_fraction: float, key: str = "max_rejected_fraction") -> None:
    """Raise UserError where nothing was read, or more than `max_fraction` of the rows (0 to 1) were rejected.

    `key`: the configuration's name of that limit.
    """
    check_share(read.source, "rows", len(read.rows), read.rejected, max_fraction, key)


def check_share(
    source: str, what: str, num_rows: int, rejected: Sequence[Rejected], max_fraction: float, key: str
) -> None:
    """As `check_read`, of counts."""
    total = num_rows + len(rejected)
    if total == 0:
        raise UserError(f"{source} holds no {what}: every file is empty.")
    if num_rows and len(rejected) / total <= max_fraction:
        return
    first = "; ".join(f"{row.file}, line {row.line}: {row.reason}" for row in rejected[:3])
    limit = f"more than the {max_fraction:.1%} of {key}" if num_rows else "none is usable"
    raise UserError(f"{source}: {len(rejected)} of {total} rows were rejected, {limit}. First: {first}")


def write_rejected(path: str | Path, rejected: Sequence[Rejected]) -> None:
    """Write one JSON object `file, line, reason` a row to `path`, replacing it whole."""
    draft = Path(f"{path}.partial")
    with draft.open("w", encoding="utf-8", errors="backslashreplace") as out:
        for row in rejected:
            json.dump({"file": row.file, "line": row.line, "reason": row.reason}, out, ensure_ascii=False)
            out.write("\n")
    os.replace(draft, path)


def check_row(value: Any) -> PromptRow | str:
    """The prompt row that a decoded JSON value stands for, or the reason, in words, why it isn't one.

    Null values of `reference` and inside `fields` count as left out: Parquet can't tell the two apart.
    """
    if not isinstance(value, Mapping):
        return f"the row is {kind_of(value)}, expected a mapping"
    for key in ("id", "messages"):
        if key not in value:
            return f"key {key!r} is missing"
    unknown = [key for key in value if key not in ROW_KEYS and value[key] is not None]
    if unknown:
        return f"unknown key {short(unknown[0])}: what rewards should see belongs in 'fields'"
    row_id, messages = value["id"], value["messages"]
    reference, fields = value.get("reference"), value.get("fields")
    reason = why_not_text("id", row_id) or _why_not_conversation(messages)
    if reason is None and reference is not None:
        reason = why_not_text("reference", reference)
    if reason is None and fields is not None and not isinstance(fields, Mapping):
        reason = f"fields is {kind_of(fields)}, expected a mapping"
    if reason is None and fields and _HALF_A_PAIR.search(json.dumps(fields, ensure_ascii=False, default=str)):
        reason = "fields hold half of a UTF-16 pair"
    if reason is not None:
        return reason
    turns = [Message(role=turn["role"], content=turn["content"]) for turn in messages]
    return PromptRow(row_id, turns, reference, {k: v for k, v in (fields or {}).items() if v is not None})


def why_not_text(name: str, value: Any) -> str | None:
    """Why `value` isn't a text that can be learnt from, or None where it is. An id may hold no line break either."""
    if not isinstance(value, str):
        return f"{name} is {kind_of(value)}, expected text"
    if not value.strip():
        return f"{name} is empty"
    found = _NOT_TEXT.search(value)
    if found is None and name == "id":
        found = re.search("[\t\n\r]", value)
    if found is not None:
        return f"{name} has the control character U+{ord(found.group()):04X} at position {found.start() + 1}"
    return None


def why_not_encoded(name: str, text: str) -> str | None:
    """Why no encoding takes the text, or None where one does."""
    return f"{name} holds half of a UTF-16 pair" if _HALF_A_PAIR.search(text) else None


def kind_of(value: Any) -> str:
    """What a decoded value is, in words: "a list", "null"."""
    kinds: Iterable[tuple[type | tuple[type, ...], str]] = (
        (type(None), "null"),
        (bool, "a truth value"),
        ((int, float), "a number"),
        (str, "text"),
        (list, "a list"),
        (Mapping, "a mapping"),
    )
    return next((words for kind, words in kinds if isinstance(value, kind)), f"a {type(value).__name__}")


def short(value: Any) -> str:
    """A name as it stands; of what is no name, and so may be somebody's words, only what it is."""
    return (
        repr(value)
        if re.fullmatch(r"[\w.:/#-]{1,40}", str(value)) and not _WORDS.search(str(value))
        else kind_of(value)
    )


def _why_not_conversation(messages: Any) -> str | None:
    if not isinstance(messages, list):
        return f"messages is {kind_of(messages)}, expected a list"
    if not messages:
        return "messages is empty"
    for number, turn in enumerate(messages, start=1):
        reason = _why_not_turn(turn, number)
        if reason is not None:
            return reason
    if messages[-1]["role"] != "user":
        return f"the conversation ends with the {messages[-1]['role']}'s turn, expected the user's"
    return None


def _why_not_turn(turn: Any, number: int) -> str | None:
    name = f"message {number}"
    if not isinstance(turn, Mapping):
        return f"{name} is {kind_of(turn)}, expected a mapping with 'role' and 'content'"
    for key in ("role", "content"):
        if key not in turn:
            return f"{name} has no {key!r}"
    if not isinstance(turn["role"], str) or turn["role"] not in ROLES:
        return f"{name} has the role {short(turn['role'])}, expected one of {', '.join(ROLES)}"
    if turn["role"] == "system" and number > 1:
        return f"{name} is a system message, which may only come first"
    unknown = [key for key in turn if key not in ("role", "content") and turn[key] is not None]
    if unknown:
        return f"{name} has the unknown key {short(unknown[0])}"
    return why_not_text(f"content of {name}", turn["content"])
