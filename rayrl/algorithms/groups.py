"""Which answers belong to one prompt, and what their scores have in common: the base of GRPO and RLOO.

Statistics are in float64, so that equal scores have a spread of exactly (or nearly) 0 and no advantage is made of
rounding. A group must be whole in one call: split over ranks or micro-batches, its mean is another number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupStatistics:
    """Of each sequence's group, float64 [B]."""

    count_B: Tensor
    sum_B: Tensor
    std_B: Tensor
    """With divisor n - 1."""


def group_statistics(scores_B: Tensor, group_ids_B: Tensor) -> GroupStatistics:
    """Count, sum and standard deviation of the scores that share a sequence's group id (any integers, in any order).

    Raises ValueError if the shapes differ or a group has one member, which can't be compared with anything.
    """
    if scores_B.shape != group_ids_B.shape or scores_B.dim() != 1:
        raise ValueError(f"scores {tuple(scores_B.shape)} and group ids {tuple(group_ids_B.shape)} must both be [B]")
    ids_G, group_B, count_G = torch.unique(group_ids_B, return_inverse=True, return_counts=True)
    if bool((count_G < 2).any()):
        alone = ids_G[count_G < 2].tolist()
        raise ValueError(
            f"prompt groups {alone[:5]} have one answer here; "
            "sample at least two to a prompt and keep a prompt's answers together"
        )
    scores_B = scores_B.double()
    sum_G = scores_B.new_zeros(len(ids_G)).index_add(0, group_B, scores_B)
    distance_B = scores_B - (sum_G / count_G)[group_B]
    variance_G = scores_B.new_zeros(len(ids_G)).index_add(0, group_B, distance_B.square()) / (count_G - 1)
    return GroupStatistics(count_G[group_B].double(), sum_G[group_B], variance_G.sqrt()[group_B])
