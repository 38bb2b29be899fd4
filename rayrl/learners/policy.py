"""One rank of the policy: log-probabilities of its shard, the PPO update, and its weights for engines and disk.

With LoRA or last_n it answers for the reference too: the same trunk, adapters off or a frozen copy of the top. Leaves
out Ray (actors/policy.py), formulas (rayrl/algorithms) and how a model is split (rayrl/models/partition.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rayrl.algorithms.aggregate import aggregate, normaliser
from rayrl.algorithms.kl import kl_per_token
from rayrl.algorithms.policy_loss import PolicySums, importance_weights, policy_loss
from rayrl.config.ppo import AlgorithmConfig, PolicyConfig
from rayrl.learners.checks import require_finite, require_finite_scores, require_same_start
from rayrl.learners.collective import total
from rayrl.learners.experience import Experience, build_experience
from rayrl.learners.ptx import PTXBatches
from rayrl.learners.schedule import minibatch_schedule
from rayrl.learners.shard import Shard, accumulation_steps
from rayrl.models.batch import TokenBatch
from rayrl.models.deepspeed_engine import TrainEngine, starts_on_host
from rayrl.models.heads import PolicyModule, check_projection
from rayrl.models.loading import device, load_causal_lm
from rayrl.models.partition import (
    Partition,
    check_views,
    frozen_copy,
    merged_parameters,
    partition,
    whole_weights,
)
from rayrl.models.weights import Bucket, pack
from rayrl.types import Rollout


@dataclass(frozen=True)
class PolicyView:
    """What other roles need of a prepared shard, in the rollouts' order: arrays [T] a rollout."""

    logprobs: list[np.ndarray]
    ref_logprobs: list[np.ndarray] | None
    entropy_sum: float


