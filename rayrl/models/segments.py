"""Attention for packed rows: sequences lie end to end in one flat row and none sees another.

Registered with transformers under a name of its own, so that any model that goes through its attention interface runs
it. The lengths come as the keyword `segment_lengths` with the forward pass. Attention then runs segment by segment: the
work is the sum of the squares of the lengths, not the square of the sum, there is no mask to build, and no padding
anywhere. A 4D block-diagonal mask gives the same numbers and takes the square of the sum (docs/sft.md has both times).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from rayrl.errors import UserError
from rayrl.models.attention import NAME as SHORT
from rayrl.models.attention import is_short, short_attention

NAME = "rayrl_segments"


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segment_lengths: tuple[int, ...] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query [B, H, L, D], key and value [B, K, L, D] -> [B, L, H, D]. Causal inside each segment.

    Without `segment_lengths` every row is one segment. There is never a mask (`_no_mask`).
    """
    grouped: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1], "dropout_p": dropout, "scale": scaling}
    if segment_lengths is None:
        segment_lengths = (query.shape[2],)
    pieces = [tensor.split(segment_lengths, dim=2) for tensor in (query, key, value)]
    attend, outputs = nn.functional.scaled_dot_product_attention, []
    for q, k, v in zip(*pieces, strict=True):
        if is_short(q) and (sliding_window is None or q.shape[2] <= sliding_window):
            outputs.append(short_attention(q, k, v, scaling, dropout))
            continue
        band = None
        if sliding_window is not None and q.shape[2] > sliding_window:
            band = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
            band = band.triu(1 - sliding_window)
        outputs.append(attend(q, k, v, attn_mask=band, is_causal=band is None, **grouped))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _no_mask(*_: Any, **__: Any) -> None:
    """What transformers calls to make a mask: of a long flat row it would be the square of its length."""
    return None


def positions(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """int64 [1, L]: 0, 1, 2 ... anew in each segment."""
    return torch.cat([torch.arange(length, device=device) for length in lengths])[None]


def use_segments(model: PreTrainedModel) -> None:
    """Makes `model` run `segment_attention`.

    Raises UserError where it doesn't take another attention, or where two sequences in one row don't give what the
    model's own attention gives them alone (layers that look past segments, or attend in a way of their own).
    """
    ids = torch.arange(7, 30, device=model.device)[None] % model.config.vocab_size
    lengths = (9, 14)
    if model.config._attn_implementation == SHORT:
        model.set_attn_implementation("sdpa")  # the measure must not be the same code
    alone = torch.cat([_hidden(model, input_ids=part) for part in ids.split(lengths, dim=1)], dim=1)
    AttentionInterface.register(NAME, segment_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    try:
        model.set_attn_implementation(NAME)
    except ValueError as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"{type(model).__name__} can't be trained on packed rows ({first_line}): set data.packing=false"
        ) from error
    place = positions(lengths, ids.device)
    packed = _hidden(model, input_ids=ids, position_ids=place, segment_lengths=lengths)
    gaps_L = _relative_gaps(packed[0], alone[0])
    mean = max(gaps.mean().item() for gaps in gaps_L.split(lengths))  # a leak changes the second sequence alone
    largest = gaps_L.max().item()
    limit = 0.1 if packed.dtype == torch.bfloat16 else 1e-3
    if not (mean <= limit and largest <= 4 * limit):
        raise UserError(
            f"{type(model).__name__} doesn't give sequences that share a row what it gives them alone (hidden states "
            f"differ by {mean:.1%}, {largest:.1%} at the most): set data.packing=false"
        )


def _relative_gaps(found_LH: Tensor, expected_LH: Tensor) -> Tensor:
    """float32 [L]: by position, the length of the difference over that of what was expected.

    Single channels say nothing in bf16: some are a hundred times the others, and one differed by 9% between two
    kernels. Of SmolLM2-135M the sequence that differs more does so by 4% on average and 17% at the most, and by 37% and
    53% where sequences see each other.
    """
    expected = expected_LH.float()
    return (found_LH.float() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-6)


@torch.no_grad()
def _hidden(model: PreTrainedModel, **inputs: Any) -> Tensor:
    hidden: Tensor = model.base_model(use_cache=False, **inputs).last_hidden_state
    return hidden
