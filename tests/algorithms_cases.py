"""Random padded batches for the tests of rayrl/algorithms, and ways to change them that must change no result."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

GARBAGE = (float("nan"), float("inf"), float("-inf"), 1e30)


@dataclass(frozen=True)
class Batch:
    """Everything that any function here takes. Outside the mask: ordinary numbers."""

    mask_BT: Tensor
    logprobs_BT: Tensor
    old_logprobs_BT: Tensor
    ref_logprobs_BT: Tensor
    advantages_BT: Tensor
    rewards_BT: Tensor
    values_BT: Tensor
    old_values_BT: Tensor
    returns_BT: Tensor
    scores_B: Tensor
    group_ids_B: Tensor

    def map_BT(self, change) -> Batch:
        """With `change` applied to every [B, T] tensor but the mask."""
        names = [field.name for field in fields(self) if field.name.endswith("_BT") and field.name != "mask_BT"]
        return replace(self, **{name: change(getattr(self, name)) for name in names})


@st.composite
def batches(draw, min_sequences: int = 2, max_sequences: int = 5, max_tokens: int = 7) -> Batch:
    """B sequences of T tokens, any mask (empty rows, holes, padding on either side), groups of two prompts at most."""
    B = draw(st.integers(min_sequences, max_sequences))
    T = draw(st.integers(1, max_tokens))
    mask_BT = torch.tensor(draw(st.lists(st.lists(st.booleans(), min_size=T, max_size=T), min_size=B, max_size=B)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    names = [field.name for field in fields(Batch) if field.name.endswith("_BT") and field.name != "mask_BT"]
    tensors = {name: torch.randn(B, T, generator=generator) for name in names}
    scores_B = torch.randn(B, generator=generator)
    # Ids are arbitrary integers; every group has at least two members.
    group_ids_B = torch.tensor([7 if B < 4 or i % 2 else -3 for i in range(B)])
    return Batch(mask_BT, scores_B=scores_B, group_ids_B=group_ids_B, **tensors)


def spoil(batch: Batch) -> Batch:
    """The same batch with NaN, infinities and huge numbers everywhere outside the mask."""
    garbage_BT = torch.tensor(GARBAGE).repeat(batch.mask_BT.numel())[: batch.mask_BT.numel()].view(batch.mask_BT.shape)
    return batch.map_BT(lambda x_BT: torch.where(batch.mask_BT, x_BT, garbage_BT))


def stretch(batch: Batch, columns: list[int], length: int) -> Batch:
    """The same tokens at `columns` of a batch of `length` columns; the new ones are outside the mask, and NaN."""

    def move(x_BT: Tensor) -> Tensor:
        moved_BT = x_BT.new_full((len(x_BT), length), float("nan"))
        moved_BT[:, columns] = x_BT
        return moved_BT

    mask_BT = torch.zeros(len(batch.mask_BT), length, dtype=torch.bool)
    mask_BT[:, columns] = batch.mask_BT
    return replace(batch.map_BT(move), mask_BT=mask_BT)


def take(batch: Batch, rows: list[int]) -> Batch:
    """The sequences of those rows, in that order."""
    return replace(batch, **{field.name: getattr(batch, field.name)[rows] for field in fields(batch)})
