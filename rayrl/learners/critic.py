"""One rank of the critic: values of its shard and their update. The mirror of policy.py, without its other duties."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rayrl.algorithms.aggregate import aggregate, normaliser
from rayrl.algorithms.masked import Moments
from rayrl.algorithms.value_loss import explained_variance, value_loss
from rayrl.config.ppo import AlgorithmConfig, CriticConfig
from rayrl.learners.checks import require_finite, require_finite_scores
from rayrl.learners.collective import total
from rayrl.learners.experience import build_experience, sum_moments
from rayrl.learners.schedule import minibatch_schedule
from rayrl.learners.shard import Shard, accumulation_steps
from rayrl.models.deepspeed_engine import TrainEngine, starts_on_host
from rayrl.models.heads import CriticModule
from rayrl.models.loading import device, load_scorer, score_head
from rayrl.models.partition import check_views, partition, whole_weights
from rayrl.types import Rollout


class CriticLearner:
    """A critic rank."""

    def __init__(
        self,
        config: CriticConfig,
        algorithm: AlgorithmConfig,
        model_path: str,
        new_head: bool,
        pad_id: int,
        rows_per_rank: int,
        steps: int,
        seed: int,
        max_new_tokens: int,
    ) -> None:
        self._algorithm, self._pad_id, self._seed, self._max_new_tokens = algorithm, pad_id, seed, max_new_tokens
        torch.manual_seed(seed)
        model = load_scorer(model_path, config.dtype, new_head)
        if not starts_on_host(config):
            model.to(device())
        head = score_head(model)
        self.parts = partition(model, config.train)
        check_views(self.parts, device())
        head.requires_grad_(True)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        accumulation = accumulation_steps(rows_per_rank, algorithm.minibatches, config.micro_batch_size)
        self._num_micro_batches = accumulation * algorithm.minibatches
        total_steps = steps * algorithm.epochs * algorithm.minibatches
        self.train = TrainEngine(CriticModule(self.parts.top, head), config, accumulation, total_steps)
        self._shard: Shard | None = None

    def prepare(self, rollouts: Sequence[Rollout], below: list[Tensor] | None = None) -> list[np.ndarray]:
        """Takes a shard; values [T] a rollout. `below`: what the policy's trunk, which is also this one's, has made."""
        shard = Shard(rollouts, self._num_micro_batches, self._pad_id, device())
        self._shard = shard
        self.train.engine.eval()
        self._below = below or [self.parts.trunk_output(batch.ids_BL) for batch in shard.batches]
        with torch.no_grad():
            self._old: list[Tensor] = [
                self.train(below, batch) for below, batch in zip(self._below, shard.batches, strict=True)
            ]
        return shard.rows(self._old)

    def update(
        self,
        step: int,
        scores: Sequence[float],
        kl_coef: float,
        logprobs: Sequence[np.ndarray],
        ref_logprobs: Sequence[np.ndarray],
    ) -> dict[str, float]:
        """All epochs over the prepared shard; metrics over all ranks. RunError where a number isn't finite."""
        shard = self._shard
        assert shard is not None, "prepare comes before update"
        require_finite_scores(scores, step)
        experience = build_experience(
            shard,
            self._algorithm,
            kl_coef,
            shard.scalars(scores),
            shard.tokens(logprobs),
            shard.tokens(ref_logprobs),
            self._old,
        )
        torch.manual_seed(np.random.SeedSequence([self._seed, step]).generate_state(1)[0].item())
        self.train.engine.train()
        loss_sum = grad_norm = 0.0
        done = 0
        for indices in minibatch_schedule(
            self._num_micro_batches, self._algorithm.epochs, self._algorithm.minibatches, self._seed, step
        ):
            loss_sum += self._minibatch(shard, experience.returns, indices, step)
            require_finite(self.train.grad_norm, step, "critic's gradient norm")
            grad_norm += self.train.grad_norm
            done += 1
        masks = [batch.mask_BT for batch in shard.batches]
        returns: Moments = sum_moments(experience.returns, masks)
        errors = sum_moments([r - v for r, v in zip(experience.returns, self._old, strict=True)], masks)
        explained = explained_variance(returns, errors)
        metrics = {
            "loss/value": total(torch.tensor([loss_sum], dtype=torch.float64)).item() / done,
            "value/mean_return": returns.mean,
            "value/grad_norm": grad_norm / done,
            "lr/value": self.train.learning_rate,
        }
        return metrics if explained is None else {**metrics, "value/explained_variance": explained}

    def _minibatch(self, shard: Shard, returns: list[Tensor], indices: list[int], step: int) -> float:
        config = self._algorithm
        tokens = sum(float(shard.batches[i].mask_BT.sum()) for i in indices)
        rows = sum(len(shard.batches[i].mask_BT) for i in indices)
        all_tokens, all_rows = total(torch.tensor([tokens, rows], dtype=torch.float64)).tolist()
        divisor = normaliser(config.loss_aggregation, all_tokens, all_rows, self._max_new_tokens)
        loss_sum = 0.0
        for i in indices:
            batch = shard.batches[i]
            values = self.train(self._below[i], batch)
            result = value_loss(values, self._old[i], returns[i], batch.mask_BT, config.value_clip)
            loss = aggregate(result.loss_BT, batch.mask_BT, config.loss_aggregation, divisor)
            loss_sum += loss.item()
            require_finite(loss.item(), step, "value loss")
            self.train.backward(loss)
        return loss_sum

    def release(self) -> None:
        """Drops the shard."""
        self._shard, self._below, self._old = None, [], []

    def save_model(self, folder: Path, sender: bool) -> None:
        """A sequence-classification checkpoint, LoRA merged in (an adapter alone would leave out the head)."""
        weights = whole_weights(self.parts, self.train.gathered, keep=sender)
        if sender:
            self.parts.model.save_pretrained(folder, state_dict=weights)
