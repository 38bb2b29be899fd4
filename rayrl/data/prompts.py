"""Prompt rows from JSONL and Parquet, each checked; a bad row is put aside with its reason and never stops the reading.

A row is `id, messages, reference (optional), fields (optional mapping)`, as types.PromptRow shows. Rows are refused
rather than repaired, and other keys are refused with a hint, since `missing_info` beside `fields` instead of in it
would otherwise be lost without a word. Not here: the held-out split (split.py), tokens (chat.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rayrl.data.readers.rows import BadLine, Rejected, check_row, check_share, short, write_rejected
from rayrl.data.readers.values import jsonl_values, parquet_values
from rayrl.errors import UserError
from rayrl.types import PromptRow

__all__ = [
    "BadLine",
    "ReadResult",
    "Rejected",
    "check_rejected",
    "check_row",
    "jsonl_values",
    "read_prompts",
    "write_rejected",
]

_ASSETS = Path(__file__).parent.parent / "assets"
BUILTIN_PROMPTS = {
    "consultations-en": _ASSETS / "consultations_en.jsonl",
    "consultations-zh": _ASSETS / "consultations_zh.jsonl",
}
SUFFIXES = (".jsonl", ".parquet")
REJECTED_FILE = "rejected.jsonl"


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
        values = parquet_values(file) if file.suffix == ".parquet" else jsonl_values(file)
        for line, value in values:
            row = value if isinstance(value, BadLine) else check_row(value)
            if isinstance(row, PromptRow) and row.id in places:
                first_file, first_line = places[row.id]
                row = BadLine(f"id {short(row.id)} is already taken by {first_file}, line {first_line}")
            if isinstance(row, PromptRow):
                rows.append(row)
                places[row.id] = (str(file), line)
            else:
                rejected.append(Rejected(str(file), line, str(row)))
    return ReadResult(str(source), rows, rejected, places)


def check_rejected(result: ReadResult, max_fraction: float) -> None:
    """Raise UserError where nothing was read, or more than `max_fraction` of the rows (0 to 1) were rejected."""
    check_share(result.source, "prompts", len(result.rows), result.rejected, max_fraction, "data.max_rejected_fraction")


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