class PolicyLearner:
    """A policy rank."""

    def __init__(
        self,
        config: PolicyConfig,
        algorithm: AlgorithmConfig,
        temperature: float,
        pad_id: int,
        rows_per_rank: int,
        steps: int,
        seed: int,
        max_new_tokens: int,
        ptx: PTXBatches | None = None,
    ) -> None:
        self._config, self._algorithm = config, algorithm
        self._temperature, self._pad_id, self._seed, self._max_new_tokens = temperature, pad_id, seed, max_new_tokens
        self._ptx = ptx
        torch.manual_seed(seed)  # LoRA's first matrices are random and must be the same on every rank
        model = load_causal_lm(config.model, config.dtype)
        if not starts_on_host(config):
            model.to(device())
        check_projection(model)
        self.parts: Partition = partition(model, config.train)
        check_views(self.parts, device())
        projection = model.get_output_embeddings()
        self._reference: PolicyModule | None = None
        if self.parts.trunk is not None:
            self._reference = PolicyModule(frozen_copy(self.parts.top), frozen_copy(projection)).eval()
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        accumulation = accumulation_steps(rows_per_rank, algorithm.minibatches, config.micro_batch_size)
        self._num_micro_batches = accumulation * algorithm.minibatches
        module = PolicyModule(self.parts.top, projection)
        self.train = TrainEngine(module, config, accumulation, steps * algorithm.epochs * algorithm.minibatches)
        self._shard: Shard | None = None

    def encode(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """Takes a shard and runs the trunk over it, once for all epochs; what the tops take, by micro-batch."""
        self._shard = Shard(rollouts, self._num_micro_batches, self._pad_id, device())
        self._below = [self.parts.trunk_output(batch.ids_BL) for batch in self._shard.batches]
        return self._below

    def prepare(self, rollouts: Sequence[Rollout] | None = None) -> PolicyView:
        """Old (and shared-reference) log-probabilities of the encoded shard (or of `rollouts`, encoded first)."""
        if rollouts is not None:
            self.encode(rollouts)
        shard = self._shard
        assert shard is not None, "encode comes before prepare"
        self.train.engine.eval()
        with torch.no_grad():
            outputs = [
                self.train(below, batch, self._temperature, True)
                for below, batch in zip(self._below, shard.batches, strict=True)
            ]
            self._old = [logprobs for logprobs, _ in outputs]
            reference = self._reference_logprobs(shard)
        entropy = float(sum(entropy.sum() for _, entropy in outputs))
        return PolicyView(shard.rows(self._old), None if reference is None else shard.rows(reference), entropy)

    def _reference_logprobs(self, shard: Shard) -> list[Tensor] | None:
        pairs = list(zip(self._below, shard.batches, strict=True))
        if self._reference is not None:
            return [self._reference(below, batch, self._temperature)[0] for below, batch in pairs]
        if self.parts.adapter is not None:
            with self.parts.without_adapter():
                return [self.train(below, batch, self._temperature)[0] for below, batch in pairs]
        return None

    def update(
        self,
        step: int,
        scores: Sequence[float],
        kl_coef: float,
        ref_logprobs: Sequence[np.ndarray],
        values: Sequence[np.ndarray] | None,
    ) -> dict[str, float]:
        """All epochs over the prepared shard; metrics over all ranks.

        RunError where a score, loss or gradient isn't finite, or the first step's reference isn't the policy's start.
        """
        shard = self._shard
        assert shard is not None, "prepare comes before update"
        require_finite_scores(scores, step)
        reference = shard.tokens(ref_logprobs)
        if step == 0:
            require_same_start(self._old, reference, shard.num_tokens)
        experience = build_experience(
            shard,
            self._algorithm,
            kl_coef,
            shard.scalars(scores),
            self._old,
            reference,
            None if values is None else shard.tokens(values),
        )
        weights = self._importance_weights(shard)
        torch.manual_seed(np.random.SeedSequence([self._seed, step]).generate_state(1)[0].item())
        self.train.engine.train()
        sums: PolicySums | None = None
        losses, grad_norm, done = np.zeros(2), 0.0, 0
        schedule = minibatch_schedule(
            self._num_micro_batches, self._algorithm.epochs, self._algorithm.minibatches, self._seed, step
        )
        for indices in schedule:
            minibatch_losses, minibatch_sums = self._minibatch(
                shard, experience, reference, weights, indices, kl_coef, step, done
            )
            sums = minibatch_sums if sums is None else sums + minibatch_sums
            losses += minibatch_losses
            require_finite(self.train.grad_norm, step, "policy's gradient norm")
            grad_norm += self.train.grad_norm
            done += 1
            if self._past_kl_limit(minibatch_sums):
                break
        assert sums is not None
        return self._metrics(
            shard, experience, PolicySums.from_tensor(total(sums.to_tensor())), losses, grad_norm, done
        )

    def _importance_weights(self, shard: Shard) -> list[Tensor] | None:
        cap = self._algorithm.importance_cap
        if cap is None:
            return None
        engine = shard.tokens([r.engine_logprobs_T for r in shard.rollouts])
        return [
            importance_weights(old, sampled, batch.mask_BT, cap)
            for old, sampled, batch in zip(self._old, engine, shard.batches, strict=True)
        ]

    def _minibatch(
        self,
        shard: Shard,
        experience: Experience,
        reference: list[Tensor],
        weights: list[Tensor] | None,
        indices: list[int],
        kl_coef: float,
        step: int,
        done: int,
    ) -> tuple[np.ndarray, PolicySums]:
        """One optimizer step; this rank's shares of the policy loss and the supervised loss [2], and its sums."""
        config = self._algorithm
        tokens = sum(float(shard.batches[i].mask_BT.sum()) for i in indices)
        rows = sum(len(shard.batches[i].mask_BT) for i in indices)
        all_tokens, all_rows = total(torch.tensor([tokens, rows], dtype=torch.float64)).tolist()
        divisor = normaliser(config.loss_aggregation, all_tokens, all_rows, self._max_new_tokens)
        ptx = self._ptx.losses(self._supervised, step, done, len(indices)) if self._ptx is not None else None
        losses, sums = np.zeros(2), None
        for position, i in enumerate(indices):
            batch = shard.batches[i]
            logprobs, entropy = self.train(self._below[i], batch, self._temperature, config.entropy_coef > 0)
            result = policy_loss(
                logprobs,
                self._old[i],
                experience.advantages[i],
                batch.mask_BT,
                config.clip_low,
                config.clip_high,
                config.dual_clip,
                None if weights is None else weights[i],
            )
            loss_BT = result.loss_BT - config.entropy_coef * entropy
            if config.kl.place == "loss":
                loss_BT = loss_BT + kl_coef * kl_per_token(logprobs, reference[i], batch.mask_BT, config.kl.estimator)
            loss = aggregate(loss_BT, batch.mask_BT, config.loss_aggregation, divisor)
            losses[0] += loss.item()
            require_finite(loss.item(), step, "policy loss")
            if ptx is not None:
                share = ptx(position)
                losses[1] += share.item()
                require_finite(share.item(), step, "supervised (PTX) loss")
                loss = loss + share
            self.train.backward(loss)
            sums = result.sums if sums is None else sums + result.sums
        assert sums is not None
        return losses, sums

    def _supervised(self, batch: TokenBatch) -> Tensor:
        logprobs_BT, _ = self.train(self.parts.trunk_output(batch.ids_BL), batch, 1.0)
        return logprobs_BT

    def _past_kl_limit(self, sums: PolicySums) -> bool:
        if self._algorithm.stop_kl is None:
            return False
        return PolicySums.from_tensor(total(sums.to_tensor())).means()["approx_kl"] > self._algorithm.stop_kl

    def _metrics(
        self, shard: Shard, experience: Experience, sums: PolicySums, losses: np.ndarray, grad_norm: float, done: int
    ) -> dict[str, float]:
        kl_sum = float(sum(kl.sum() for kl in experience.kl_per_sequence))
        loss_all, ptx_all, kl_all, tokens_all, rows_all = total(
            torch.tensor([*losses, kl_sum, shard.num_tokens, shard.num_rows], dtype=torch.float64)
        ).tolist()
        means = sums.means()
        supervised = {} if self._ptx is None else {"loss/ptx": ptx_all / done}
        return supervised | {
            "loss/policy": loss_all / done,
            "policy/approx_kl": means["approx_kl"],
            "policy/clip_fraction": means["clip_low"] + means["clip_high"],
            "policy/ratio_mean": means["ratio"],
            "policy/grad_norm": grad_norm / done,
            "policy/optimizer_steps": float(done),
            "kl/mean_per_sequence": kl_all / rows_all,
            "kl/mean_per_token": kl_all / tokens_all,
            "lr/policy": self.train.learning_rate,
        }

    def release(self) -> None:
        """Drops the shard."""
        self._shard, self._below, self._old = None, [], []

    def buckets(self, only_trained: bool, bucket_bytes: int, sender: bool) -> Iterator[Bucket]:
        """Weights for engines. Every rank must iterate (ZeRO-3 gathers); only the sender gets buckets."""
        weights = merged_parameters(self.parts, only_trained, self.train.gathered)
        if sender:
            yield from pack(weights, bucket_bytes)
        else:
            for _ in weights:
                pass

    def save_model(self, folder: Path, sender: bool) -> None:
        """Hugging Face format: safetensors, or the PEFT adapter under LoRA."""
        adapter = self.parts.adapter
        if adapter is not None:
            with self.train.gathered(param for param in adapter.parameters() if param.requires_grad):
                if sender:
                    adapter.save_pretrained(folder)  # type: ignore[operator]
            return
        weights = whole_weights(self.parts, self.train.gathered, keep=sender)
        if sender:
            self.parts.model.save_pretrained(folder, state_dict=weights)
