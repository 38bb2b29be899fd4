"""Which micro-batches make up each optimizer step: new order every epoch, the same on all ranks, by seed alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def minibatch_schedule(
    num_micro_batches: int, epochs: int, minibatches: int, seed: int, step: int
) -> Iterator[list[int]]:
    """Indices of the micro-batches of one optimizer step after the other, epochs * minibatches in all."""
    per_minibatch = num_micro_batches // minibatches
    for epoch in range(epochs):
        order = np.random.default_rng([seed, step, epoch]).permutation(num_micro_batches).tolist()
        for start in range(0, num_micro_batches, per_minibatch):
            yield order[start : start + per_minibatch]
