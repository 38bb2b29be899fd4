"""Tokenised examples on disk: flat arrays that every rank maps into memory instead of holding a copy.

ids.npy      int32 [tokens]      all examples' tokens, end to end
mask.npy     bool  [tokens]      which of them the loss counts
offsets.npy  int64 [examples+1]  where each begins
sources.npy  int16 [examples]    index of each one's source; examples lie in the order of their sources
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rayrl.data.chat_masks import Encoded


@dataclass(frozen=True)
class Examples:
    """Examples of several sources (see the module's docstring)."""

    ids: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray
    sources: np.ndarray

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [examples]: tokens of each."""
        return np.diff(self.offsets)

    @property
    def loss_tokens(self) -> np.ndarray:
        """int64 [examples]: tokens of each that the loss counts."""
        counted = np.concatenate([[0], np.cumsum(self.mask, dtype=np.int64)])
        return np.asarray(counted[self.offsets[1:]] - counted[self.offsets[:-1]])

    def sizes(self, num_sources: int) -> list[int]:
        """Examples of each source."""
        return [int(n) for n in np.bincount(self.sources, minlength=num_sources)]

    def example(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask of example `i`."""
        part = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        return self.ids[part], self.mask[part]

    @classmethod
    def build(cls, by_source: Sequence[Sequence[Encoded]]) -> Examples:
        """Examples of each source, in order."""
        rows = [row for source in by_source for row in source]
        lengths = [len(row.ids) for row in rows]
        return cls(
            ids=np.concatenate([row.ids for row in rows]) if rows else np.empty(0, np.int32),
            mask=np.concatenate([row.mask for row in rows]) if rows else np.empty(0, bool),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            sources=np.repeat(np.arange(len(by_source), dtype=np.int16), [len(source) for source in by_source]),
        )

    def save(self, folder: Path) -> None:
        """Writes the four files."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("ids", "mask", "offsets", "sources"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Examples:
        """Maps what `save` wrote."""
        names = ("ids", "mask", "offsets", "sources")
        return cls(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names})
