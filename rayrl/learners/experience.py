"""From scores, log-probabilities and values to advantages and returns, by micro-batch of a shard.

Policy and critic ranks each build it from the same inputs: it is cheap, and what it needs is already here. Group
estimators (GRPO, RLOO) compare answers of one prompt, which always lie in one shard. With `kl.place: reward` the
penalty is in the token rewards (GAE, REINFORCE++) or in the sequence's score (GRPO, RLOO).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rayrl.algorithms.gae import gae
from rayrl.algorithms.grpo import grpo
from rayrl.algorithms.kl import kl_per_token, token_rewards
from rayrl.algorithms.masked import Moments, masked_sum, over_mask, whiten_BT
from rayrl.algorithms.reinforce_pp import reinforce_pp
from rayrl.algorithms.rloo import rloo
from rayrl.config.ppo import AlgorithmConfig
from rayrl.learners.collective import total
from rayrl.learners.shard import Shard


@dataclass(frozen=True)
class Experience:
    """Lists have one [b, T] (or [b]) tensor a micro-batch of the shard."""

    advantages: list[Tensor]
    returns: list[Tensor]
    """Empty without a critic."""
    kl_per_sequence: list[Tensor]
    """k1 estimate of KL(policy || reference), summed over each sequence's tokens, nats."""


def build_experience(
    shard: Shard,
    config: AlgorithmConfig,
    kl_coef: float,
    scores: list[Tensor],
    logprobs: list[Tensor],
    ref_logprobs: list[Tensor],
    values: list[Tensor] | None,
) -> Experience:
    """Advantages (whitened over all ranks where the config says so: a collective) and returns."""
    masks = [batch.mask_BT for batch in shard.batches]
    coef = kl_coef if config.kl.place == "reward" else 0.0
    kls = [
        kl_per_token(lp, ref, mask, config.kl.estimator)
        for lp, ref, mask in zip(logprobs, ref_logprobs, masks, strict=True)
    ]
    k1 = [
        masked_sum(kl_per_token(lp, ref, mask, "k1"), mask, dim=1)
        for lp, ref, mask in zip(logprobs, ref_logprobs, masks, strict=True)
    ]
    if config.estimator in ("grpo", "rloo"):
        return Experience(_group_advantages(shard, config, coef, scores, kls, masks), [], k1)
    rewards = [token_rewards(s, kl, mask, coef) for s, kl, mask in zip(scores, kls, masks, strict=True)]
    returns: list[Tensor] = []
    if config.estimator == "gae":
        assert values is not None
        pairs = [gae(r, v, mask, config.gamma, config.lam) for r, v, mask in zip(rewards, values, masks, strict=True)]
        advantages = [a for a, _ in pairs]
        returns = [r for _, r in pairs]
    else:
        advantages = [reinforce_pp(r, mask, config.gamma) for r, mask in zip(rewards, masks, strict=True)]
    if config.whiten_advantages:
        advantages = _whiten(advantages, masks)
    return Experience(advantages, returns, k1)


def _group_advantages(
    shard: Shard, config: AlgorithmConfig, coef: float, scores: list[Tensor], kls: list[Tensor], masks: list[Tensor]
) -> list[Tensor]:
    penalised = [s - coef * masked_sum(kl, mask, dim=1) for s, kl, mask in zip(scores, kls, masks, strict=True)]
    ids = {row_id: i for i, row_id in enumerate(dict.fromkeys(r.prompt.row.id for r in shard.rollouts))}
    groups = shard.scalars([ids[r.prompt.row.id] for r in shard.rollouts])
    scores_B, groups_B = torch.cat(penalised), torch.cat(groups).long()
    one_B1 = torch.ones_like(scores_B, dtype=torch.bool)[:, None]
    estimate = grpo if config.estimator == "grpo" else rloo
    advantages_B = estimate(scores_B, groups_B, one_B1)[:, 0]
    pieces = advantages_B.split([len(mask) for mask in masks])
    return [over_mask(piece, mask) for piece, mask in zip(pieces, masks, strict=True)]


def _whiten(tensors: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
    moments = sum_moments(tensors, masks)
    return [whiten_BT(x, mask, moments) for x, mask in zip(tensors, masks, strict=True)]


def sum_moments(tensors: list[Tensor], masks: list[Tensor]) -> Moments:
    """Moments over the micro-batches of all ranks (a collective)."""
    local = sum((Moments.of(x, mask) for x, mask in zip(tensors, masks, strict=True)), Moments(0.0, 0.0, 0.0))
    return Moments.from_tensor(total(local.to_tensor()))
