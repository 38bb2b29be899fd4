"""The clipped policy loss of PPO (arXiv 1707.06347) and what has been added to it.

    ratio = pi / pi_old        L = max(-A * ratio, -A * clip(ratio, 1 - clip_low, 1 + clip_high))

- clip_high above clip_low leaves unlikely tokens room to grow (clip-higher, DAPO, arXiv 2503.14476);
- dual clip bounds the loss where A < 0: L = min(L, -dual_clip * A) (arXiv 1912.09729);
- importance weights min(pi_old / pi_engine, cap) correct for a sampler whose probabilities differ from the trainer's
  (truncated importance sampling, fengyao.notion.site/off-policy-rl, as in verl).

From token losses to one number: aggregate.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rayrl.algorithms.masked import TokenSums, select

MAX_LOG_RATIO = 20.0
"""The log of pi / pi_old is held within this: far outside any clip, and exp() of it overflows nowhere (as in verl)."""


@dataclass(frozen=True)
class PolicySums(TokenSums):
    """What happened to the ratio, as sums over tokens."""

    clip_low_sum: Tensor
    """Tokens without gradient because their ratio is below 1 - clip_low (A < 0)."""
    clip_high_sum: Tensor
    """Tokens without gradient because their ratio is above 1 + clip_high (A > 0)."""
    dual_clip_sum: Tensor
    """Tokens without gradient because dual clip bounds their loss."""
    approx_kl_sum: Tensor
    """k3 estimate of KL(pi_old || pi), in nats."""
    ratio_sum: Tensor
    ratio_squared_sum: Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """Token losses, float32 [B, T], 0 outside the mask, and their statistics."""

    loss_BT: Tensor
    sums: PolicySums


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    importance_weights_BT: Tensor | None = None,
) -> PolicyLoss:
    """Gradients flow to `logprobs_BT` alone, and only inside the mask.

    `dual_clip`: above 1, or None for none. `importance_weights_BT`: from `importance_weights`, or None for none.
    """
    advantages_BT = select(advantages_BT, mask_BT).detach()
    log_ratio_BT = select(logprobs_BT, mask_BT) - select(old_logprobs_BT, mask_BT).detach()
    log_ratio_BT = log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_BT = log_ratio_BT.exp()
    loss_BT = torch.maximum(-advantages_BT * ratio_BT, -advantages_BT * ratio_BT.clamp(1 - clip_low, 1 + clip_high))
    bounded_BT = torch.zeros_like(mask_BT)
    if dual_clip is not None:
        bound_BT = -dual_clip * advantages_BT
        bounded_BT = (advantages_BT < 0) & (loss_BT > bound_BT)
        loss_BT = torch.where(bounded_BT, bound_BT, loss_BT)
    if importance_weights_BT is not None:
        loss_BT = loss_BT * select(importance_weights_BT, mask_BT).detach()
    sums = PolicySums(
        num_tokens=mask_BT.sum().float(),
        clip_low_sum=((advantages_BT < 0) & (ratio_BT < 1 - clip_low)).sum().float(),
        clip_high_sum=((advantages_BT > 0) & (ratio_BT > 1 + clip_high)).sum().float(),
        dual_clip_sum=bounded_BT.sum().float(),
        approx_kl_sum=(torch.expm1(log_ratio_BT) - log_ratio_BT).detach().sum(),  # 0 where ratio is 1: outside the mask
        ratio_sum=select(ratio_BT, mask_BT).detach().sum(),
        ratio_squared_sum=select(ratio_BT.square(), mask_BT).detach().sum(),
    )
    return PolicyLoss(loss_BT, sums)


@torch.no_grad()
def importance_weights(trainer_logprobs_BT: Tensor, engine_logprobs_BT: Tensor, mask_BT: Tensor, cap: float) -> Tensor:
    """min(exp(trainer - engine), cap) of the sampled tokens, float32 [B, T], 0 outside the mask, without gradient.

    Both are log-probabilities under the weights that sampled, the trainer's being the loss's `old_logprobs_BT`.
    """
    log_ratio_BT = select(trainer_logprobs_BT, mask_BT) - select(engine_logprobs_BT, mask_BT)
    return select(log_ratio_BT.exp().clamp(max=cap), mask_BT)
