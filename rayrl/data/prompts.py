"""Prompt rows from JSONL and Parquet, each checked; a bad row is put aside with its reason and never stops the reading.

A row is `id, messages, reference (optional), fields (optional mapping)`, as types.PromptRow shows. Rows are refused
rather than repaired, and other keys are refused with a hint, since `missing_info` beside `fields` instead of in it
would otherwise be lost without a word. Not here: the held-out split (split.py), tokens (chat.py).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayrl.errors import UserError
from rayrl.types import Message, PromptRow

_ASSETS = Path(__file__).parent.parent / "assets"
BUILTIN_PROMPTS = {
    "consultations-en": _ASSETS / "consultations_en.jsonl",
    "consultations-zh": _ASSETS / "consultations_zh.jsonl",
}
ROLES = ("system", "user", "assistant")
SUFFIXES = (".jsonl", ".parquet")
REJECTED_FILE = "rejected.jsonl"

_ROW_KEYS = ("id", "messages", "reference", "fields")
# C0 and C1 controls but tab, line feed and carriage return; and halves of UTF-16 pairs, which JSON can escape
# into a text that no encoding takes.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Rejected:
    """A row that wasn't taken. Example: Rejected("prompts.jsonl", 7, "messages is empty")"""

    file: str
    line: int
    """Line of a JSONL file, row of a Parquet file; from 1."""
    reason: str


@dataclass(frozen=True)
class ReadResult:
    """What a source held, in the order of its files and lines."""

    source: str
    """What was asked for: a path or a built-in's name."""
    rows: list[PromptRow]
    rejected: list[Rejected]
    places: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """File and line of every row taken, by its id."""


def read_prompts(source: str | Path) -> ReadResult:
    """Read a .jsonl or .parquet file, a folder of them (in order of their names), or a built-in prompt set.

    JSONL is UTF-8, with or without a byte order mark; blank lines are skipped. Raises UserError where there is no such
    file, no file in the folder, or a Parquet file that can't be opened. Rows that break a rule are in `rejected`.
    """
    rows: list[PromptRow] = []
    rejected: list[Rejected] = []
    places: dict[str, tuple[str, int]] = {}
    for file in _files(source):
        values = _parquet_values(file) if file.suffix == ".parquet" else jsonl_values(file)
        for line, value in values:
            row = value if isinstance(value, BadLine) else check_row(value)
            if isinstance(row, PromptRow) and row.id in places:
                first_file, first_line = places[row.id]
                row = BadLine(f"id {_short(row.id)} is already taken by {first_file}, line {first_line}")
            if isinstance(row, PromptRow):
                rows.append(row)
                places[row.id] = (str(file), line)
            else:
                rejected.append(Rejected(str(file), line, str(row)))
    return ReadResult(str(source), rows, rejected, places)


def check_row(value: Any) -> PromptRow | str:
    """The prompt row that a decoded JSON value stands for, or the reason, in words, why it isn't one.

    Null values of `reference` and inside `fields` count as left out: Parquet can't tell the two apart.
    """
    if not isinstance(value, Mapping):
        return f"the row is {_kind(value)}, expected a mapping"
    for key in ("id", "messages"):
        if key not in value:
            return f"key {key!r} is missing"
    unknown = [key for key in value if key not in _ROW_KEYS and value[key] is not None]
    if unknown:
        return f"unknown key {_short(unknown[0])}: what rewards should see belongs in 'fields'"
    row_id, messages = value["id"], value["messages"]
    reference, fields = value.get("reference"), value.get("fields")
    reason = _why_not_text("id", row_id) or _why_not_conversation(messages)
    if reason is None and reference is not None:
        reason = _why_not_text("reference", reference)
    if reason is None and fields is not None and not isinstance(fields, Mapping):
        reason = f"fields is {_kind(fields)}, expected a mapping"
    if reason is not None:
        return reason
    turns = [Message(role=turn["role"], content=turn["content"]) for turn in messages]
    return PromptRow(row_id, turns, reference, {k: v for k, v in (fields or {}).items() if v is not None})


def check_rejected(result: ReadResult, max_fraction: float) -> None:
    """Raise UserError where nothing was read, or more than `max_fraction` of the rows (0 to 1) were rejected."""
    bad, total = len(result.rejected), len(result.rejected) + len(result.rows)
    if total == 0:
        raise UserError(f"{result.source} holds no prompts: every file is empty.")
    if result.rows and bad / total <= max_fraction:
        return
    first = "; ".join(f"{bad_row.file}, line {bad_row.line}: {bad_row.reason}" for bad_row in result.rejected[:3])
    limit = "none is usable" if not result.rows else f"more than the {max_fraction:.1%} of data.max_rejected_fraction"
    raise UserError(f"{result.source}: {bad} of {total} rows were rejected, {limit}. First: {first}")


