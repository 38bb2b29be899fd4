"""Group-relative advantages (GRPO, in DeepSeekMath, arXiv 2402.03300).

    A = (r - mean of the prompt's answers) / (std of the prompt's answers + eps)

on every valid token. Without the division it is Dr. GRPO's (arXiv 2503.20783), which shows that dividing favours
prompts whose answers score nearly alike. The standard deviation has divisor n - 1, as in TRL and verl. GRPO puts the KL
penalty in the loss; for a penalty in the reward pass the sum of each sequence's token rewards as its score.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rayrl.algorithms.groups import group_statistics
from rayrl.algorithms.masked import over_mask


@torch.no_grad()
def grpo(
    scores_B: Tensor, group_ids_B: Tensor, mask_BT: Tensor, divide_by_std: bool = True, eps: float = 1e-4
) -> Tensor:
    """Advantages, float32 [B, T], 0 outside the mask.

    `group_ids_B`: one integer a prompt; a prompt's answers must all be here. Raises ValueError for a group of one.
    """
    group = group_statistics(scores_B, group_ids_B)
    advantages_B = scores_B.double() - group.sum_B / group.count_B
    if divide_by_std:
        advantages_B = advantages_B / (group.std_B + eps)
    return over_mask(advantages_B, mask_BT)
