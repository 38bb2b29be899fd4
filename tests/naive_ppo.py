"""One PPO iteration written out plainly: no padding, no micro-batches, no DeepSpeed. What the learners must equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayrl.types import Rollout


def sequence_ids(rollout: Rollout) -> Tensor:
    """Prompt and response, [1, L]."""
    return torch.from_numpy(np.concatenate([rollout.prompt.token_ids_P, rollout.response_ids_T]))[None]


def response_logprobs(model: PreTrainedModel, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """Log-probability of each response token [T], from the model's own logits."""
    ids = sequence_ids(rollout)
    length = len(rollout.response_ids_T)
    logp = torch.log_softmax(model(ids).logits[0, -length - 1 : -1] / temperature, -1)
    return logp.gather(1, ids[0, -length:, None])[:, 0]


def advantages_and_returns(
    score: float, logprobs: np.ndarray, reference: np.ndarray, values: np.ndarray, kl_coef: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """GAE with gamma 1 over one response; the KL penalty is in the rewards, the score on the last token."""
    rewards = -kl_coef * (logprobs.astype(np.float64) - reference)
    rewards[-1] += score
    advantages = np.zeros(len(rewards))
    following = 0.0
    for t in reversed(range(len(rewards))):
        next_value = values[t + 1] if t + 1 < len(rewards) else 0.0
        following = rewards[t] + next_value - values[t] + lam * following
        advantages[t] = following
    return advantages, advantages + values


def clipped_loss(new: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """PPO's loss a token, [T]."""
    ratio = (new - old).exp()
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def step(optimizer: torch.optim.Optimizer, params: Sequence[Tensor], loss: Tensor, max_norm: float) -> float:
    """Clips and steps; the gradient's norm before clipping."""
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(params, max_norm)
    optimizer.step()
    return float(norm)
