"""The optional supervised (PTX) term: the doctor's answers as targets, beside the PPO loss.

InstructGPT (arXiv 2203.02155) mixes pre-training gradients into PPO to keep general ability; here the rows are
conversations with a reference answer, and the loss is their mean negative log-probability a token, over all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rayrl.config.ppo import PTXConfig
from rayrl.learners.collective import total
from rayrl.models.batch import TokenBatch, token_batch
from rayrl.models.loading import device
from rayrl.types import Rollout


class PTXBatches:
    """Supervised rows of one rank, drawn by (seed, step, optimizer step)."""

    def __init__(
        self, config: PTXConfig, rows: Sequence[Rollout], pad_id: int, seed: int, rank: int, world: int
    ) -> None:
        """`rows`: prompt and reference answer in tokens (actors/inputs.py makes them)."""
        self._config, self._rows, self._pad_id, self._seed = config, rows, pad_id, seed
        self._rank, self._world = rank, world

    def losses(
        self, logprobs: Callable[[TokenBatch], Tensor], step: int, done: int, num_micro_batches: int
    ) -> Callable[[int], Tensor]:
        """A function of the micro-batch's position in the minibatch that gives its share of the term.

        `logprobs`: the policy's log-probabilities [B, T] of a batch, differentiable.
        """
        generator = np.random.default_rng([self._seed, step, done, 1])
        drawn = generator.choice(len(self._rows), size=min(self._config.batch_size, len(self._rows)), replace=False)
        mine = np.array_split(drawn[self._rank :: self._world], num_micro_batches)
        longest_share = -(-len(drawn) // self._world)
        tokens = float(sum(len(self._rows[i].response_ids_T) for part in mine for i in part))
        all_tokens = total(torch.tensor([tokens], dtype=torch.float64)).item()

        def share(position: int) -> Tensor:
            if position >= longest_share:
                return torch.zeros((), device=device())
            # Ranks with one row less run a row that counts nothing: under ZeRO-3 a forward pass is a collective.
            rows, weight = (mine[position], self._config.coef) if len(mine[position]) else (drawn[:1], 0.0)
            batch = token_batch([self._rows[i] for i in rows], self._pad_id, device())
            return -weight * logprobs(batch).sum() / all_tokens

        return share
