"""Sums, means and moments over the valid tokens of a padded batch.

A mask is True on valid response tokens. Valid tokens may start anywhere, end anywhere and have holes between them (a
patient's or a tool's turn inside a response), and what lies outside the mask may be anything, NaN and infinity
included: `select` replaces it before any arithmetic, because 0 * NaN is NaN, in the backward pass too.

`Moments` and `TokenSums` hold sums rather than means, so that micro-batches and ranks add up to exactly what the whole
batch would give. Nothing here communicates: the caller all-reduces `to_tensor()` and reads it with `from_tensor()`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

WHITEN_EPS = 1e-8
"""Added to the variance, as in the whitening of the "Fine-Tuning Language Models from Human Preferences" code."""


def select(x: Tensor, mask: Tensor) -> Tensor:
    """x in float32 where the mask is True, 0 elsewhere; gradients outside the mask are exactly 0.

    Raises ValueError if the shapes differ (broadcasting would hide the mistake) or the mask isn't bool.
    """
    if x.shape != mask.shape:
        raise ValueError(
            f"a tensor of shape {tuple(x.shape)} came with a mask of shape {tuple(mask.shape)}; pad both alike"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask has dtype {mask.dtype}; convert it to torch.bool, True on valid tokens")
    return torch.where(mask, x.float(), 0.0)


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum over the mask, of everything or along `dim`."""
    return select(x, mask).sum() if dim is None else select(x, mask).sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean over the mask, of everything or along `dim`; 0 where the mask selects nothing."""
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(x, mask, dim) / count.clamp(min=1)


def over_mask(x_B: Tensor, mask_BT: Tensor) -> Tensor:
    """One number a sequence on each of its valid tokens, 0 elsewhere: [B] -> [B, T], float32."""
    if x_B.shape != mask_BT.shape[:1]:
        raise ValueError(f"{tuple(x_B.shape)} isn't one number for each of the mask's {mask_BT.shape[0]} sequences")
    return select(x_B[:, None].expand(mask_BT.shape), mask_BT)


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares; over ranks they add up. Example: Moments(2, 4.0, 10.0) holds [1, 3]."""

    count: float
    sum: float
    sum_of_squares: float

    @classmethod
    def of(cls, x: Tensor, mask: Tensor) -> Moments:
        """Of the values inside the mask, summed in float64."""
        kept = select(x, mask).double()
        return cls.from_tensor(torch.stack([mask.sum().double(), kept.sum(), kept.square().sum()]))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.sum + other.sum, self.sum_of_squares + other.sum_of_squares)

    def to_tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """float64 [3], for all-reduce (NCCL wants it on the GPU)."""
        return torch.tensor([self.count, self.sum, self.sum_of_squares], dtype=torch.float64, device=device)

    @classmethod
    def from_tensor(cls, sums: Tensor) -> Moments:
        """The inverse of `to_tensor`."""
        count, total, squares = sums.tolist()
        return cls(count, total, squares)

    @property
    def mean(self) -> float:
        """Raises ValueError if nothing was counted."""
        self._need_values()
        return self.sum / self.count

    @property
    def variance(self) -> float:
        """Mean squared distance from the mean (divisor n). Raises ValueError if nothing was counted."""
        mean = self.mean
        return max(self.sum_of_squares / self.count - mean * mean, 0.0)  # rounding can fall below 0

    def _need_values(self) -> None:
        if self.count == 0:
            raise ValueError("moments of no values: the mask is empty on every rank; look for empty responses")


def whiten_BT(x_BT: Tensor, mask_BT: Tensor, moments: Moments, shift_mean: bool = True) -> Tensor:
    """x with the moments' mean moved to 0 and their variance to 1, in float32; 0 outside the mask.

    With `moments` summed over all ranks the result has mean 0 and variance 1 over all of them. `shift_mean=False`
    scales around the mean and leaves the mean in place. Equal values become 0 (their mean without the shift).
    """
    mean = moments.mean
    whitened_BT = (select(x_BT, mask_BT) - mean) / (moments.variance + WHITEN_EPS) ** 0.5
    return select(whitened_BT if shift_mean else whitened_BT + mean, mask_BT)


@dataclass(frozen=True)
class TokenSums:
    """Statistics of a loss as sums over tokens: 0-d float tensors on the loss's device, without gradient.

    Subclasses add fields named `*_sum`. Add those of micro-batches, all-reduce `to_tensor()`, then read `means()`.
    """

    num_tokens: Tensor

    def __add__(self, other: Self) -> Self:
        return self.from_tensor(self.to_tensor() + other.to_tensor())

    def to_tensor(self) -> Tensor:
        """float64 [number of fields], in the order of the fields."""
        return torch.stack([getattr(self, field.name).double() for field in fields(self)])

    @classmethod
    def from_tensor(cls, sums: Tensor) -> Self:
        """The inverse of `to_tensor`. Raises ValueError if the length isn't the number of fields."""
        return cls(**{field.name: value for field, value in zip(fields(cls), sums.unbind(), strict=True)})

    def means(self) -> dict[str, float]:
        """Mean a token of each sum, named without `_sum`. Raises ValueError if there was no token."""
        num_tokens, *sums = self.to_tensor().tolist()
        if num_tokens == 0:
            raise ValueError("statistics of no tokens: the mask is empty on every rank; look for empty responses")
        names = [field.name.removesuffix("_sum") for field in fields(self)][1:]
        return {name: value / num_tokens for name, value in zip(names, sums, strict=True)}
