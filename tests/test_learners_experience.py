"""From scores to advantages over a shard's micro-batches, with numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learner_cases import make_rollout

from rayrl.config.ppo import AlgorithmConfig
from rayrl.learners.experience import Experience, build_experience
from rayrl.learners.shard import Shard

LENGTHS = [3, 1, 2, 2]
"""Answers 0 and 1 are to prompt a, 2 and 3 to b; sorted by length, two prompts' answers share a micro-batch."""


def build(estimator: str, logprobs: list[list[float]] | None = None, **keys: object) -> tuple[Shard, Experience]:
    rollouts = [make_rollout([1], [5] * n, name="ab"[i // 2], sample=i % 2) for i, n in enumerate(LENGTHS)]
    shard = Shard(rollouts, 2, 0, torch.device("cpu"))
    config = AlgorithmConfig.model_validate({"estimator": estimator, **keys})
    zeros = [np.zeros(n, np.float32) for n in LENGTHS]
    policy = zeros if logprobs is None else [np.asarray(row, np.float32) for row in logprobs]
    values = shard.tokens([np.full(n, 0.5, np.float32) for n in LENGTHS])
    scores = shard.scalars([1.0, 3.0, 5.0, 5.0])
    return shard, build_experience(shard, config, 0.1, scores, shard.tokens(policy), shard.tokens(zeros), values)


def assert_rows(shard: Shard, tensors: list[torch.Tensor], *expected: list[float]) -> None:
    for row, want in zip(shard.rows(tensors), expected, strict=True):
        assert row.tolist() == pytest.approx(want, abs=1e-5)


def test_rloo_subtracts_the_other_answers_score() -> None:
    shard, experience = build("rloo", whiten_advantages=False)
    assert_rows(shard, experience.advantages, [-2.0] * 3, [2.0], [0.0] * 2, [0.0] * 2)
    assert experience.returns == []


def test_grpo_divides_by_the_groups_deviation() -> None:
    """Scores 1 and 3: mean 2, deviation sqrt(2) as a sample of two (plus 1e-4); equal scores give 0."""
    shard, experience = build("grpo")
    assert_rows(shard, experience.advantages, [-0.707057] * 3, [0.707057], [0.0] * 2, [0.0] * 2)


def test_gae_with_lambda_1_is_the_return_minus_the_value() -> None:
    shard, experience = build("gae", lam=1.0, whiten_advantages=False)
    assert_rows(shard, experience.advantages, [0.5] * 3, [2.5], [4.5] * 2, [4.5] * 2)
    assert_rows(shard, experience.returns, [1.0] * 3, [3.0], [5.0] * 2, [5.0] * 2)


def test_the_penalty_lowers_each_tokens_reward() -> None:
    """Policy above reference by 1, 0 and 2 nats, coefficient 0.1: 0.1 is lost at the first token, 0.2 at the last."""
    shard, experience = build("gae", [[1, 0, 2], [0], [0, 0], [0, 0]], lam=1.0, whiten_advantages=False)
    assert_rows(shard, experience.returns, [0.7, 0.8, 0.8], [3.0], [5.0] * 2, [5.0] * 2)
    assert sorted(float(kl) for kl_B in experience.kl_per_sequence for kl in kl_B) == [0.0, 0.0, 0.0, 3.0]


def test_group_estimators_take_the_penalty_off_the_score() -> None:
    """Answer 0 has KL 3: its score is 1 - 0.3, so the others' advantages grow by 0.3."""
    shard, experience = build("rloo", [[1, 0, 2], [0], [0, 0], [0, 0]])
    assert_rows(shard, experience.advantages, [-2.3] * 3, [2.3], [0.0] * 2, [0.0] * 2)


def test_a_penalty_in_the_loss_leaves_the_rewards_alone() -> None:
    keys = {"kl": {"place": "loss", "estimator": "k2"}, "lam": 1.0, "whiten_advantages": False}
    shard, experience = build("gae", [[1, 0, 2], [0], [0, 0], [0, 0]], **keys)
    assert_rows(shard, experience.returns, [1.0] * 3, [3.0], [5.0] * 2, [5.0] * 2)


def test_whitening_is_over_all_micro_batches() -> None:
    shard, experience = build("gae", lam=1.0)
    flat = np.concatenate(shard.rows(experience.advantages))
    assert flat.mean() == pytest.approx(0, abs=1e-6) and flat.std() == pytest.approx(1, abs=1e-5)
    assert_rows(shard, experience.returns, [1.0] * 3, [3.0], [5.0] * 2, [5.0] * 2)
