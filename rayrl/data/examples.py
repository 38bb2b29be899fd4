"""Tokenised examples on disk: flat arrays that every rank maps into memory instead of holding a copy.

ids.bin      int32 [tokens]      all examples' tokens, end to end
mask.bin     bool  [tokens]      which of them the loss counts
offsets.bin  int64 [examples+1]  where each begins
sources.bin  int16 [examples]    index of each one's source; examples lie in the order of their sources
counted.bin  int32 [examples]    tokens of each that the loss counts
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from rayrl.data.chat_masks import Encoded

_TYPES: dict[str, Any] = {
    "ids": np.int32,
    "mask": np.bool_,
    "offsets": np.int64,
    "sources": np.int16,
    "counted": np.int32,
}


@dataclass(frozen=True)
class Examples:
    """Examples of several sources (see the module's docstring)."""

    ids: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray
    sources: np.ndarray
    counted: np.ndarray

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [examples]: tokens of each."""
        return np.diff(self.offsets)

    def sizes(self, num_sources: int) -> list[int]:
        """Examples of each source."""
        return [int(n) for n in np.bincount(self.sources, minlength=num_sources)]

    def example(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask of example `i`."""
        part = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        return self.ids[part], self.mask[part]

    @classmethod
    def load(cls, folder: Path) -> Examples:
        """Maps what an ExamplesWriter wrote."""
        return cls(**{name: _mapped(folder / f"{name}.bin", kind) for name, kind in _TYPES.items()})


class ExamplesWriter:
    """Writes examples one by one, so that only the one at hand is in memory; what it wrote is whole at the end."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._open = ExitStack()
        self._files = {name: self._open.enter_context((folder / f"{name}.bin").open("wb")) for name in _TYPES}
        self._end = self._source = 0
        self._put("offsets", [0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._open.close()

    def add(self, source: int, example: Encoded) -> None:
        """Another example; sources come in order. Raises ValueError where they don't."""
        if source < self._source:
            raise ValueError(f"an example of source {source} after one of {self._source}")
        self._source = source
        self._end += len(example.ids)
        self._put("ids", example.ids)
        self._put("mask", example.mask)
        self._put("offsets", [self._end])
        self._put("sources", [source])
        self._put("counted", [int(example.mask.sum())])

    def _put(self, name: str, values: Any) -> None:
        self._files[name].write(np.asarray(values, dtype=_TYPES[name]).tobytes())


def _mapped(file: Path, kind: Any) -> np.ndarray:
    if not file.stat().st_size:  # nothing can be mapped
        return np.empty(0, dtype=kind)
    return np.memmap(file, dtype=kind, mode="r")
