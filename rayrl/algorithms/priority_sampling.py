"""Priority sampling without replacement: in which order one-stage training sees its examples.

At every draw an example x that isn't drawn yet comes with probability pi(x) / sum of pi over all of those
(HuatuoGPT-II, equation 2), pi being its source's priority. Drawing one by one is slow; the same distribution has the
order of independent keys E(x) / pi(x), with E(x) exponential (Efraimidis and Spirakis 2006): a key depends on seed,
source, pass and number of the example alone, so that any part of the order can be made anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def priority_order(sizes: Sequence[int], priorities: Sequence[float], epochs: Sequence[float], seed: int) -> np.ndarray:
    """int64 [E]: examples in the order in which they are drawn, as indices into the sources laid end to end.

    Args:
        sizes: examples of each source.
        priorities: pi of each source's examples, above 0.
        epochs: how often each source's examples occur among those to be drawn; of a part of an epoch, so many
            drawn evenly.
        seed: not negative.
    """
    keys, indices, begin = [], [], 0
    for source, (size, priority, passes) in enumerate(zip(sizes, priorities, epochs, strict=True)):
        for number in range(int(np.ceil(passes))):
            key = _exponential(size, (seed, source, number)) / priority
            taken = np.arange(size)
            part = passes - number
            if part < 1:
                taken = np.argsort(_exponential(size, (seed, source, number, 1)), kind="stable")[: round(part * size)]
                taken.sort()
            keys.append(key[taken])
            indices.append(begin + taken)
        begin += size
    if not keys:
        return np.empty(0, dtype=np.int64)
    order = np.argsort(np.concatenate(keys), kind="stable")
    return np.asarray(np.concatenate(indices)[order], dtype=np.int64)


def expected_shares(counts: Sequence[float], priorities: Sequence[float], positions: np.ndarray) -> np.ndarray:
    """float64 [sources, P]: the share that each source has among the draws at `positions` (0 to 1 of all draws).

    The limit of many examples: after a time t, n exp(-pi t) of a source's n examples are left, and it has the share
    n pi exp(-pi t) of the draws, over the sum of all sources'. `counts`: examples to be drawn, epochs included.
    """
    n, pi = np.asarray(counts, dtype=np.float64), np.asarray(priorities, dtype=np.float64)
    times = np.array([_time(n, pi, position) for position in positions])
    rates = n[:, None] * pi[:, None] * np.exp(-pi[:, None] * times[None, :])
    return np.asarray(rates / rates.sum(axis=0, keepdims=True))


def _time(n: np.ndarray, pi: np.ndarray, position: float) -> float:
    """When a share `position` of all examples is drawn, by bisection."""
    wanted = min(position, 1 - 1e-12) * n.sum()
    low, high = 0.0, 1.0 / pi.min()
    while (n * (1 - np.exp(-pi * high))).sum() < wanted:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if (n * (1 - np.exp(-pi * middle))).sum() < wanted:
            low = middle
        else:
            high = middle
    return high


def _exponential(size: int, seeds: tuple[int, ...]) -> np.ndarray:
    """float64 [size]. Raw PCG64 draws stay the same in every NumPy (NEP 19)."""
    draws = np.random.PCG64(np.random.SeedSequence(list(seeds))).random_raw(size)
    return -np.log((draws.astype(np.float64) + 0.5) / 2.0**64)
