"""From token losses to one number.

`aggregate` returns a sum over its own micro-batch, divided by what is counted over all micro-batches and ranks, so that
adding the results up gives the full batch's value whatever the split: the trainer adds gradients up and never
averages them over micro-batches. (A data-parallel engine that averages gradients over ranks needs the loss times the
number of ranks; that is the caller's.) The mean of micro-batch means, common elsewhere, weights tokens by the luck
of the split.

- token_mean: sum of token losses / tokens (DAPO, arXiv 2503.14476)
- sequence_mean: sum over sequences of each one's token mean / sequences (GRPO, arXiv 2402.03300)
- fixed_length: sum of token losses / (sequences * longest length allowed) (Dr. GRPO, arXiv 2503.20783)

A sequence without a valid token adds 0 and counts as a sequence.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from rayrl.algorithms.masked import masked_mean, masked_sum

Aggregation = Literal["token_mean", "sequence_mean", "fixed_length"]


def normaliser(how: Aggregation, num_tokens: float, num_sequences: float, max_length: int) -> float:
    """What `aggregate` divides by.

    `num_tokens` and `num_sequences` are those of one optimizer step over all micro-batches and ranks; `max_length` is
    max_new_tokens. Raises ValueError if the result isn't positive or `how` is unknown.
    """
    match how:
        case "token_mean":
            value = float(num_tokens)
        case "sequence_mean":
            value = float(num_sequences)
        case "fixed_length":
            value = float(num_sequences * max_length)
        case _:
            raise ValueError(_unknown(how))
    if not value > 0:
        raise ValueError(
            f"{how} over {num_tokens} tokens, {num_sequences} sequences and length {max_length} divides by {value}; "
            "an optimizer step needs at least one valid token over all ranks"
        )
    return value


def aggregate(loss_BT: Tensor, mask_BT: Tensor, how: Aggregation, normaliser: float) -> Tensor:
    """This micro-batch's share of the loss, a 0-d float32 tensor. Raises ValueError if `how` is unknown."""
    match how:
        case "token_mean" | "fixed_length":
            return masked_sum(loss_BT, mask_BT) / normaliser
        case "sequence_mean":
            return masked_mean(loss_BT, mask_BT, dim=1).sum() / normaliser
        case _:
            raise ValueError(_unknown(how))


def _unknown(how: str) -> str:
    return f"unknown loss aggregation {how!r}; choose token_mean, sequence_mean or fixed_length"
