"""Which examples an epoch holds, from weighted sources: a pure function of the seed and the epoch.

A source of weight w comes w times an epoch. Its passes follow one another without a gap, each shuffled anew, and an
epoch takes the next w * n of them: no example comes twice before every other has come once, whatever the weight. The
epoch's examples of all sources are then shuffled together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayrl.data.order import permutation


def epoch_examples(sizes: Sequence[int], weights: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """int64 [E]: indices into the sources' examples laid end to end (source s begins at sum(sizes[:s])), shuffled.

    Example: sizes [2, 3], weights [1, 2] gives 0 and 1 once, 2, 3 and 4 twice.
    """
    parts, begin = [], 0
    for source, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        if size:
            first, last = (round(size * weight * number) for number in (epoch, epoch + 1))
            parts.append(begin + _stream(size, first, last, (seed, source)))
        begin += size
    chosen = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    return np.asarray(chosen[permutation(len(chosen), (seed, len(sizes)), epoch)])


def _stream(size: int, first: int, last: int, seed: tuple[int, ...]) -> np.ndarray:
    """Positions `first` to `last` of endless passes over `size` examples."""
    passes = [permutation(size, seed, number) for number in range(first // size, -(-last // size))]
    if not passes:
        return np.empty(0, dtype=np.int64)
    offset = first // size * size
    return np.concatenate(passes)[first - offset : last - offset]
