"""Which two answers of a prompt are put before a rater: all C(K, 2) of them, or a chosen number.

The choice depends on the seed and the prompt's id alone, so that every rater sees the same pairs and a run that is
started again finds its judge's answers in the cache. Two answers of the same text make no pair.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from rayrl.data.candidates import CandidatesRead
from rayrl.judge.prompts import Subject
from rayrl.types import Candidates, Comparison, Origin, PromptRow, Verdict


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, still unjudged. Example: Pair("en-7/0-1", row, "Rest.", "How long?", origin)"""

    id: str
    prompt: PromptRow
    answer_a: str
    answer_b: str
    origin: Origin
    subject: Subject = "answer"


def verdict_on(
    pair: Pair,
    rater: str,
    verdict: Verdict,
    *,
    margin: float | None = None,
    scores: dict[str, Any] | None = None,
    reason: str | None = None,
) -> Comparison:
    """The pair with a rater's verdict: a row of the store, whose id is `PAIR/RATER`."""
    return Comparison(
        f"{pair.id}/{rater}", pair.prompt, pair.answer_a, pair.answer_b, verdict, margin, rater, scores or {}, reason,
        pair.origin,
    )  # fmt: skip


def choose_pairs(read: CandidatesRead, number: Literal["all"] | int, seed: int) -> tuple[list[Pair], int]:
    """The pairs of every prompt, in order; and how many were left out because both answers have one text.

    `number`: all, or that many a prompt (all where it has fewer).
    """
    pairs: list[Pair] = []
    same = 0
    for row in read.rows:
        possible = list(combinations(range(len(row.answers)), 2))
        differing = [(i, j) for i, j in possible if row.answers[i].strip() != row.answers[j].strip()]
        same += len(possible) - len(differing)
        pairs += [_pair(row, i, j, read) for i, j in _some(differing, number, f"{seed}/{row.prompt.id}")]
    return pairs, same


def form_of(prompt: PromptRow) -> Literal["instruction", "conversation"]:
    """One question, or several turns."""
    turns = sum(message["role"] == "user" for message in prompt.messages)
    return "conversation" if turns > 1 else "instruction"


def _some(pairs: Sequence[tuple[int, int]], number: Literal["all"] | int, seed: str) -> list[tuple[int, int]]:
    if number == "all" or number >= len(pairs):
        return list(pairs)
    return sorted(random.Random(seed).sample(pairs, number))


def _pair(row: Candidates, i: int, j: int, read: CandidatesRead) -> Pair:
    file, line = read.places[row.prompt.id]
    origin = Origin("candidates", "distilled", form_of(row.prompt), file, line)
    return Pair(f"{row.prompt.id}/{i}-{j}", row.prompt, row.answers[i], row.answers[j], origin)
