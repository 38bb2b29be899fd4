"""The frozen trunk's activations, a sequence at a time, kept as long as memory allows.

With the last N blocks trained the trunk's output for a sequence never changes, so supervised epochs after the first
need not run it. Where nothing is frozen below, token ids go through as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rayrl.models.partition import Partition


class TrunkCache:
    """What a partition's top takes, by sequence."""

    def __init__(self, parts: Partition, pad_id: int, device: torch.device, max_gb: float) -> None:
        self._parts, self._pad_id, self._device = parts, pad_id, device
        self._kept: dict[int, Tensor] = {}
        self._room = int(max_gb * 2**30)
        """Bytes left."""

    def __len__(self) -> int:
        return len(self._kept)

    def below(self, keys: Sequence[int], sequences: Sequence[Tensor]) -> Tensor:
        """[B, L] ids, or [B, L, D] activations, padded on the right. `keys` name the sequences (int64, [L] each)."""
        if self._parts.trunk is None:
            return self._padded_ids(sequences)
        new = [i for i, key in enumerate(keys) if key not in self._kept]
        made: dict[int, Tensor] = {}
        if new:
            hidden_BLD = self._parts.trunk_output(self._padded_ids([sequences[i] for i in new]))
            made = {keys[i]: hidden_LD[: len(sequences[i])] for i, hidden_LD in zip(new, hidden_BLD, strict=True)}
            for key, hidden_LD in made.items():
                self._keep(key, hidden_LD)
        rows = [self._kept.get(key, made.get(key)) for key in keys]
        return torch.nn.utils.rnn.pad_sequence([row for row in rows if row is not None], batch_first=True)

    def _keep(self, key: int, hidden_LD: Tensor) -> None:
        size = hidden_LD.numel() * hidden_LD.element_size()
        if size <= self._room:
            self._room -= size
            self._kept[key] = hidden_LD.clone()  # the slice would hold the whole batch

    def _padded_ids(self, sequences: Sequence[Tensor]) -> Tensor:
        padded = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=self._pad_id)
        return padded.to(self._device)
