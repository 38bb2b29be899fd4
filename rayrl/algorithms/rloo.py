"""REINFORCE leave-one-out advantages ("Back to Basics", arXiv 2402.14740).

    A_i = r_i - mean of the prompt's other answers

on every valid token. The paper treats a response as one action and takes the KL penalty off its score: pass the sum of
each sequence's token rewards (`kl.token_rewards`) as its score.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rayrl.algorithms.groups import group_statistics
from rayrl.algorithms.masked import over_mask


@torch.no_grad()
def rloo(scores_B: Tensor, group_ids_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Advantages, float32 [B, T], 0 outside the mask.

    `group_ids_B`: one integer a prompt; a prompt's answers must all be here. Raises ValueError for a group of one.
    """
    group = group_statistics(scores_B, group_ids_B)
    others_B = (group.sum_B - scores_B.double()) / (group.count_B - 1)
    return over_mask(scores_B.double() - others_B, mask_BT)
