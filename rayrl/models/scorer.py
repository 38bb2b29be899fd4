"""Frozen scorers: a reference's log-probabilities, a reward model's scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rayrl.models.batch import micro_batches, token_batch
from rayrl.models.heads import PolicyModule, check_projection
from rayrl.models.loading import DType, device, load_causal_lm, load_scorer, score_head
from rayrl.models.partition import run
from rayrl.types import Rollout


class ReferenceScorer:
    """The policy's start, where it isn't held by the policy's own ranks."""

    def __init__(self, path: str, dtype: DType, temperature: float, pad_id: int) -> None:
        model = load_causal_lm(path, dtype).requires_grad_(False).to(device())
        check_projection(model)
        self.module = PolicyModule(model.base_model, model.get_output_embeddings()).eval()
        self.temperature, self.pad_id = temperature, pad_id


class RewardModel:
    """A sequence-classification checkpoint that scores prompt and answer in the policy's tokens."""

    def __init__(self, path: str, dtype: DType, pad_id: int, batch_size: int) -> None:
        self._model = load_scorer(path, dtype).requires_grad_(False).to(device())
        self._head = score_head(self._model).float()  # in bf16 scores near 10 would be rounded to 1/16
        self._pad_id, self._batch_size = pad_id, batch_size

    @torch.inference_mode()
    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """One score a rollout, read at its last token."""
        lengths = np.array([len(r.prompt.token_ids_P) + len(r.response_ids_T) for r in rollouts])
        order = np.argsort(lengths, kind="stable")
        scores = np.zeros(len(rollouts))
        for rows in (order[part] for part in micro_batches(len(order), self._batch_size)):
            batch = token_batch([rollouts[i] for i in rows], self._pad_id, device())
            hidden_BLD = run(self._model.base_model, batch.ids_BL)
            last_B = torch.from_numpy(lengths[rows] - 1).to(hidden_BLD.device)
            last_BD = hidden_BLD[torch.arange(len(rows), device=hidden_BLD.device), last_B]
            scores[rows] = self._head(last_BD.float())[:, 0].cpu().numpy()
        return [float(score) for score in scores]
