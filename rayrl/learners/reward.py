"""One rank of a reward model in training: its share of a batch of prompts, the held-out scores, the checkpoint.

Leaves out how text becomes tokens (rayrl/stages/reward_data.py), the loop and its files (stages/reward_worker.py) and
what the scores say (evaluation/preference_metrics.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rayrl.algorithms.ranking_loss import ranking_loss
from rayrl.config.reward import RewardModelConfig
from rayrl.data.order import PromptOrder
from rayrl.errors import RunError
from rayrl.learners.checks import require_finite
from rayrl.learners.collective import total
from rayrl.learners.preferences import PreferenceSet, cut, pair_batch
from rayrl.learners.trunk_cache import TrunkCache
from rayrl.models.deepspeed_engine import TrainEngine
from rayrl.models.heads import RewardModule
from rayrl.models.loading import device, load_scorer, score_head
from rayrl.models.partition import check_views, merged_parameters, partition
from rayrl.types import Rollout


class RewardLearner:
    """A rank. Every method is a collective: all ranks call it with the same arguments."""

    def __init__(
        self,
        config: RewardModelConfig,
        model_path: str,
        new_head: bool,
        train: PreferenceSet,
        heldout: PreferenceSet,
        prompts_per_step: int,
        total_steps: int,
        pad_id: int,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        self._data, self._heldout, self._seed, self._rank, self._world = train, heldout, seed, rank, world
        self._order = PromptOrder(len(train.groups), prompts_per_step, seed)
        torch.manual_seed(seed)  # LoRA's first matrices are random and must be the same on every rank
        model = load_scorer(model_path, config.dtype, new_head)
        model.config.pad_token_id = pad_id  # where the saved checkpoint is scored in padded batches
        model.to(device())
        head = score_head(model)
        self.parts = partition(model, config.train)
        check_views(self.parts, device())
        head.requires_grad_(True)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self._sequences = [token_ids(answer) for answer in (*train.answers, *heldout.answers)]
        self._cache = TrunkCache(
            self.parts, self._sequences, pad_id, device(), config.cache_gb, config.micro_batch_size
        )
        self._micro_batch_size = config.micro_batch_size
        answers_a_rank = prompts_per_step / world * len(train.answers) / len(train.groups)
        self._accumulation = max(1, min(prompts_per_step // world, round(answers_a_rank / config.micro_batch_size)))
        self.train = TrainEngine(RewardModule(self.parts.top, head), config, self._accumulation, total_steps)

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step; metrics over all ranks. RunError where a number isn't finite."""
        torch.manual_seed(np.random.SeedSequence([self._seed, step, self._rank]).generate_state(1)[0].item())
        self.train.engine.train()
        prompts = self._order.batch(step)
        loss_sum = right = decided = tokens = 0.0
        for groups in cut(self._data, prompts[self._rank :: self._world], self._accumulation):
            rows, pairs = pair_batch(self._data, groups, device())
            scores_B = self._scores(rows)
            loss = ranking_loss(scores_B, pairs) / len(prompts)
            require_finite(loss.item(), step, "ranking loss")
            self.train.backward(loss)
            loss_sum += loss.item()
            difference_N = (scores_B[pairs.better_N] - scores_B[pairs.worse_N]).detach()[~pairs.tie_N]
            right += float((difference_N > 0).sum() + 0.5 * (difference_N == 0).sum())
            decided += len(difference_N)
            tokens += sum(self._data.num_tokens(row) for row in rows)
        require_finite(self.train.grad_norm, step, "gradient norm")
        sums = total(torch.tensor([loss_sum, right, decided, tokens], dtype=torch.float64)).tolist()
        metrics = {
            "loss/ranking": sums[0],
            "grad_norm": self.train.grad_norm,
            "lr": self.train.learning_rate,
            "tokens": sums[3],
        }
        return metrics | ({"accuracy/train": sums[1] / sums[2]} if sums[2] else {})

    @torch.no_grad()
    def heldout_scores(self) -> np.ndarray:
        """float64 [answers]: the score of every held-out answer, the ranks sharing the work. RunError where one isn't
        finite.
        """
        self.train.engine.eval()
        lengths = [self._heldout.num_tokens(row) for row in range(len(self._heldout.answers))]
        order, size = np.argsort(lengths, kind="stable"), self._micro_batch_size
        chunks = [order[i : i + size] for i in range(0, len(order), size)]
        scores = np.zeros(len(order))
        for start in range(0, len(chunks), self._world):
            # A rank without a chunk of its own runs the first one: under ZeRO-3 a forward pass is a collective.
            mine = start + self._rank
            rows = chunks[mine if mine < len(chunks) else 0]
            made = self._scores((rows + len(self._data.answers)).tolist()).cpu().numpy()
            if mine < len(chunks):
                scores[rows] = made
        scores = total(torch.from_numpy(scores)).numpy()
        bad = np.sum(~np.isfinite(scores))
        if bad:
            raise RunError(
                f"{bad} of {len(scores)} held-out scores aren't finite: lower model.optimizer.lr or train in fp32"
            )
        return np.asarray(scores)

    def _scores(self, rows: Sequence[int]) -> Tensor:
        """[B], of training answers and, counted on after them, held-out ones."""
        last_B = torch.tensor([len(self._sequences[row]) - 1 for row in rows], device=device())
        scores_B: Tensor = self.train(self._cache.below(rows), last_B)
        return scores_B

    def save_model(self, folder: Path) -> None:
        """A sequence-classification checkpoint by rank 0, LoRA merged in. RunError where a weight isn't finite."""
        with self.train.gathered(list(self.parts.model.parameters())):
            if self._rank != 0:
                return
            weights = dict(merged_parameters(self.parts, only_trained=False))
            bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
            if bad:
                raise RunError(
                    f"{len(bad)} weights of the reward model aren't finite (first: {bad[0]}), so it isn't saved: "
                    "lower model.optimizer.lr or train in fp32"
                )
            self.parts.model.save_pretrained(folder, state_dict=weights)


def token_ids(answer: Rollout) -> Tensor:
    """int64 [L]: prompt, then answer."""
    return torch.from_numpy(np.concatenate([answer.prompt.token_ids_P, answer.response_ids_T]))
