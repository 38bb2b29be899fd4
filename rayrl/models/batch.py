"""Rollouts as padded tensors.

A row is prompt tokens, then response tokens, then padding on the RIGHT: under causal attention the padding touches
nothing that counts, so no attention mask is needed and positions are 0, 1, 2 ... Response tensors [B, T] hold
token t of a row's response in column t.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayrl.types import Rollout


@dataclass(frozen=True)
class TokenBatch:
    """Sequences of one micro-batch.

    B rows, L = longest row, T = longest response. Example row: prompt [5, 6], response [7, 8], L = 5:
    ids [5, 6, 7, 8, pad], response_ids [7, 8], positions [1, 2] (where token t is predicted from), mask [True, True].
    """

    ids_BL: Tensor
    response_ids_BT: Tensor
    positions_BT: Tensor
    mask_BT: Tensor


def token_batch(rollouts: Sequence[Rollout], pad_id: int, device: torch.device | str = "cpu") -> TokenBatch:
    """Pads `rollouts` into one batch on `device`."""
    lengths = [len(r.prompt.token_ids_P) + len(r.response_ids_T) for r in rollouts]
    num_rows, width = len(rollouts), max(lengths)
    longest = max(len(r.response_ids_T) for r in rollouts)
    ids = np.full((num_rows, width), pad_id, dtype=np.int64)
    response = np.full((num_rows, longest), pad_id, dtype=np.int64)
    positions = np.zeros((num_rows, longest), dtype=np.int64)
    mask = np.zeros((num_rows, longest), dtype=bool)
    for row, rollout in enumerate(rollouts):
        num_prompt, num_response = len(rollout.prompt.token_ids_P), len(rollout.response_ids_T)
        ids[row, :num_prompt] = rollout.prompt.token_ids_P
        ids[row, num_prompt : num_prompt + num_response] = rollout.response_ids_T
        response[row, :num_response] = rollout.response_ids_T
        positions[row, :num_response] = np.arange(num_prompt - 1, num_prompt - 1 + num_response)
        mask[row, :num_response] = True
    tensors = (torch.from_numpy(array).to(device) for array in (ids, response, positions, mask))
    return TokenBatch(*tensors)


def pad_responses(rows: Sequence[np.ndarray], width: int, device: torch.device | str = "cpu") -> Tensor:
    """Rows of response values as float32 [B, width], zeros on the right."""
    out = np.zeros((len(rows), width), dtype=np.float32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out).to(device)


def unpad(values_BT: Tensor, mask_BT: Tensor) -> list[np.ndarray]:
    """The valid part of every row, as float32 numpy arrays."""
    counts = mask_BT.sum(1).tolist()
    rows = values_BT.detach().float().cpu().numpy()
    return [row[:count].copy() for row, count in zip(rows, counts, strict=True)]


def micro_batches(num_rows: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` rows."""
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def to_arrays(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """For another process, which reads them without a copy: bf16, which numpy lacks, as its bits in int16."""
    return [(t.view(torch.int16) if t.dtype is torch.bfloat16 else t).cpu().numpy() for t in tensors]


def from_arrays(arrays: Sequence[np.ndarray], device: torch.device | str = "cpu") -> list[Tensor]:
    """The inverse of `to_arrays`."""
    tensors = [torch.from_numpy(array.copy()) for array in arrays]
    return [(t.view(torch.bfloat16) if t.dtype is torch.int16 else t).to(device) for t in tensors]
