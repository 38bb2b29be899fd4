"""How far one gets on preference pairs without understanding them: by length, by question marks, by words alone.

Each function returns the share of pairs in which the shortcut picks the chosen answer (a tie counts half). A set is
worth training on only where these stay near 0.5. Used by build_preferences.py and its test.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from rayrl.rewards.text import sentences, units

Pairs = Sequence[dict[str, Any]]


def prefer(pairs: Pairs, score: Callable[[str], float]) -> float:
    """Share of pairs whose chosen answer has the higher score."""
    gaps = np.array([score(pair["chosen"]) - score(pair["rejected"]) for pair in pairs])
    return float(np.mean((gaps > 0) + 0.5 * (gaps == 0)))


def longer(pairs: Pairs) -> float:
    """Accuracy of "the longer answer is better", in words and Chinese characters."""
    return prefer(pairs, lambda text: len(units(text)))


def asks(pairs: Pairs) -> float:
    """Accuracy of "the answer with a question mark is better"."""
    return prefer(pairs, lambda text: float("?" in text or "？" in text))


def opening(train: Pairs, heldout: Pairs) -> float:
    """Accuracy of the first sentence's record in `train`: how much oftener it opened chosen than rejected answers."""
    record: dict[str, list[int]] = {}
    for pair in train:
        for side, key in enumerate(("rejected", "chosen")):
            record.setdefault(sentences(pair[key])[0], [0, 0])[side] += 1
    odds = {first: (won + 1) / (won + lost + 2) for first, (lost, won) in record.items()}
    return prefer(heldout, lambda text: odds.get(sentences(text)[0], 0.5))


def bag_of_words(train: Pairs, heldout: Pairs, *, steps: int = 100, l2: float = 1e-3) -> float:
    """Held-out accuracy of a logistic classifier on the answers' words and pairs of words; it never sees the prompt."""
    counts: dict[str, int] = {}
    for pair in train:
        for gram in {*_grams(pair["chosen"]), *_grams(pair["rejected"])}:
            counts[gram] = counts.get(gram, 0) + 1
    columns = {gram: column for column, gram in enumerate(sorted(g for g, n in counts.items() if n >= 5))}
    weights = _fit(_differences(train, columns), steps, l2)
    margins = _differences(heldout, columns) @ weights
    return float(np.mean((margins > 0) + 0.5 * (margins == 0)))


@functools.cache
def _grams(text: str) -> list[str]:
    found = units(text)
    return [*found, *map(" ".join, pairwise(found))]


def _differences(pairs: Pairs, columns: dict[str, int]) -> np.ndarray:
    """Chosen minus rejected, one row a pair; each word counts once an answer."""
    rows = np.zeros((len(pairs), len(columns)), dtype=np.float32)
    for row, pair in zip(rows, pairs, strict=True):
        for key, sign in (("chosen", 1), ("rejected", -1)):
            row[[columns[gram] for gram in set(_grams(pair[key])) if gram in columns]] += sign
    return rows


def _fit(differences: np.ndarray, steps: int, l2: float) -> np.ndarray:
    """Weights of the logistic loss -log sigmoid(difference @ weights), by Adam on all rows at once."""
    weights = np.zeros(differences.shape[1], dtype=np.float32)
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, steps + 1):
        wrong = 1 / (1 + np.exp(differences @ weights))
        gradient = -(wrong @ differences) / len(differences) + l2 * weights
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        weights -= 0.03 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)
    return weights