def write_rejected(path: str | Path, rejected: Sequence[Rejected]) -> None:
    """Write one JSON object `file, line, reason` a row to `path`, replacing it whole."""
    draft = Path(f"{path}.partial")
    with draft.open("w", encoding="utf-8", errors="backslashreplace") as out:
        for row in rejected:
            json.dump({"file": row.file, "line": row.line, "reason": row.reason}, out, ensure_ascii=False)
            out.write("\n")
    os.replace(draft, path)


class BadLine(str):
    """The reason, in words, why a line couldn't even be decoded, or can't be taken."""


def _files(source: str | Path) -> list[Path]:
    path = BUILTIN_PROMPTS.get(str(source), Path(source).expanduser())
    if not path.exists():
        raise UserError(f"No prompts at {path}: the file doesn't exist (built-in sets: {', '.join(BUILTIN_PROMPTS)}).")
    if path.is_dir():
        found = (f for f in path.iterdir() if f.suffix in SUFFIXES and not f.name.startswith((".", "_")))
        files = sorted(f for f in found if f.name != REJECTED_FILE)
        if not files:
            raise UserError(f"The folder {path} holds no .jsonl or .parquet file.")
        return files
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: prompts are read from .jsonl and .parquet files, not from {path.suffix or 'this'!r}.")
    return [path]


def jsonl_values(file: Path) -> Iterator[tuple[int, Any]]:
    """Line number, from 1, and decoded value of every line that isn't blank; a BadLine where one can't be decoded."""
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw.strip():
                yield number, _decode(raw)


def _decode(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadLine(f"not UTF-8: byte {error.start + 1} of the line is 0x{raw[error.start]:02x}")
    except json.JSONDecodeError as error:
        return BadLine(f"not JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets thousands deep
        return BadLine(f"not readable as JSON: {error}")


def _parquet_values(file: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                for value in _batch_values(batch):
                    number += 1
                    yield number, value
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} can't be read as Parquet after row {number}: {error}") from error


def _batch_values(batch: Any) -> list[Any]:
    """Rows of an Arrow batch ("lossy": of a map's repeated keys the last counts, as in JSON)."""
    try:
        return list(batch.to_pylist(maps_as_pydicts="lossy"))
    except UnicodeDecodeError as error:  # Parquet doesn't check its text; find the rows that are to blame
        if batch.num_rows == 1:
            return [BadLine(f"not UTF-8: byte 0x{error.object[error.start]:02x}")]
        return [value for row in range(batch.num_rows) for value in _batch_values(batch.slice(row, 1))]


def _why_not_conversation(messages: Any) -> str | None:
    if not isinstance(messages, list):
        return f"messages is {_kind(messages)}, expected a list"
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
        return f"{name} is {_kind(turn)}, expected a mapping with 'role' and 'content'"
    for key in ("role", "content"):
        if key not in turn:
            return f"{name} has no {key!r}"
    if not isinstance(turn["role"], str) or turn["role"] not in ROLES:
        return f"{name} has the role {_short(turn['role'])}, expected one of {', '.join(ROLES)}"
    if turn["role"] == "system" and number > 1:
        return f"{name} is a system message, which may only come first"
    unknown = [key for key in turn if key not in ("role", "content") and turn[key] is not None]
    if unknown:
        return f"{name} has the unknown key {_short(unknown[0])}"
    return _why_not_text(f"content of {name}", turn["content"])


def _why_not_text(name: str, value: Any) -> str | None:
    if not isinstance(value, str):
        return f"{name} is {_kind(value)}, expected text"
    if not value.strip():
        return f"{name} is empty"
    found = _NOT_TEXT.search(value)
    if found is None and name == "id":
        found = re.search("[\t\n\r]", value)
    if found is not None:
        return f"{name} has the control character U+{ord(found.group()):04X} at position {found.start() + 1}"
    return None


def _kind(value: Any) -> str:
    kinds: Iterable[tuple[type | tuple[type, ...], str]] = (
        (type(None), "null"),
        (bool, "a truth value"),
        ((int, float), "a number"),
        (str, "text"),
        (list, "a list"),
        (Mapping, "a mapping"),
    )
    return next((words for kind, words in kinds if isinstance(value, kind)), f"a {type(value).__name__}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
