"""What one-stage training should show: each source's share of the counted tokens, step by step, in closed form."""

from __future__ import annotations

import numpy as np

from rayrl.algorithms.priority_sampling import expected_shares
from rayrl.config.sft import SFTConfig
from rayrl.data.examples import Examples
from rayrl.stages.sft_worker import plan_of

_POINTS = 400


def shares_over_steps(config: SFTConfig, data: Examples, steps: int) -> dict[str, list[float]]:
    """By source, its share of the counted tokens at the middle of each of up to 400 stretches of the run's steps.

    `step`: where they are.

    The formula is of examples; sources whose examples are longer fill more of a step, so positions are turned from
    examples into tokens by each source's mean lengths.
    """
    sources = config.data.sources
    sizes = np.array(data.sizes(len(sources)), dtype=np.float64)
    counts = sizes * np.array([source.epochs or 1.0 for source in sources])
    lengths = _means(data.lengths, data.sources, sizes)
    counted = _means(data.counted, data.sources, sizes)
    positions = (np.arange(4 * _POINTS) + 0.5) / (4 * _POINTS)
    drawn = expected_shares(counts.tolist(), [source.weight for source in sources], positions)
    # Without packing a step is so many examples, whatever their lengths.
    tokens = np.cumsum(lengths @ drawn if config.data.packing else drawn.sum(axis=0))
    whole = plan_of(config.model_copy(update={"max_steps": None}), data).steps
    middles = (np.arange(min(_POINTS, steps)) + 0.5) / min(_POINTS, steps) * steps / whole
    at = np.minimum(np.searchsorted(tokens / tokens[-1], middles), len(positions) - 1)
    shares = counted[:, None] * drawn[:, at]
    shares /= shares.sum(axis=0, keepdims=True)
    found = {source.name: np.round(row, 4).tolist() for source, row in zip(sources, shares, strict=True)}
    return {"step": np.round(middles * whole, 2).tolist(), **found}


def _means(values: np.ndarray, sources: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """float64 [sources]: the mean of each source's examples, 0 where it has none."""
    sums = np.bincount(sources, weights=values, minlength=len(sizes))
    return np.asarray(sums / np.maximum(sizes, 1))
