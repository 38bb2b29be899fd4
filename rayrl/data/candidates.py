"""Sampled answers on disk: `candidates-*.jsonl`, each line a prompt with its K answers, still unjudged.

    {"id", "messages", "reference", "fields", "answers": [K texts], "model"}

A shard is written whole and put in place by rename, so that a stage that was cut finds whole shards only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrl.data.prompts import BadLine, Rejected, check_row, jsonl_values
from rayrl.data.readers.rows import short, why_not_encoded
from rayrl.errors import UserError
from rayrl.types import Candidates

PATTERN = "candidates-*.jsonl"


@dataclass(frozen=True)
class CandidatesRead:
    """What a folder held, in the order of its files and lines."""

    rows: list[Candidates]
    rejected: list[Rejected]
    places: Mapping[str, tuple[str, int]]
    """File and line of every row taken, by its prompt's id."""


def write_candidates(path: str | Path, rows: Iterable[Candidates]) -> None:
    """Writes one shard, replacing it whole."""
    draft = Path(f"{path}.draft")
    with draft.open("w", encoding="utf-8") as out:
        for row in rows:
            prompt = row.prompt
            value = {
                "id": prompt.id,
                "messages": prompt.messages,
                "reference": prompt.reference,
                "fields": dict(prompt.fields),
                "answers": row.answers,
                "model": row.model,
            }
            out.write(json.dumps(value, ensure_ascii=False) + "\n")
    os.replace(draft, path)


def read_candidates(source: str | Path) -> CandidatesRead:
    """Reads one shard, or all of a folder in order of their names.

    A row that breaks a rule, or repeats a prompt's id, is in `rejected`. Raises UserError where there is no shard.
    """
    rows: list[Candidates] = []
    rejected: list[Rejected] = []
    places: dict[str, tuple[str, int]] = {}
    for file in _shards(Path(source).expanduser()):
        for line, value in jsonl_values(file):
            row = _check(value)
            if isinstance(row, Candidates) and row.prompt.id in places:
                row = "id {} is already taken by {}, line {}".format(short(row.prompt.id), *places[row.prompt.id])
            if isinstance(row, str):
                rejected.append(Rejected(str(file), line, row))
            else:
                rows.append(row)
                places[row.prompt.id] = (str(file), line)
    return CandidatesRead(rows, rejected, places)


def _shards(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    shards = sorted(source.glob(PATTERN)) if source.is_dir() else []
    if not shards:
        raise UserError(f"{source} holds no {PATTERN}: name the output_dir of `rayrl sample`, or one such file")
    return shards


def _check(value: Any) -> Candidates | str:
    if isinstance(value, BadLine) or not isinstance(value, Mapping):
        return value if isinstance(value, BadLine) else str(check_row(value))
    rest = dict(value)
    answers, model = rest.pop("answers", None), rest.pop("model", None)
    prompt = check_row(rest)
    if isinstance(prompt, str):
        return prompt
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        return "answers isn't a list of texts"
    if not answers:
        return "answers is empty"
    reason = next(filter(None, (why_not_encoded(f"answer {i}", text) for i, text in enumerate(answers, 1))), None)
    if reason is not None:
        return reason
    if not isinstance(model, str):
        return "model isn't a text"
    return Candidates(prompt, answers, model)
