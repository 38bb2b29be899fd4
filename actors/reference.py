"""The reference actor: log-probabilities of the policy's frozen start, where that is a model of its own."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from actors.worker import DONE, Worker, busy
from rayrl.learners.shard import Shard
from rayrl.models.loading import DType, device, dtype_name
from rayrl.models.scorer import ReferenceScorer
from rayrl.types import Rollout


class ReferenceActor(Worker):
    """One worker."""

    @busy
    def setup(
        self, model: str, dtype: DType, temperature: float, pad_id: int, num_micro_batches: int
    ) -> dict[str, str]:
        """Loads the model; returns what it is."""
        self._scorer = ReferenceScorer(model, dtype, temperature, pad_id)
        self._num_micro_batches = num_micro_batches
        return {"dtype": dtype_name(dtype)}

    @busy
    @torch.inference_mode()
    def logprobs(self, *chunks: list[Rollout]) -> tuple[list[np.ndarray], None]:
        """Log-probabilities [T] a rollout, in the policy's own micro-batches: at step 0 they are its very bits.

        Call with num_returns=2 (`DONE`).
        """
        rollouts = list(itertools.chain.from_iterable(chunks))
        scorer = self._scorer
        shard = Shard(rollouts, self._num_micro_batches, scorer.pad_id, device())
        rows = shard.rows([scorer.module(batch.ids_BL, batch, scorer.temperature)[0] for batch in shard.batches])
        return rows, DONE
