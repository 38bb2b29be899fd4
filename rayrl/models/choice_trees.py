"""Questions as trees of tokens, and attention for trees that lie end to end in one flat row.

A tree is a prompt and its continuations, each token once however many continuations go through it; a token sees those
on its way to the root. Attention is registered with transformers under a name of its own, as in segments.py, and gets
the trees as the keyword `trees` with the forward pass. Keys and values of a beginning that many trees share come from a
pass of their own. Who makes batches and scores: choices.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from rayrl.models.attention import is_short, short_attention

NAME = "rayrl_trees"

Found = list[tuple[int, int, int]]
"""(the token that a target follows, the target, the continuation it belongs to)"""


@dataclass(frozen=True)
class Row:
    """Tokens that are fed for a question, and what is predicted from them; N predicted tokens."""

    ids_L: np.ndarray
    depth_L: np.ndarray
    """The position of each."""
    parent_L: np.ndarray
    """The token of this row that each follows; -1: it begins the row."""
    predict_N: np.ndarray
    """The tokens of this row that the targets follow."""
    target_N: np.ndarray
    option_N: np.ndarray
    """The continuation, numbered over all questions, that each target belongs to."""

    @property
    def num_predicting(self) -> int:
        """Tokens from which something is predicted."""
        return len(np.unique(self.predict_N))

    def mask(self, prefix: int) -> Tensor | None:
        """float32 [L, F + L]: 0 where a token sees another, itself included, else -inf; None for plain causal.

        `prefix`: F, tokens that come before the row and are seen by all of it.
        """
        length = len(self.ids_L)
        trunk = int(np.argmin(self.parent_L == np.arange(-1, length - 1))) or length
        if trunk == length and not prefix:
            return None
        sees = np.tri(length, dtype=bool)
        for token in range(trunk, length):
            sees[token] = sees[self.parent_L[token]]
            sees[token, token] = True
        mask = np.zeros((length, prefix + length), dtype=np.float32)
        mask[:, prefix:][~sees] = -np.inf
        return torch.from_numpy(mask)


def _row(ids: list[int], depth: list[int], parent: list[int], found: Found) -> Row:
    predict_N, target_N, option_N = np.array(found, dtype=np.int64).T
    ids_L, depth_L, parent_L = (np.array(values, dtype=np.int64) for values in (ids, depth, parent))
    return Row(ids_L, depth_L, parent_L, predict_N, target_N, option_N)


def tree(prompt_ids_P: np.ndarray, continuations: Sequence[np.ndarray], first: int, shared: int) -> Row:
    """A question after its first `shared` tokens, as one tree. `first`: the number of its first continuation.

    Example: prompt [5, 6], continuations [7], [8, 9], [8, 4] -> ids [5, 6, 8], predicted 7 and 8 from 6, 9 and 4 from 8
    """
    ids: list[int] = prompt_ids_P[shared:].tolist()
    depth, parent = list(range(shared, shared + len(ids))), list(range(-1, len(ids) - 1))
    nodes: dict[tuple[int, ...], int] = {(): len(ids) - 1}
    found: Found = []
    for option, continuation in enumerate(continuations, start=first):
        path: tuple[int, ...] = ()
        for target in continuation.tolist():
            if path not in nodes:
                nodes[path] = len(ids)
                parent.append(nodes[path[:-1]])
                depth.append(depth[parent[-1]] + 1)
                ids.append(path[-1])
            found.append((nodes[path], target, option))
            path = (*path, target)
    return _row(ids, depth, parent, found)


def chains(prompt_ids_P: np.ndarray, continuations: Sequence[np.ndarray], first: int) -> list[Row]:
    """A question as plain sequences: one for each way that its continuations take before their last token."""
    prompt: list[int] = prompt_ids_P.tolist()
    ways: dict[tuple[int, ...], Found] = {}
    for option, continuation in enumerate(continuations, start=first):
        found = ways.setdefault(tuple(continuation[:-1].tolist()), [])
        found += [(len(prompt) - 1 + i, target, option) for i, target in enumerate(continuation.tolist())]
    rows = []
    for way, found in ways.items():
        length = len(prompt) + len(way)
        rows.append(_row([*prompt, *way], list(range(length)), list(range(-1, length - 1)), found))
    return rows


@dataclass
class Prefix:
    """A beginning that trees share: its keys and values [1, K, F, D], by layer."""

    length: int
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass
class Trees:
    """What attention must know of a flat row."""

    lengths: tuple[int, ...]
    masks: list[Tensor | None]
    """[L, F + L] a tree; None: causal, with nothing before it."""
    depth_L: Tensor
    prefix: Prefix
    record: bool = False
    """The row is the prefix: its keys and values are kept."""


def use_trees(model: PreTrainedModel) -> None:
    """Makes `model` run `tree_attention`. Raises ValueError where it takes no other attention than its own."""
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    model.set_attn_implementation(NAME)


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    trees: Trees | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query [1, H, L, D], key and value [1, K, L, D] -> [1, L, H, D]: each token sees those on its way to the root."""
    if trees is None:
        raise TypeError(f"{type(module).__name__} doesn't hand keywords on to its attention")
    grouped: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1], "scale": scaling}
    layer: Any = module.layer_idx
    if trees.record:
        trees.prefix.layers[layer] = (key, value)
    pieces = [tensor.split(trees.lengths, dim=2) for tensor in (query, key, value)]
    attend, outputs = nn.functional.scaled_dot_product_attention, []
    for q, k, v, mask, depth_L in zip(*pieces, trees.masks, trees.depth_L.split(trees.lengths), strict=True):
        if trees.prefix.length and not trees.record:
            before = trees.prefix.layers[layer]
            k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
        if sliding_window is not None and k.shape[2] > sliding_window:
            mask = _windowed(mask, depth_L, k.shape[2] - q.shape[2], sliding_window, q.dtype)
        if is_short(q):
            found = short_attention(q, k, v, scaling, 0.0) if mask is None else _short(q, k, v, mask, scaling)
            outputs.append(found)
        else:
            outputs.append(attend(q, k, v, attn_mask=mask, is_causal=mask is None, **grouped))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _short(query: Tensor, key: Tensor, value: Tensor, mask_LS: Tensor, scaling: float | None) -> Tensor:
    """`short_attention` with a mask: twice as fast as SDPA on trees of 150 tokens, more after a long prefix."""
    _, heads, length, width = query.shape
    groups = key.shape[1]
    rows, keys, values = query.reshape(groups, -1, width), key[0], value[0]
    masks = mask_LS.repeat(heads // groups, 1).expand(groups, -1, -1)
    scores = torch.baddbmm(masks, rows, keys.transpose(1, 2), alpha=width**-0.5 if scaling is None else scaling)
    shares = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return torch.bmm(shares, values).reshape(1, heads, length, -1)


def _windowed(mask: Tensor | None, depth_L: Tensor, before: int, window: int, dtype: torch.dtype) -> Tensor:
    """The mask (None: causal) without what lies `window` or more positions back. `before`: tokens of the prefix."""
    back_LK = depth_L[:, None] - torch.cat([torch.arange(before, device=depth_L.device), depth_L])
    if mask is None:
        mask = torch.zeros(back_LK.shape, dtype=dtype, device=depth_L.device).masked_fill(back_LK < 0, float("-inf"))
    return mask.masked_fill(back_LK >= window, float("-inf"))


def _no_mask(*_: Any, **__: Any) -> None:
    """What transformers calls to make a mask: trees bring theirs."""
    return None
