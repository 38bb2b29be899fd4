"""A rank's share of a rollout batch, cut into micro-batches once and used for every pass over it.

Sequences are sorted by length before they are cut, so that little is padding. Everything that enters or leaves a shard
is in the rollouts' own order; inside, tensors are kept by micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rayrl.models.batch import TokenBatch, pad_responses, token_batch, unpad
from rayrl.types import Rollout


def accumulation_steps(rows_per_rank: int, minibatches: int, micro_batch_size: int) -> int:
    """Micro-batches that fill one rank's share of a minibatch."""
    return -(-rows_per_rank // minibatches // micro_batch_size)


class Shard:
    """Rollouts of one rank as micro-batches; the same number of them on every rank."""

    def __init__(self, rollouts: Sequence[Rollout], num_micro_batches: int, pad_id: int, device: torch.device) -> None:
        lengths = [len(r.prompt.token_ids_P) + len(r.response_ids_T) for r in rollouts]
        order = np.argsort(lengths, kind="stable")
        self._rows = list(np.array_split(order, num_micro_batches))
        self.device = device
        self.rollouts = rollouts
        self.batches: list[TokenBatch] = [
            token_batch([rollouts[i] for i in rows], pad_id, device) for rows in self._rows
        ]

    @property
    def num_rows(self) -> int:
        """Sequences in this shard."""
        return len(self.rollouts)

    @property
    def num_tokens(self) -> int:
        """Response tokens in this shard."""
        return sum(len(r.response_ids_T) for r in self.rollouts)

    def scalars(self, values: Sequence[float] | np.ndarray) -> list[Tensor]:
        """One number a rollout -> float32 [b] a micro-batch."""
        array = np.asarray(values, dtype=np.float32)
        return [torch.from_numpy(array[rows]).to(self.device) for rows in self._rows]

    def tokens(self, rows_T: Sequence[np.ndarray]) -> list[Tensor]:
        """One array a rollout -> float32 [b, T] a micro-batch, zeros on padding."""
        return [
            pad_responses([rows_T[i] for i in rows], batch.mask_BT.shape[1], self.device)
            for rows, batch in zip(self._rows, self.batches, strict=True)
        ]

    def rows(self, tensors_BT: Sequence[Tensor]) -> list[np.ndarray]:
        """The inverse of `tokens`: valid parts only."""
        out: list[np.ndarray] = [np.empty(0, np.float32)] * self.num_rows
        for rows, tensor_BT, batch in zip(self._rows, tensors_BT, self.batches, strict=True):
            for i, row in zip(rows, unpad(tensor_BT, batch.mask_BT), strict=True):
                out[i] = row
        return out
