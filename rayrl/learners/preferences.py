"""Comparisons in tokens: what a reward model is trained and evaluated on, and how its batches are cut.

Each distinct answer of a prompt is held, and encoded by the model, once; pairs point to answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rayrl.algorithms.ranking_loss import PairBatch
from rayrl.types import Rollout


@dataclass(frozen=True)
class Pair:
    """One comparison. Example: Pair(3, 2, False, 0.0, 1.0) says that answer 3 is better than answer 2."""

    better: int
    """Index into PreferenceSet.answers, as is `worse`."""
    worse: int
    tie: bool
    margin: float
    """Distance asked of the two scores."""
    weight: float


@dataclass(frozen=True)
class PreferenceGroup:
    """A prompt with its answers and pairs."""

    prompt_id: str
    rows: list[int]
    """Its answers: indices into PreferenceSet.answers."""
    pairs: list[Pair]


@dataclass(frozen=True)
class PreferenceSet:
    """Prompt and answer in tokens, as PPO's rollouts are (end token included), grouped by prompt."""

    answers: list[Rollout]
    groups: list[PreferenceGroup]

    def num_tokens(self, row: int) -> int:
        """Length of an answer with its prompt."""
        answer = self.answers[row]
        return len(answer.prompt.token_ids_P) + len(answer.response_ids_T)


def cut(data: PreferenceSet, groups: Sequence[int], parts: int) -> list[list[int]]:
    """The groups in `parts` micro-batches, those of like length together, so that little is padding.

    Needs at least as many groups as parts.
    """
    longest = [max(data.num_tokens(row) for row in data.groups[i].rows) for i in groups]
    order = np.argsort(longest, kind="stable")
    return [[groups[i] for i in part] for part in np.array_split(order, parts)]


def pair_batch(data: PreferenceSet, groups: Sequence[int], device: torch.device) -> tuple[list[int], PairBatch]:
    """Rows of the groups' answers, and their pairs with indices into those rows."""
    rows = list(dict.fromkeys(row for i in groups for row in data.groups[i].rows))
    place = {row: position for position, row in enumerate(rows)}
    pairs = [(number, pair) for number, i in enumerate(groups) for pair in data.groups[i].pairs]
    batch = PairBatch(
        better_N=torch.tensor([place[pair.better] for _, pair in pairs], device=device),
        worse_N=torch.tensor([place[pair.worse] for _, pair in pairs], device=device),
        tie_N=torch.tensor([pair.tie for _, pair in pairs], device=device),
        margin_N=torch.tensor([pair.margin for _, pair in pairs], device=device),
        weight_N=torch.tensor([pair.weight for _, pair in pairs], device=device),
        prompt_N=torch.tensor([number for number, _ in pairs], device=device),
    )
    return rows, batch
