"""The modules that DeepSpeed trains: the policy's log-probabilities, the critic's values, the reward model's scores.

All take what a partition's top takes (token ids, or the trunk's kept activations). Policy and critic look only at the
positions from which response tokens are predicted, the reward model at a sequence's last.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rayrl.errors import UserError
from rayrl.models.batch import TokenBatch
from rayrl.models.logprobs import LogprobHead
from rayrl.models.partition import run


def _at(hidden_BLD: Tensor, positions_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Hidden states [N, D] at the N valid positions, row by row."""
    rows_BT = torch.arange(len(positions_BT), device=positions_BT.device)[:, None].expand_as(positions_BT)
    return hidden_BLD[rows_BT[mask_BT], positions_BT[mask_BT]]


def _back(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """[N] values at the valid places of a [B, T] tensor of zeros (differentiable)."""
    return torch.zeros(mask_BT.shape, dtype=values_N.dtype, device=values_N.device).masked_scatter(mask_BT, values_N)


class PolicyModule(nn.Module):
    """top + output projection -> log-probabilities of the response tokens."""

    def __init__(self, top: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.top = top
        self.head = LogprobHead(projection)

    def forward(
        self, below: Tensor, batch: TokenBatch, temperature: float, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies [B, T], float32, 0 outside the mask, at the sampling temperature.

        `below`: ids [B, L] or trunk activations [B, L, D].
        """
        hidden_ND = _at(run(self.top, below), batch.positions_BT, batch.mask_BT)
        logprobs_N, entropy_N = self.head(hidden_ND, batch.response_ids_BT[batch.mask_BT], temperature, with_entropy)
        return _back(logprobs_N, batch.mask_BT), _back(entropy_N, batch.mask_BT)


class CriticModule(nn.Module):
    """top + linear head with one output -> values at the response tokens' states."""

    def __init__(self, top: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.top = top
        self.head = head

    def forward(self, below: Tensor, batch: TokenBatch) -> Tensor:
        """Values [B, T], float32: column t is the value of the state in which response token t is chosen."""
        hidden_ND = _at(run(self.top, below), batch.positions_BT, batch.mask_BT)
        return _back(self.head(hidden_ND).float()[:, 0], batch.mask_BT)


class RewardModule(nn.Module):
    """top + linear head with one output -> a score a sequence."""

    def __init__(self, top: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.top = top
        self.head = head

    def forward(self, below: Tensor, last_B: Tensor) -> Tensor:
        """Scores [B], float32, at positions `last_B`: those of the sequences' last tokens, padding being on the right.

        In float32 whatever the weights: in bf16 scores near 10 would be rounded to 1/16 (scorer.py does the same).
        """
        hidden_BLD = run(self.top, below)
        hidden_BD = hidden_BLD[torch.arange(len(last_B), device=last_B.device), last_B]
        bias = None if self.head.bias is None else self.head.bias.float()
        return torch.nn.functional.linear(hidden_BD.float(), self.head.weight.float(), bias)[:, 0]


@torch.no_grad()
def check_projection(model: PreTrainedModel) -> None:
    """Stops if the model's log-probabilities aren't those of its output projection alone, which is all PolicyModule
    reads: models that scale or cap their logits (Cohere, Granite, Gemma 2). Call it before DeepSpeed takes the model.
    """
    ids = torch.arange(7, 19, device=model.device)[None] % model.config.vocab_size
    head = LogprobHead(model.get_output_embeddings())
    ours = torch.nn.functional.linear(run(model.base_model, ids), head.weight, head.bias)
    theirs = model(input_ids=ids, use_cache=False).logits
    gap = (ours.float().log_softmax(-1) - theirs.float().log_softmax(-1)).abs().max().item()
    rounding = 2 * torch.finfo(ours.dtype).eps * ours.abs().max().item()
    if not gap <= max(1e-4, rounding):
        raise UserError(
            f"{type(model).__name__} does more to its logits than a projection (it scales or caps them): its "
            f"log-probabilities differ by {gap:.3g} nats from those that rayrl would train on; use another model"
        )
