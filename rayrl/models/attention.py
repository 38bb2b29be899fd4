"""Attention for short sequences in bf16 on CPUs, where torch's own kernel is slow in the backward pass.

SDPA's CPU kernel took a third of a training step of a 135M model on 16 x 164 tokens. Written as matrix products, whose
scores are kept, the step takes 1.48 s in place of 1.89 (two cores with AMX); from some thousand tokens on their square
costs more than it saves. The numbers are those of transformers' `eager` attention: scores are rounded to
bf16, which SDPA keeps in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "rayrl_short"
MAX_LENGTH = 512


def is_short(query: Tensor) -> bool:
    """Whether `short_attention` is the faster way for query [B, H, L, D]."""
    return query.device.type == "cpu" and query.dtype is torch.bfloat16 and query.shape[2] <= MAX_LENGTH


def short_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float) -> Tensor:
    """Causal attention: query [B, H, L, D], key [B, K, L, D] and value [B, K, L, V], K dividing H -> [B, H, L, V]."""
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    # Heads that share a key stand below each other, so that keys need no copy.
    rows = query.reshape(batch * groups, -1, width)
    keys, values = (tensor.reshape(batch * groups, length, -1) for tensor in (key, value))
    future = query.new_full((length, length), float("-inf")).triu(1).repeat(heads // groups, 1)
    scale = width**-0.5 if scaling is None else scaling
    scores = torch.baddbmm(future.expand(len(rows), -1, -1), rows, keys.transpose(1, 2), alpha=scale)
    shares = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    if dropout:
        shares = nn.functional.dropout(shares, dropout)
    return torch.bmm(shares, values).reshape(batch, heads, length, -1)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    """transformers' SDPA attention, but for short rows without a mask."""
    plain = attention_mask is None and getattr(module, "is_causal", True) and others.get("is_causal") is not False
    if plain and query.shape[2] == key.shape[2] and is_short(query):
        found = short_attention(query, key, value, others.get("scaling"), others.get("dropout", 0.0))
        return found.transpose(1, 2).contiguous(), None
    found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **others)
    return found, None


def use_short_attention(model: PreTrainedModel) -> PreTrainedModel:
    """Makes a model that would run SDPA in bf16 on a CPU run this; any other is left as it is."""
    if model.config._attn_implementation == "sdpa" and model.dtype is torch.bfloat16 and not torch.cuda.is_available():
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
    return model
