"""The consultation prompts: built to the byte, balanced, and told apart by the question rule."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from rayrl.rewards.questions import clarifying_question, items_asked, questions_to_patient
from rayrl.rewards.rules import language_match, presentation, repetition
from rayrl.rewards.text import units
from rayrl.types import PromptRow

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = ["en", "zh"]


def rows_of(language: str) -> list[PromptRow]:
    path = ROOT / "rayrl" / "assets" / f"consultations_{language}.jsonl"
    return [PromptRow(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def prompt_text(row: PromptRow) -> str:
    return " ".join(message["content"] for message in row.messages)


def test_the_script_gives_the_shipped_bytes(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "build_consultations.py"
    subprocess.run([sys.executable, str(script), "--output", str(tmp_path)], check=True, timeout=60)
    for language in LANGUAGES:
        name = f"consultations_{language}.jsonl"
        assert (tmp_path / name).read_bytes() == (ROOT / "rayrl" / "assets" / name).read_bytes()


@pytest.mark.parametrize(("language", "num_rows", "num_conditions"), [("en", 480, 60), ("zh", 240, 30)])
def test_there_are_enough_and_all_differ(language: str, num_rows: int, num_conditions: int) -> None:
    rows = rows_of(language)
    assert len(rows) >= num_rows
    assert len({row.id for row in rows}) == len(rows)
    assert len({prompt_text(row) for row in rows}) == len(rows)
    assert len({row.fields["condition"] for row in rows}) >= num_conditions
    assert len({row.fields["department"] for row in rows}) >= 12
    assert {row.fields["language"] for row in rows} == {language}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_halves_are_balanced(language: str) -> None:
    rows = rows_of(language)
    by_condition = Counter((row.fields["condition"], not row.fields["missing_info"]) for row in rows)
    assert set(by_condition.values()) == {4}
    turns = Counter((len(row.messages), not row.fields["missing_info"]) for row in rows)
    assert turns[3, True] == turns[3, False] == len(rows) // 8
    for row in rows:
        roles = [message["role"] for message in row.messages]
        assert roles == ["user", "assistant", "user"][: len(roles)] and roles[-1] == "user"
        assert len(row.fields["missing_info"]) in (0, 2, 3)


@pytest.mark.parametrize(("language", "prompt_limit", "reference"), [("en", 120, (25, 70)), ("zh", 160, (30, 110))])
def test_lengths(language: str, prompt_limit: int, reference: tuple[int, int]) -> None:
    for row in rows_of(language):
        assert len(units(prompt_text(row))) <= prompt_limit, row.id
        assert reference[0] <= len(units(row.reference or "")) <= reference[1], row.id


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_phrase_is_left_unfilled(language: str) -> None:
    for row in rows_of(language):
        assert not re.search(r"[{}]|\bNone\b|  ", f"{prompt_text(row)} {row.reference}"), row.id


@pytest.mark.parametrize("language", LANGUAGES)
def test_references_do_what_the_rules_pay_for(language: str) -> None:
    for row in rows_of(language):
        assert row.reference is not None
        assert clarifying_question(row, row.reference) == 1.0, row.id
        assert presentation(row, row.reference) == 1.0, row.id
        assert language_match(row, row.reference) == 1.0, row.id
        assert repetition(row, row.reference) > 0.9, row.id
        asked, missing = questions_to_patient(row.reference), row.fields["missing_info"]
        assert len(asked) == len(missing) <= 3
        assert items_asked(asked, missing) == set(missing), row.id


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_reference_of_the_other_half_scores_low(language: str) -> None:
    rows = rows_of(language)
    complete = [row for row in rows if not row.fields["missing_info"]]
    incomplete = [row for row in rows if row.fields["missing_info"]]
    for full, lacking in zip(complete, incomplete, strict=True):
        assert full.reference is not None and lacking.reference is not None
        assert clarifying_question(full, lacking.reference) == 0.0
        assert clarifying_question(lacking, full.reference) == 0.0


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_single_word_tells_the_halves_apart(language: str) -> None:
    rows = rows_of(language)
    seen: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for row in rows:
        found = units(prompt_text(row))
        seen[not row.fields["missing_info"]].update({*found, *map("".join, pairwise(found))})
    half = len(rows) / 2
    for word in seen[True] | seen[False]:
        difference = abs(seen[True][word] - seen[False][word])
        assert 0.5 + difference / half / 2 < 0.85, word
