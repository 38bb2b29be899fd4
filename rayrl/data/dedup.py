"""Near-duplicates among short texts: the first is kept, later ones that are nearly the same are found.

Two texts are as similar as the sets of their pairs of neighbouring units (units.py: words, single Chinese characters)
overlap: |A & B| / |A | B|. With n pairs a text in which one unit was replaced has similarity (n - 2) / (n + 2): from 12
pairs on that is above the default threshold 0.7, so a greeting or another age makes no new text of a sentence, while
in a short one a word counts ("My left knee hurts", "My left hip hurts").

R-MinHash with banded locality-sensitive hashing (the package rensa) proposes pairs, their exact similarity decides; a
pair at the threshold is missed less than once in a thousand. The hashes depend on the text and a fixed seed alone, so
the same texts in the same order give the same answer everywhere. Exact duplicates: split.conversation_key.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from itertools import pairwise

from rensa import RMinHash, RMinHashLSH

from rayrl.data.units import units

DEFAULT_THRESHOLD = 0.7
NUM_HASHES = 128
MISS_RATE = 1e-3
_SEED = 1


@dataclass(frozen=True)
class Match:
    """The kept text that a text is nearly the same as. Example: Match("en-7", 0.85)"""

    key: str
    similarity: float


def shingles(text: str) -> frozenset[str]:
    """Pairs of neighbouring units; of a text of one unit that unit, of one without units nothing."""
    found = units(unicodedata.normalize("NFKC", text))
    if len(found) == 1:
        return frozenset(found)
    return frozenset(f"{left} {right}" for left, right in pairwise(found))


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard's, from 0 to 1; 0 where either is empty."""
    return len(a & b) / len(a | b) if a and b else 0.0


def num_bands(threshold: float) -> int:
    """The fewest bands with which a pair at the threshold shares one of them with probability above 1 - MISS_RATE.

    A band of r hashes is shared with probability threshold**r.
    """
    for bands in (1 << power for power in range(NUM_HASHES.bit_length())):
        if (1 - threshold ** (NUM_HASHES // bands)) ** bands < MISS_RATE:
            return bands
    return NUM_HASHES


class NearDuplicates:
    """The texts kept so far, to compare further ones with.

    Example: after add("a", "头痛三天了，还有点发烧，怎么办"), find("医生，头痛三天了，还有点发烧，怎么办？")
    is Match("a", 0.86).
    """

    def __init__(self, threshold: float = DEFAULT_THRESHOLD) -> None:
        """`threshold`: similarity, above 0 and at most 1, from which on two texts count as the same."""
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
        self._threshold = threshold
        self._lsh = RMinHashLSH(threshold=threshold, num_perm=NUM_HASHES, num_bands=num_bands(threshold))
        self._kept: list[tuple[str, str | None, str]] = []

    def find(self, text: str, group: str | None = None) -> Match | None:
        """The most similar kept text, the first of equals; None where none reaches the threshold.

        Texts of the same `group` (prompts cut from one conversation) aren't compared.
        """
        found = shingles(text)
        best: Match | None = None
        for position in sorted(self._lsh.query(_sketch(found))) if found else ():
            key, its_group, kept = self._kept[position]
            if group is not None and group == its_group:
                continue
            score = similarity(found, shingles(kept))
            if score >= self._threshold and (best is None or score > best.similarity):
                best = Match(key, score)
        return best

    def add(self, key: str, text: str, group: str | None = None) -> None:
        """Keeps a text under a name."""
        found = shingles(text)
        if found:
            self._lsh.insert(len(self._kept), _sketch(found))
            self._kept.append((key, group, text))


def _sketch(found: frozenset[str]) -> RMinHash:
    sketch = RMinHash(num_perm=NUM_HASHES, seed=_SEED)
    sketch.update(sorted(found))
    return sketch
