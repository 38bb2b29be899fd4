"""Which prompts a step trains on: a pure function of the step, so that resuming needs nothing but the step.

Passes over the data follow one another without a gap: a batch may begin in one pass and end in the next, and every
prompt comes exactly once a pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class PromptOrder:
    """The order of `num_prompts` prompts in batches of `batch_size`; shuffled anew each pass by (seed, pass) or not.

    Example: PromptOrder(5, 2, seed=0, shuffle=False).batch(2) == [4, 0]
    """

    num_prompts: int
    batch_size: int
    seed: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.num_prompts < 1 or self.batch_size < 1:
            raise ValueError(f"num_prompts and batch_size must be positive: {self.num_prompts}, {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative: {self.seed}")

    def batch(self, step: int) -> list[int]:
        """Indices of step `step` (from 0), `batch_size` of them, each from 0 to num_prompts - 1."""
        if step < 0:
            raise ValueError(f"step must not be negative: {step}")
        start = step * self.batch_size
        return [self._at(position) for position in range(start, start + self.batch_size)]

    def passes(self, step: int) -> list[int]:
        """In which pass over the data (from 0) each prompt of the step's batch is drawn."""
        return [
            position // self.num_prompts for position in range(step * self.batch_size, (step + 1) * self.batch_size)
        ]

    def _at(self, position: int) -> int:
        number, offset = divmod(position, self.num_prompts)
        return int(permutation(self.num_prompts, self.seed, number)[offset]) if self.shuffle else offset


@lru_cache(maxsize=2)  # a batch touches two passes at most, unless it is larger than one
def permutation(size: int, seed: int | tuple[int, ...], number: int) -> np.ndarray:
    """Order of pass `number`. Raw PCG64 draws stay the same in every NumPy, Generator.permutation may not (NEP 19)."""
    seeds = (seed,) if isinstance(seed, int) else seed
    draws = np.random.PCG64(np.random.SeedSequence([*seeds, number])).random_raw(size)
    return np.argsort(draws, kind="stable")
