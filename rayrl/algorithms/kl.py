"""KL(policy || reference): estimators, its place in the reward, its coefficient.

Estimators of a token sampled from pi, with d = log pi - log pi_ref (joschu.net/blog/kl-approx.html):

    k1 = d              unbiased, noisy, may be negative
    k2 = d^2 / 2        biased, small variance
    k3 = exp(-d) - 1 + d    unbiased, never negative; the ratio is ref / pi (trlx has it upside down)

As a loss to differentiate, only k2 has the expected gradient of the KL; k1's is 0 and k3's is that of
KL(ref || pi) (arXiv 2506.09477). In the reward any of them serves.

The adaptive coefficient is that of "Fine-Tuning Language Models from Human Preferences" (arXiv 1909.08593).
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor

from rayrl.algorithms.masked import over_mask, select
from rayrl.config.ppo import KLConfig

Estimator = Literal["k1", "k2", "k3"]


def kl_per_token(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor, estimator: Estimator) -> Tensor:
    """Estimate a token in nats, float32 [B, T], 0 outside the mask; differentiable in both log-probabilities.

    k3 is infinite where the reference is more than exp(88) times as likely as the policy: such a token is an error of
    the inputs, so it isn't clamped away. Raises ValueError if the estimator is unknown.
    """
    d_BT = select(logprobs_BT, mask_BT) - select(ref_logprobs_BT, mask_BT)
    match estimator:
        case "k1":
            return d_BT
        case "k2":
            return d_BT.square() / 2
        case "k3":
            return torch.expm1(-d_BT) + d_BT  # expm1: exp(-d) - 1 loses every digit near d = 0
        case _:
            raise ValueError(f"unknown KL estimator {estimator!r}; choose k1, k2 or k3")


def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, coef: float) -> Tensor:
    """-coef * kl on every valid token, and the score on the last valid one; float32 [B, T], 0 outside the mask.

    A sequence without a valid token has nowhere to put its score and gets none.
    """
    position_BT = torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device) * mask_BT
    last_BT = mask_BT & (position_BT == position_BT.amax(dim=1, keepdim=True))
    return over_mask(scores_B, last_BT) - coef * select(kl_BT, mask_BT)


class KLController(Protocol):
    """The coefficient of the KL penalty over a run."""

    @property
    def value(self) -> float:
        """The coefficient now."""

    def update(self, kl_per_sequence: float, num_sequences: int) -> None:
        """Once an iteration: the mean KL of a sequence (sum over its tokens, nats) and the sequences of all ranks."""

    def state_dict(self) -> dict[str, float | str]:
        """What a checkpoint keeps; plain JSON values."""

    def load_state_dict(self, state: dict[str, float | str]) -> None:
        """Raises ValueError if the state is another controller's."""


class FixedKL:
    """The same coefficient throughout."""

    def __init__(self, coef: float) -> None:
        self.value = coef

    def update(self, kl_per_sequence: float, num_sequences: int) -> None:
        """Changes nothing."""

    def state_dict(self) -> dict[str, float | str]:
        return {"controller": "fixed", "value": self.value}

    def load_state_dict(self, state: dict[str, float | str]) -> None:
        self.value = _load_value(state, "fixed")


class AdaptiveKL:
    """beta *= 1 + clip(KL / target - 1, -0.2, 0.2) * num_sequences / horizon."""

    def __init__(self, coef: float, target: float, horizon: float) -> None:
        """`target` in nats a sequence, `horizon` in sequences. Raises ValueError if coef is 0: a product stays 0."""
        if not coef > 0:
            raise ValueError(f"kl.coef is {coef}: the adaptive controller multiplies it, so it must start above 0")
        self.value = coef
        self.target = target
        self.horizon = horizon

    def update(self, kl_per_sequence: float, num_sequences: int) -> None:
        """Raises ValueError if the KL isn't finite or the horizon is so short that the coefficient could reach 0."""
        if not math.isfinite(kl_per_sequence):
            raise ValueError(f"the KL of a sequence is {kl_per_sequence}; look for NaN or infinite log-probabilities")
        if 0.2 * num_sequences >= self.horizon:
            raise ValueError(
                f"kl.horizon is {self.horizon} but an iteration has {num_sequences} sequences; "
                f"set it above {0.2 * num_sequences:g}, or the coefficient can fall to 0"
            )
        error = min(max(kl_per_sequence / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * num_sequences / self.horizon

    def state_dict(self) -> dict[str, float | str]:
        return {"controller": "adaptive", "value": self.value}

    def load_state_dict(self, state: dict[str, float | str]) -> None:
        self.value = _load_value(state, "adaptive")


def make_controller(config: KLConfig) -> KLController:
    """The controller that the configuration names."""
    if config.controller == "adaptive":
        return AdaptiveKL(config.coef, config.target, config.horizon)
    return FixedKL(config.coef)


def _load_value(state: dict[str, float | str], controller: str) -> float:
    if state["controller"] != controller:
        raise ValueError(
            f"the checkpoint's KL controller is {state['controller']!r} and this run's is {controller!r}; "
            "resume with the configuration that the run started with"
        )
    return float(state["value"])
