"""The pairwise ranking loss of a reward model, over all pairs of a prompt at one time.

    loss(prompt) = -1/|pairs| * sum over its pairs of log sigmoid(r_better - r_worse - margin)

With all C(K, 2) pairs of K ranked answers this is the loss of Zhongjing (arXiv 2308.03549) and InstructGPT (arXiv
2203.02155), whose reason for taking a prompt's pairs together holds here too: answers are encoded once, and no prompt
counts more because more of its pairs were compared. A margin asks for a larger distance where raters saw one (Llama 2,
arXiv 2307.09288). A tie counts as half a win for each side, the Bradley-Terry (1952) likelihood of a draw without a
further parameter: its loss is least, log 2, where both scores are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class PairBatch:
    """N pairs of answers to G prompts; indices point into the scores [B] of a batch."""

    better_N: Tensor
    worse_N: Tensor
    tie_N: Tensor
    """Whether neither is better; then the order of the two means nothing."""
    margin_N: Tensor
    weight_N: Tensor
    prompt_N: Tensor
    """Which prompt, 0 to G - 1; each has at least one pair."""


def pair_losses(difference_N: Tensor, tie_N: Tensor, margin_N: Tensor) -> Tensor:
    """[N] negative log-likelihoods; `difference_N`: better less worse. Margins don't apply to ties.

    Example: a difference of 0 without a margin costs log 2, whether the pair is a tie or not.
    """
    decided_N = -logsigmoid(difference_N - margin_N)
    tied_N = -0.5 * (logsigmoid(difference_N) + logsigmoid(-difference_N))
    return torch.where(tie_N, tied_N, decided_N)


def ranking_loss(scores_B: Tensor, pairs: PairBatch) -> Tensor:
    """Sum over the prompts of the mean loss of their pairs (each times its weight). The caller divides by prompts."""
    difference_N = scores_B[pairs.better_N] - scores_B[pairs.worse_N]
    losses_N = pair_losses(difference_N, pairs.tie_N, pairs.margin_N)
    counts_G = torch.bincount(pairs.prompt_N)
    return (pairs.weight_N * losses_N / counts_G[pairs.prompt_N]).sum()
