"""Numbers that must stop a run before an optimizer sees them: not finite, or a reference that isn't the policy's start.

What isn't finite may be so on one rank alone. That rank raises at once, and the coordinator ends the wait for the
others (cluster/health.py); the comparison with the reference is over all ranks, so all raise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rayrl.errors import RunError
from rayrl.learners.collective import total

MAX_START_GAP = 1e-2
"""Mean absolute difference, nats a token, that rounding may leave between equal weights in bf16."""


def require_finite_scores(scores: Sequence[float], step: int) -> None:
    """RunError if a score is NaN or infinite."""
    bad = [i for i, score in enumerate(scores) if not math.isfinite(score)]
    if bad:
        raise RunError(
            f"step {step}: the score of rollout {bad[0]} of this rank is {scores[bad[0]]} ({len(bad)} of {len(scores)} "
            "aren't finite): look for a reward that divides by zero or a reward model that overflows"
        )


def require_finite(value: float, step: int, what: str) -> None:
    """RunError if a loss or a gradient norm is NaN or infinite. `what`: as in "policy loss"."""
    if not math.isfinite(value):
        raise RunError(
            f"step {step}: the {what} is {value}, so training stops before such weights are used or kept: look at the "
            "last steps' KL and gradient norms, and lower optimizer.lr or train in fp32"
        )


def require_same_start(old: Sequence[Tensor], reference: Sequence[Tensor], num_tokens: int) -> None:
    """RunError if policy and reference differ before the first update (a collective). Both are 0 on padding."""
    gap = float(sum((a - b).abs().sum() for a, b in zip(old, reference, strict=True)))
    gap_sum, tokens = total(torch.tensor([gap, num_tokens], dtype=torch.float64)).tolist()
    if not gap_sum <= MAX_START_GAP * tokens:
        raise RunError(
            f"step 0: log-probabilities of policy and reference differ by {gap_sum / tokens:.4f} nats on average, but "
            "the KL starts at 0: the reference must be the policy's own start (merge an adapter into it first, or "
            "leave reference.model out)"
        )
