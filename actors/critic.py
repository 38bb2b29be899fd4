"""The critic actor: one rank of the critic group. rayrl/learners/critic.py does the work."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.trainer import TrainerActor
from actors.worker import DONE, busy
from rayrl.config.ppo import AlgorithmConfig, CriticConfig
from rayrl.learners.critic import CriticLearner
from rayrl.models.batch import from_arrays
from rayrl.models.deepspeed_engine import init_distributed
from rayrl.models.loading import device, dtype_name
from rayrl.types import Rollout


class CriticActor(TrainerActor):
    """One rank."""

    learner: CriticLearner

    @busy
    def setup(
        self,
        rank: int,
        world_size: int,
        address: tuple[str, int],
        collective_timeout_s: float,
        config: CriticConfig,
        algorithm: AlgorithmConfig,
        **learner: Any,
    ) -> dict[str, Any]:
        """Joins the group and loads the model. `learner`: the other arguments of CriticLearner. Returns what it is."""
        self._rank = rank
        init_distributed(rank, world_size, *address, collective_timeout_s)
        self.learner = CriticLearner(config, algorithm, **learner)
        return {"dtype": dtype_name(config.dtype), "trainable_parameters": self.learner.train.num_trained}

    @busy
    def prepare(self, trunk: list[np.ndarray] | None, *chunks: list[Rollout]) -> tuple[list[np.ndarray], None]:
        """Values of the shard (num_returns=2, `DONE`); `trunk`: the policy's, where it is shared."""
        rollouts = list(itertools.chain.from_iterable(chunks))
        return self.learner.prepare(rollouts, None if trunk is None else from_arrays(trunk, device())), DONE

    @busy
    def update(
        self,
        step: int,
        scores: Sequence[float],
        kl_coef: float,
        logprobs: list[np.ndarray],
        ref_logprobs: list[np.ndarray],
    ) -> dict[str, float]:
        """The critic's epochs over the prepared shard."""
        with self.learner.train.round(step):
            metrics = self.learner.update(step, scores, kl_coef, logprobs, ref_logprobs)
        self.learner.release()
        return metrics

    @busy
    def save(self, folder: Path) -> None:
        """Model and trainer state into a checkpoint folder (all ranks)."""
        self.learner.train.save(folder / "critic_state")
        self.learner.save_model(folder / "critic", sender=self._rank == 0)

    @busy
    def load(self, folder: Path) -> None:
        """Restores what `save` wrote (all ranks)."""
        self.learner.train.load(folder / "critic_state")
