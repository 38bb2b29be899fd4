"""The frozen trunk's activations of a fixed set of sequences, kept over all epochs where memory allows.

With the last N blocks trained the trunk's output for a sequence never changes, so epochs after the first need not run
it. Sequences are run in chunks of like length, the same in every run and on every rank: little is padding, and
a resumed run computes the same bits. Where nothing is frozen below, token ids go through as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rayrl.models.partition import Partition


class TrunkCache:
    """What a partition's top takes, by sequence."""

    def __init__(
        self, parts: Partition, sequences: Sequence[Tensor], pad_id: int, device: torch.device, max_gb: float, size: int
    ) -> None:
        """`sequences`: int64 [L] each; `size`: sequences a chunk. Nothing is kept unless all fit into `max_gb`."""
        self._parts, self._sequences, self._pad_id, self._device = parts, sequences, pad_id, device
        self._kept: dict[int, Tensor] = {}
        order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
        self._chunks = [order[i : i + size] for i in range(0, len(order), size)]
        self._chunk_of = {row: chunk for chunk in self._chunks for row in chunk}
        config = parts.model.config.get_text_config()
        item_size = next(parts.model.parameters()).element_size()
        needed = sum(len(ids) for ids in sequences) * config.hidden_size * item_size
        self.keeps = parts.trunk is not None and needed <= max_gb * 2**30
        """Whether activations are kept."""

    def __len__(self) -> int:
        return len(self._kept)

    def below(self, rows: Sequence[int]) -> Tensor:
        """[B, L] ids, or [B, L, D] activations, of these sequences, padded on the right."""
        if self._parts.trunk is None:
            return self._padded_ids(rows)
        if not self.keeps:
            return self._parts.trunk_output(self._padded_ids(rows))
        for row in rows:
            if row not in self._kept:
                chunk = self._chunk_of[row]
                for member, hidden_LD in zip(chunk, self._parts.trunk_output(self._padded_ids(chunk)), strict=True):
                    # cloned: a slice would hold on to the padding too
                    self._kept[member] = hidden_LD[: len(self._sequences[member])].clone()
        return pad_sequence([self._kept[row] for row in rows], batch_first=True)

    def _padded_ids(self, rows: Sequence[int]) -> Tensor:
        ids = [self._sequences[row] for row in rows]
        return pad_sequence(ids, batch_first=True, padding_value=self._pad_id).to(self._device)
