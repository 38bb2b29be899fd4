"""Generalised advantage estimation (arXiv 1506.02438) over response tokens.

    delta_t = r_t + gamma * V_next - V_t        A_t = delta_t + gamma * lam * A_next

"Next" is the next valid token: padding and holes (a patient's turn inside a response) are skipped, so that neither
their length nor their content changes a number. After the last valid token both are 0. Whitening is the caller's, since
it needs the moments of all ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rayrl.algorithms.masked import select


@torch.no_grad()
def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns (advantage + value), float32 [B, T], 0 outside the mask, without gradient.

    Rewards outside the mask are ignored: put a reward for a whole turn on its last valid token.
    """
    rewards_BT, values_BT = select(rewards_BT, mask_BT), select(values_BT, mask_BT)
    advantages_BT = torch.zeros_like(rewards_BT)
    next_value_B = next_advantage_B = rewards_BT.new_zeros(len(rewards_BT))
    for t in reversed(range(mask_BT.shape[1])):
        valid_B = mask_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        next_advantage_B = torch.where(valid_B, delta_B + gamma * lam * next_advantage_B, next_advantage_B)
        next_value_B = torch.where(valid_B, values_BT[:, t], next_value_B)
        advantages_BT[:, t] = next_advantage_B
    advantages_BT = select(advantages_BT, mask_BT)
    return advantages_BT, advantages_BT + values_BT
