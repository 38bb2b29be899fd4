"""One critic rank: its update against the clipped value loss written out plainly, its starts and what it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import PAD_ID, critic_learner, make_rollouts, make_scores, policy_learner
from naive_ppo import advantages_and_returns, sequence_ids, step
from transformers import PreTrainedModel

from rayrl.errors import RunError, UserError
from rayrl.learners.critic import CriticLearner
from rayrl.models.builtin import resolve_model
from rayrl.models.loading import load_scorer
from rayrl.models.scorer import RewardModel
from rayrl.types import Rollout

pytestmark = pytest.mark.usefixtures("one_rank")
ROWS = 6
TRAIN = {
    "full": {},
    "last_n": {"mode": "last_n", "num_layers": 1},
    "lora": {"mode": "lora", "lora_rank": 4},
}


def noise(rollouts: list[Rollout], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=len(r.response_ids_T)).astype(np.float32) for r in rollouts]


def run_update(learner: CriticLearner, step_number: int = 0, **changes: Any) -> dict[str, float]:
    rollouts = make_rollouts(ROWS)
    learner.prepare(rollouts)
    logprobs = noise(rollouts, 1)
    arguments: dict[str, Any] = {
        "scores": make_scores(ROWS),
        "kl_coef": 0.1,
        "logprobs": logprobs,
        "ref_logprobs": noise(rollouts, 2),
    }
    return learner.update(step_number, **(arguments | changes))


@pytest.fixture(scope="module")
def reward_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("reward")
    model = load_scorer(resolve_model("tiny-random"), "fp32", new_head=True)
    torch.manual_seed(3)
    torch.nn.init.normal_(model.score.weight, std=0.1)
    model.save_pretrained(folder)
    return str(folder)


def values_of(model: PreTrainedModel, rollout: Rollout) -> torch.Tensor:
    hidden = model.base_model(sequence_ids(rollout)).last_hidden_state[0]
    length = len(rollout.response_ids_T)
    return model.score(hidden)[-length - 1 : -1, 0]


def value_terms(new: torch.Tensor, old: np.ndarray, returns: np.ndarray, clip: float) -> torch.Tensor:
    target, before = torch.from_numpy(returns).float(), torch.from_numpy(old)
    held = before + (new - before).clamp(-clip, clip)
    return 0.5 * torch.max((new - target) ** 2, (held - target) ** 2)


@pytest.mark.parametrize("train", ["full", "last_n"])
def test_an_update_equals_the_plain_value_loss(reward_checkpoint: str, train: str) -> None:
    """Three epochs of one minibatch in three micro-batches, from a reward model's head; values pass the clip, 0.05."""
    algorithm = {"epochs": 3, "lam": 0.9, "value_clip": 0.05}
    optimizer = {"lr": 2e-3, "max_grad_norm": 0.5, "eps": 1e-5}
    learner = critic_learner(ROWS, reward_checkpoint, algorithm, False, train=TRAIN[train], optimizer=optimizer)
    plain, rollouts = load_scorer(reward_checkpoint, "fp32"), make_rollouts(ROWS)
    names = [name for name, _ in plain.named_parameters()]
    kept = [n for n in names if train == "full" or n.startswith(("model.layers.1.", "model.norm", "score"))]
    adam = torch.optim.AdamW([dict(plain.named_parameters())[n] for n in kept], 2e-3, (0.9, 0.95), 1e-5, 0.0)
    old = [values_of(plain, r).detach().numpy() for r in rollouts]
    logprobs, reference, scores = noise(rollouts, 1), noise(rollouts, 2), make_scores(ROWS)
    returns = [
        advantages_and_returns(s, lp, ref, v, 0.1, 0.9)[1]
        for s, lp, ref, v in zip(scores, logprobs, reference, old, strict=True)
    ]
    losses, norms, moved = [], [], 0.0
    for _ in range(3):
        new = [values_of(plain, r) for r in rollouts]
        moved = max(float((n.detach() - torch.from_numpy(o)).abs().max()) for n, o in zip(new, old, strict=True))
        loss = torch.cat([value_terms(n, o, r, 0.05) for n, o, r in zip(new, old, returns, strict=True)]).mean()
        losses.append(loss.item())
        norms.append(step(adam, [dict(plain.named_parameters())[n] for n in kept], loss, 0.5))
    assert moved > 0.05

    for ours, theirs in zip(learner.prepare(rollouts), old, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    metrics = learner.update(0, scores, 0.1, logprobs, reference)
    for name, param in learner.parts.model.named_parameters():
        want = dict(plain.named_parameters())[name].detach()
        torch.testing.assert_close(param.detach(), want, atol=1e-5, rtol=1e-5, msg=name)
    assert metrics["loss/value"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert metrics["value/grad_norm"] == pytest.approx(np.mean(norms), rel=1e-4)
    flat_returns, flat_old = np.concatenate(returns), np.concatenate(old)
    assert metrics["value/mean_return"] == pytest.approx(flat_returns.mean(), abs=1e-5)
    explained = 1 - np.var(flat_returns - flat_old) / np.var(flat_returns)
    assert metrics["value/explained_variance"] == pytest.approx(explained, abs=1e-4)


@pytest.mark.parametrize("train", TRAIN)
def test_a_critic_from_the_policy_starts_at_0_and_learns(train: str) -> None:
    learner = critic_learner(ROWS, algorithm={"epochs": 4, "value_clip": None}, train=TRAIN[train])
    assert not any(values.any() for values in learner.prepare(make_rollouts(ROWS)))
    losses = [run_update(learner, number)["loss/value"] for number in range(5)]
    assert losses[-1] < 0.9 * losses[0]


def test_a_critic_from_a_reward_model_starts_with_its_scores(reward_checkpoint: str) -> None:
    """The state before the last token is the reward model's whole sequence without that token."""
    rollouts = [r for r in make_rollouts(ROWS) if len(r.response_ids_T) > 1]
    values = critic_learner(len(rollouts), reward_checkpoint, new_head=False).prepare(rollouts)
    shorter = [Rollout(r.prompt, 0, r.response_ids_T[:-1], r.engine_logprobs_T[:-1], "", False, 0) for r in rollouts]
    scores = RewardModel(reward_checkpoint, "fp32", PAD_ID, 4).score(shorter)
    np.testing.assert_allclose([v[-1] for v in values], scores, atol=1e-5)


def test_a_critic_reads_the_policys_trunk_as_its_own() -> None:
    learner, rollouts = critic_learner(ROWS, train=TRAIN["last_n"]), make_rollouts(ROWS)
    run_update(learner)
    own = learner.prepare(rollouts)
    below = policy_learner(ROWS, train=TRAIN["last_n"]).encode(rollouts)
    assert all(np.array_equal(a, b) for a, b in zip(own, learner.prepare(rollouts, below), strict=True))


@pytest.mark.parametrize("train", TRAIN)
def test_a_saved_critic_scores_as_the_trained_one(tmp_path: Path, train: str) -> None:
    learner = critic_learner(ROWS, train=TRAIN[train])
    run_update(learner)
    rollouts = make_rollouts(ROWS)
    values = learner.prepare(rollouts)
    learner.save_model(tmp_path, sender=True)
    saved = load_scorer(str(tmp_path), "fp32")
    with torch.no_grad():
        for ours, rollout in zip(values, rollouts, strict=True):
            np.testing.assert_allclose(ours, values_of(saved, rollout).numpy(), atol=1e-5)
    assert max(np.abs(v).max() for v in values) > 1e-3


def test_numbers_that_are_not_finite_stop_before_any_step() -> None:
    learner = critic_learner(ROWS)
    before = {name: param.detach().clone() for name, param in learner.parts.model.named_parameters()}
    with pytest.raises(RunError, match=r"step 3: the score of rollout 0 .* \(6 of 6"):
        run_update(learner, 3, scores=[float("nan")] * ROWS)
    broken = noise(make_rollouts(ROWS), 2)
    broken[1][0] = float("nan")
    with pytest.raises(RunError, match="step 3: the value loss is nan"):
        run_update(learner, 3, ref_logprobs=broken)
    assert learner.train.engine.global_steps == 0
    assert all(torch.equal(param, before[name]) for name, param in learner.parts.model.named_parameters())


def test_a_language_model_is_no_critic_checkpoint() -> None:
    with pytest.raises(UserError, match="no trained score head"):
        critic_learner(ROWS, new_head=False)
