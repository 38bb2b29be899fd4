"""REINFORCE++ advantages (arXiv 2501.03262).

    A_t = r_t + gamma * A_next

with the KL penalty inside the token rewards (`kl.token_rewards`), no critic and no group: the baseline is the mean of
the whole batch, which the caller takes off with `masked.whiten_BT` and the moments of all ranks. "Next" is the next
valid token, as in gae.py. The variant with a group baseline isn't here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rayrl.algorithms.gae import gae


def reinforce_pp(rewards_BT: Tensor, mask_BT: Tensor, gamma: float) -> Tensor:
    """Discounted rewards to come, float32 [B, T], 0 outside the mask, not yet whitened."""
    # GAE without values and with lambda 1 is this sum.
    returns_BT, _ = gae(rewards_BT, torch.zeros_like(rewards_BT), mask_BT, gamma, lam=1.0)
    return returns_BT
