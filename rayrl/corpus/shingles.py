"""A text as the set of its short character sequences, hashed: what near-duplicates are told by.

Characters, not words, so that a text survives an edit in every word: with a share s of its characters changed here and
there, a part (1 - s)^k of its sequences of length k stays. Case, spaces and punctuation don't count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from rayrl.corpus.lexicon import BY_CHARACTER

LENGTH_BY_CHARACTER, LENGTH = 3, 5
"""Sequences that are rare by chance: three Chinese characters say as much as five letters."""
_NOT_SOLID = re.compile(r"[\W_]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def shingles(text: str, language: str) -> np.ndarray:
    """uint64 [n], sorted, each once; of a text shorter than a sequence, one for the whole."""
    solid = _NOT_SOLID.sub("", text).lower()
    codes = np.frombuffer(solid.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if not len(codes):
        return np.empty(0, dtype=np.uint64)
    length = min(LENGTH_BY_CHARACTER if language in BY_CHARACTER else LENGTH, len(codes))
    hashes = np.zeros(len(codes) - length + 1, dtype=np.uint64)
    for at in range(length):
        hashes = mixed(hashes + codes[at : at + len(hashes)] + np.uint64(1))
    return np.unique(hashes)


def flat(sets: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 [sum of sizes], uint64 [N + 1] offsets)."""
    offsets = np.zeros(len(sets) + 1, dtype=np.uint64)
    offsets[1:] = np.cumsum([len(one) for one in sets])
    return np.concatenate([np.empty(0, dtype=np.uint64), *sets]), offsets


def mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that spreads near values apart (the finaliser of splitmix64, Steele et al. 2014)."""
    values = values * _MULTIPLIER
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    return values
