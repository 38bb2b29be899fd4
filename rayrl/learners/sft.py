"""One rank of supervised fine-tuning: its share of a step, sums of log-probabilities, the checkpoint.

Every loss is the sum over counted tokens divided by the step's counted tokens over all ranks, which the plan tells
beforehand: ranks and micro-batches may be uneven. Leaves out where rows come from (data/packing.py) and the loop
(stages/sft_worker.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayrl.config.parts import RolloutConfig
from rayrl.config.sft import GuardConfig, SFTModelConfig
from rayrl.data.examples import Examples
from rayrl.data.packing import Row
from rayrl.errors import RunError
from rayrl.learners.collective import total
from rayrl.learners.gradient_guard import GradientGuard
from rayrl.models.deepspeed_engine import TrainEngine
from rayrl.models.engine import HFEngine
from rayrl.models.heads import check_projection
from rayrl.models.loading import device, load_causal_lm
from rayrl.models.partition import Partition, check_views, merged_parameters, partition
from rayrl.models.prompt_tuning import prompt_partition
from rayrl.models.segments import use_segments
from rayrl.models.supervised import SupervisedBatch, SupervisedModule, make_batch

Masked = tuple[np.ndarray, np.ndarray]
"""Tokens [L] and mask [L]."""


class SFTLearner:
    """A rank. `step`, `sums`, `save`, `load` and `save_model` are collectives."""

    def __init__(
        self,
        config: SFTModelConfig,
        guard: GuardConfig,
        model_path: str,
        *,
        packed: bool,
        pad_id: int,
        batch_size: int,
        total_steps: int,
        num_sources: int,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        self._packed, self._pad_id, self._seed, self._rank, self._world = packed, pad_id, seed, rank, world
        self._micro_batch_size, self._num_sources = config.micro_batch_size, num_sources
        self._train_mode = config.train.mode
        self.guard = GradientGuard(guard)
        torch.manual_seed(seed)  # an adapter's first values are random and must be the same on every rank
        model = load_causal_lm(model_path, config.dtype)
        model.to(device())
        check_projection(model)
        if packed:
            use_segments(model)
        if config.train.mode == "p_tuning":
            self.parts: Partition = prompt_partition(model, config.train)
        else:
            self.parts = partition(model, config.train)
            check_views(self.parts, device())
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        rows_a_rank = -(-batch_size // world)
        self._accumulation = -(-rows_a_rank // config.micro_batch_size)
        module = SupervisedModule(self.parts.top, model.get_output_embeddings())
        self.train = TrainEngine(module, config, self._accumulation, total_steps)

    def step(self, step: int, rows: Sequence[Row], data: Examples, counted: int) -> dict[str, float]:
        """One optimizer step over `rows` with `counted` tokens in the loss; metrics over all ranks.

        What isn't finite is left out. RunError after too many such steps in a row.
        """
        torch.manual_seed(np.random.SeedSequence([self._seed, step, self._rank]).generate_state(1)[0].item())
        self.train.engine.train()
        rate, scale = self.train.learning_rate, self.guard.loss_scale
        sums = torch.zeros(2, self._num_sources, dtype=torch.float64)
        for batch, weight in self._micro_batches(rows, data):
            logprobs_N = self._forward(batch)
            self.train.backward(-logprobs_N.sum() * (weight * scale / counted))
            sums += weight * _sums(logprobs_N, batch, self._num_sources)
        norm = self.train.grad_norm
        guarded = self.guard.observe(norm, step)
        if self.guard.rate_scale != 1.0:
            self.train.scale_rate(self.guard.rate_scale)
        logprob_S, tokens_S = total(sums)
        values = {"loss/train": -logprob_S.sum().item() / counted, "grad_norm": norm / scale, "lr": rate}
        shares = {f"share/{source}": share.item() for source, share in enumerate(tokens_S / counted)}
        return {key: value for key, value in values.items() if math.isfinite(value)} | guarded | shares

    @torch.no_grad()
    def sums(
        self, rows: Sequence[Sequence[Masked]], groups: Sequence[Sequence[int]], num_groups: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(sum of log-probabilities, counted tokens), float64 [groups] each, over rows that the ranks share.

        `groups`: of every sequence of every row.
        """
        self.train.engine.eval()
        size = self._micro_batch_size
        order = sorted(range(len(rows)), key=lambda i: -sum(len(ids) for ids, _ in rows[i]))
        chunks = [order[i : i + size] for i in range(0, len(order), size)]
        sums = torch.zeros(2, num_groups, dtype=torch.float64)
        for start in range(0, len(chunks), self._world):
            # A rank without a chunk of its own runs the first one: under ZeRO-3 a forward pass is a collective.
            mine = start + self._rank
            chunk = chunks[mine if mine < len(chunks) else 0]
            batch = self._make([one for i in chunk for one in rows[i]], [group for i in chunk for group in groups[i]])
            made = _sums(self._forward(batch), batch, num_groups)
            if mine < len(chunks):
                sums += made
        logprobs, tokens = total(sums).numpy()
        return logprobs, tokens

    def generate(
        self, prompts: Sequence[np.ndarray], max_new_tokens: int, end_token_ids: Sequence[int]
    ) -> list[np.ndarray]:
        """This rank's likeliest answers to prompts (token ids [P]), tokens [T] each.

        No collective: not for ZeRO-3, whose parameters no rank has whole, nor for P-tuning.
        """
        self.train.engine.eval()
        model = self.parts.model
        attention, settings = model.config._attn_implementation, model.generation_config
        model.set_attn_implementation("sdpa")  # padding on the left needs a mask, which packed rows' attention ignores
        try:
            config = RolloutConfig(backend="hf", max_new_tokens=max_new_tokens, temperature=0.0, max_num_seqs=16)
            engine = HFEngine(model, config, end_token_ids, self._pad_id)
            return [one.token_ids_T for (one,) in engine.generate(prompts, 1, self._seed)]
        finally:
            model.set_attn_implementation(attention)
            model.generation_config = settings

    def save(self, folder: Path) -> None:
        """What `load` needs, but for the guard's state."""
        self.train.save(folder)

    def load(self, folder: Path, guard: Mapping[str, Any]) -> None:
        """Restores what `save` wrote and the guard."""
        self.train.load(folder)
        self.guard.restore(guard)
        self.train.scale_rate(self.guard.rate_scale)

    def save_model(self, folder: Path) -> None:
        """A causal language model's checkpoint by rank 0, LoRA merged in; under P-tuning the adapter.

        RunError where a weight isn't finite.
        """
        with self.train.gathered(list(self.parts.model.parameters())):
            if self._rank != 0:
                return
            if self._train_mode == "p_tuning":
                self.parts.adapter.save_pretrained(str(folder))  # type: ignore[union-attr,operator]
                return
            weights = dict(merged_parameters(self.parts, only_trained=False))
            bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
            if bad:
                raise RunError(
                    f"{len(bad)} weights of the model aren't finite (first: {bad[0]}), so it isn't saved: lower "
                    "model.optimizer.lr or train in fp32"
                )
            self.parts.model.save_pretrained(folder, state_dict=weights)

    def _micro_batches(self, rows: Sequence[Row], data: Examples) -> Iterator[tuple[SupervisedBatch, float]]:
        """This rank's rows in as many micro-batches as every rank has; one without rows gets weight 0.

        Under ZeRO-3 a forward pass is a collective, so none may be left out.
        """
        mine = list(rows[self._rank :: self._world])
        if not self._packed:  # rows of like length together, so that little is padding
            mine.sort(key=lambda row: -int(data.offsets[row[0] + 1] - data.offsets[row[0]]))
        for part in np.array_split(np.arange(len(mine)), self._accumulation):
            examples = [i for number in part for i in mine[number]] or rows[0]
            sources = [int(data.sources[i]) for i in examples]
            yield self._make([data.example(i) for i in examples], sources), float(len(part) > 0)

    def _make(self, sequences: Sequence[Masked], groups: Sequence[int]) -> SupervisedBatch:
        return make_batch(sequences, groups, packed=self._packed, pad_id=self._pad_id, device=device())

    def _forward(self, batch: SupervisedBatch) -> Tensor:
        logprobs_N: Tensor = self.train(self.parts.trunk_output(batch.ids_BL, **batch.layout()), batch)
        return logprobs_N


def _sums(logprobs_N: Tensor, batch: SupervisedBatch, num_groups: int) -> Tensor:
    """float64 [2, groups]: sums of log-probabilities and counts, by group."""
    sums = torch.zeros(2, num_groups, dtype=torch.float64, device=logprobs_N.device)
    sums[0].index_add_(0, batch.group_N, logprobs_N.detach().double())
    sums[1] += torch.bincount(batch.group_N, minlength=num_groups)
    return sums.cpu()
