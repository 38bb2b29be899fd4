"""Made-up rollouts and small configurations for the tests of rayrl/models and rayrl/learners."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rayrl.config.ppo import AlgorithmConfig, CriticConfig, PolicyConfig
from rayrl.learners.critic import CriticLearner
from rayrl.learners.policy import PolicyLearner
from rayrl.models.builtin import resolve_model
from rayrl.types import Prompt, PromptRow, Rollout

torch.set_num_threads(1)  # for matrices as small as these a second thread only waits
CPU = torch.device("cpu")
PAD_ID = 0
MAX_NEW_TOKENS = 12


def make_rollout(prompt_ids: list[int], response_ids: list[int], name: str = "p", sample: int = 0) -> Rollout:
    """A rollout of these tokens; the engine's log-probabilities are made up."""
    row = PromptRow(name, [{"role": "user", "content": "?"}])
    engine = -np.linspace(0.5, 6.0, len(response_ids), dtype=np.float32)
    prompt = Prompt(row, np.asarray(prompt_ids, dtype=np.int64))
    return Rollout(prompt, sample, np.asarray(response_ids, dtype=np.int64), engine, "", False, 0)


def make_rollouts(count: int, seed: int = 0, vocab_size: int = 512, longest: int = MAX_NEW_TOKENS) -> list[Rollout]:
    """Random tokens, uneven lengths: prompts of 2 to 9, responses of 1 to `longest`."""
    rng = np.random.default_rng(seed)
    return [
        make_rollout(
            rng.integers(3, vocab_size, rng.integers(2, 10)).tolist(),
            rng.integers(3, vocab_size, rng.integers(1, longest + 1)).tolist(),
            name=f"p{i}",
        )
        for i in range(count)
    ]


def make_scores(count: int, seed: int = 0) -> list[float]:
    """One made-up score a rollout."""
    return np.random.default_rng([seed, 1]).normal(size=count).tolist()


def policy_learner(
    rows: int,
    model: str = "tiny-random",
    algorithm: dict[str, Any] | None = None,
    temperature: float = 1.0,
    ptx: Any = None,
    **config: Any,
) -> PolicyLearner:
    """A fp32 policy rank over `rows` rows; `config`: keys of PolicyConfig."""
    settings = PolicyConfig.model_validate(
        {
            "model": resolve_model(model),
            "dtype": "fp32",
            "micro_batch_size": 2,
            "optimizer": {"lr": 1e-3, "max_grad_norm": 0.5},
            **config,
        }
    )
    steps = AlgorithmConfig.model_validate({"epochs": 1, **(algorithm or {})})
    return PolicyLearner(settings, steps, temperature, PAD_ID, rows, 8, 0, MAX_NEW_TOKENS, ptx)


def critic_learner(
    rows: int, model: str = "tiny-random", algorithm: dict[str, Any] | None = None, new_head: bool = True, **config: Any
) -> CriticLearner:
    """A fp32 critic rank over `rows` rows; `config`: keys of CriticConfig."""
    settings = CriticConfig.model_validate(
        {"dtype": "fp32", "micro_batch_size": 2, "optimizer": {"lr": 1e-3, "max_grad_norm": 0.5}, **config}
    )
    steps = AlgorithmConfig.model_validate({"epochs": 1, **(algorithm or {})})
    return CriticLearner(settings, steps, resolve_model(model), new_head, PAD_ID, rows, 8, 0, MAX_NEW_TOKENS)


def exported(learner: PolicyLearner) -> dict[str, torch.Tensor]:
    """All the weights that an engine would get, by name."""
    buckets = learner.buckets(only_trained=False, bucket_bytes=1 << 30, sender=True)
    return {name: tensor.clone() for bucket in buckets for name, tensor in bucket.tensors()}
