"""The critic's loss, optionally clipped (PPO's reference code, openai/baselines ppo2).

    L = 0.5 * max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2)

From token losses to one number: aggregate.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rayrl.algorithms.masked import Moments, TokenSums, select


@dataclass(frozen=True)
class ValueSums(TokenSums):
    """What happened to the value, as sums over tokens."""

    clip_sum: Tensor
    """Tokens without gradient because their value has already moved towards the return by more than the clip."""
    value_sum: Tensor


@dataclass(frozen=True)
class ValueLoss:
    """Token losses, float32 [B, T], 0 outside the mask, and their statistics."""

    loss_BT: Tensor
    sums: ValueSums


def value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip: float | None
) -> ValueLoss:
    """Gradients flow to `values_BT` alone, and only inside the mask. `clip`: None for none."""
    values_BT = select(values_BT, mask_BT)
    returns_BT = select(returns_BT, mask_BT).detach()
    squared_BT = (values_BT - returns_BT).square()
    clipped_BT = torch.zeros_like(mask_BT)
    if clip is not None:
        old_BT = select(old_values_BT, mask_BT).detach()
        held_BT = torch.maximum(torch.minimum(values_BT, old_BT + clip), old_BT - clip)
        held_squared_BT = (held_BT - returns_BT).square()
        clipped_BT = held_squared_BT > squared_BT
        squared_BT = torch.maximum(squared_BT, held_squared_BT)
    sums = ValueSums(mask_BT.sum().float(), clipped_BT.sum().float(), values_BT.detach().sum())
    return ValueLoss(0.5 * squared_BT, sums)


def explained_variance(returns: Moments, errors: Moments) -> float | None:
    """1 - Var(R - V) / Var(R), of moments summed over all ranks: 1 is perfect, 0 is no better than a constant.

    `errors` are the moments of returns - values. None where all returns are equal: there is nothing to explain.
    """
    if returns.variance == 0:
        return None
    return 1 - errors.variance / returns.variance
