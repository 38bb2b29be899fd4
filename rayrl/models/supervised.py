"""What a supervised model is trained on and by: micro-batches of tokens with their targets, and the module.

A micro-batch is flat (packed: all its sequences end to end in one row) or padded on the right (one sequence a row).
Either way the vocabulary projection runs only at the positions from which a counted token is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayrl.models.logprobs import LogprobHead
from rayrl.models.segments import positions


@dataclass(frozen=True)
class SupervisedBatch:
    """Tokens of a micro-batch and what is to be predicted from them; N counted tokens."""

    ids_BL: Tensor
    predict_N: Tensor
    """Flat positions (b * L + t) from which the counted tokens are predicted."""
    target_N: Tensor
    """The counted tokens."""
    group_N: Tensor
    """What each belongs to (a source, a sequence), for sums by it."""
    lengths: tuple[int, ...] | None
    """Of the sequences in a flat batch; None where the batch is padded."""

    def layout(self) -> dict[str, Any]:
        """Keywords for the model's forward pass."""
        if self.lengths is None:
            return {}
        return {"position_ids": positions(self.lengths, self.ids_BL.device), "segment_lengths": self.lengths}


def make_batch(
    sequences: Sequence[tuple[np.ndarray, np.ndarray]],
    groups: Sequence[int],
    *,
    packed: bool,
    pad_id: int,
    device: torch.device,
) -> SupervisedBatch:
    """From (tokens [L], mask [L]) a sequence and the group of each. A sequence's first token is never counted."""
    longest = max(len(ids) for ids, _ in sequences)
    begins = np.cumsum([0] + [len(ids) if packed else longest for ids, _ in sequences])
    flat = np.full(int(begins[-1]), pad_id, dtype=np.int64)
    predict, group = [], []
    for begin, (ids, mask), number in zip(begins, sequences, groups, strict=False):
        flat[begin : begin + len(ids)] = ids
        counted = np.flatnonzero(mask[1:])
        predict.append(begin + counted)
        group.append(np.full(len(counted), number))
    predict_N = np.concatenate(predict)
    to = lambda array: torch.from_numpy(np.asarray(array, dtype=np.int64)).to(device)  # noqa: E731
    return SupervisedBatch(
        ids_BL=to(flat).view(1 if packed else len(sequences), -1),
        predict_N=to(predict_N),
        target_N=to(flat[predict_N + 1]),
        group_N=to(np.concatenate(group)),
        lengths=tuple(len(ids) for ids, _ in sequences) if packed else None,
    )


class SupervisedModule(nn.Module):
    """top + output projection -> log-probabilities of the counted tokens."""

    def __init__(self, top: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.top = top
        self.head = LogprobHead(projection)

    def forward(self, below: Tensor, batch: SupervisedBatch) -> Tensor:
        """float32 [N]. `below`: ids [B, L], or the trunk's activations of them [B, L, D]."""
        key = "inputs_embeds" if below.is_floating_point() else "input_ids"
        hidden_BLD = self.top(**{key: below}, use_cache=False, **batch.layout()).last_hidden_state
        hidden_ND = hidden_BLD.flatten(0, 1)[batch.predict_N]
        logprobs_N: Tensor = self.head(hidden_ND, batch.target_N, 1.0, False)[0]
        return logprobs_N
