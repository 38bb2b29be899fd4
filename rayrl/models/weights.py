"""Weights on their way from trainer to engine: buckets of named tensors as plain bytes.

A bucket is one contiguous buffer with a table of what lies where, so that a sync is a few large transfers, never one a
parameter. Nothing here imports vLLM: trainers without it can send.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in a bucket. Example: Entry("lm_head.weight", "bfloat16", (512, 64), 0)"""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Bucket:
    """Named tensors in one buffer of bytes."""

    entries: tuple[Entry, ...]
    data: np.ndarray

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) views of the buffer, which must not be written to."""
        yield from views(self.entries, torch.from_numpy(self.data))


def views(entries: Iterable[Entry], buffer: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) views into a uint8 `buffer`."""
    for entry in entries:
        dtype: torch.dtype = getattr(torch, entry.dtype)
        num_bytes = math.prod(entry.shape) * dtype.itemsize
        yield entry.name, buffer[entry.offset : entry.offset + num_bytes].view(dtype).view(entry.shape)


def pack(named: Iterable[tuple[str, Tensor]], bucket_bytes: int) -> Iterator[Bucket]:
    """Copies tensors into buckets of about `bucket_bytes` (one larger tensor makes a bucket of its own)."""
    waiting: list[tuple[Entry, Tensor]] = []
    size = 0
    for name, tensor in named:
        num_bytes = tensor.numel() * tensor.element_size()
        if waiting and size + num_bytes > bucket_bytes:
            yield _bucket(waiting, size)
            waiting, size = [], 0
        dtype = str(tensor.dtype).removeprefix("torch.")
        waiting.append((Entry(name, dtype, tuple(tensor.shape), size), tensor))
        size += max(1, -(-num_bytes // ALIGNMENT_BYTES)) * ALIGNMENT_BYTES  # no bucket is empty memory
    if waiting:
        yield _bucket(waiting, size)


def _bucket(waiting: list[tuple[Entry, Tensor]], size: int) -> Bucket:
    buffer = torch.zeros(size, dtype=torch.uint8)
    for (_, tensor), (_, place) in zip(waiting, views([e for e, _ in waiting], buffer), strict=True):
        place.copy_(tensor)
    return Bucket(tuple(entry for entry, _ in waiting), buffer.numpy())
