"""One policy rank: its update against PPO written out plainly, and every duty beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import PAD_ID, exported, make_rollouts, make_scores, policy_learner
from naive_ppo import advantages_and_returns, clipped_loss, response_logprobs, step

from rayrl.config.ppo import PTXConfig
from rayrl.errors import RunError
from rayrl.learners.policy import PolicyLearner
from rayrl.learners.ptx import PTXBatches
from rayrl.learners.shard import Shard
from rayrl.models.builtin import resolve_model
from rayrl.models.loading import device, load_causal_lm
from rayrl.models.scorer import ReferenceScorer
from rayrl.types import Rollout

pytestmark = pytest.mark.usefixtures("one_rank")
ROWS = 6
LAST_1 = {"mode": "last_n", "num_layers": 1}
LORA = {"mode": "lora", "lora_rank": 4}


def made_up(rollouts: list[Rollout], seed: int, scale: float = 0.3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(scale=scale, size=len(r.response_ids_T)).astype(np.float32) for r in rollouts]


def run_update(learner: PolicyLearner, step_number: int = 0, **changes: Any) -> dict[str, float]:
    """One iteration over the same made-up rollouts; the reference is what the policy is now."""
    rollouts = changes.pop("rollouts", make_rollouts(ROWS))
    view = learner.prepare(rollouts)
    arguments: dict[str, Any] = {
        "scores": make_scores(len(rollouts)),
        "kl_coef": 0.1,
        "ref_logprobs": view.logprobs,
        "values": made_up(rollouts, 1),
    }
    metrics = learner.update(step_number, **(arguments | changes))
    learner.release()
    return metrics


@pytest.mark.parametrize("train", [{}, LAST_1], ids=["full", "last_n"])
@pytest.mark.parametrize("model", ["tiny-random", "tiny-random-untied"])
def test_an_update_equals_plain_ppo(model: str, train: dict[str, Any]) -> None:
    """Two epochs over one minibatch of three micro-batches: in the second the ratio is no longer 1 and clips."""
    optimizer = {"lr": 2e-3, "max_grad_norm": 0.5, "eps": 1e-5, "weight_decay": 0.1}
    learner = policy_learner(ROWS, model, {"epochs": 2, "lam": 0.9}, temperature=0.7, train=train, optimizer=optimizer)
    rollouts, scores = make_rollouts(ROWS), make_scores(ROWS)
    values = made_up(rollouts, 1)
    plain = load_causal_lm(resolve_model(model), "fp32")
    old = [response_logprobs(plain, r, 0.7).detach() for r in rollouts]
    reference = [o.numpy() + d for o, d in zip(old, made_up(rollouts, 2), strict=True)]

    trained = [p for name, p in plain.named_parameters() if not train or name in _last_block_and_norm(plain, model)]
    adam = torch.optim.AdamW(trained, lr=2e-3, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1)
    pairs = [
        advantages_and_returns(s, o.numpy(), ref, v, 0.1, 0.9)[0]
        for s, o, ref, v in zip(scores, old, reference, values, strict=True)
    ]
    every = np.concatenate(pairs)
    advantages = [torch.from_numpy((a - every.mean()) / np.sqrt(every.var() + 1e-8)).float() for a in pairs]
    losses, norms, clipped = [], [], 0
    for _ in range(2):
        new = [response_logprobs(plain, r, 0.7) for r in rollouts]
        terms = [clipped_loss(n, o, a, 0.2) for n, o, a in zip(new, old, advantages, strict=True)]
        clipped += sum(int(((n - o).exp() - 1).abs().gt(0.2).sum()) for n, o in zip(new, old, strict=True))
        loss = torch.cat(terms).mean()
        losses.append(loss.item())
        norms.append(step(adam, trained, loss, 0.5))
    assert clipped > 0

    view = learner.prepare(rollouts)
    for ours, theirs in zip(view.logprobs, old, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    metrics = learner.update(1, scores, 0.1, reference, values)
    want = dict(plain.named_parameters())
    for name, tensor in exported(learner).items():
        torch.testing.assert_close(tensor, want[name].detach(), atol=1e-5, rtol=1e-5, msg=name)
    assert metrics["loss/policy"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert metrics["policy/grad_norm"] == pytest.approx(np.mean(norms), rel=1e-4)
    assert metrics["policy/optimizer_steps"] == 2
    kl = sum(float((o.numpy() - r).sum()) for o, r in zip(old, reference, strict=True))
    assert metrics["kl/mean_per_sequence"] == pytest.approx(kl / ROWS, abs=1e-4)
    assert metrics["kl/mean_per_token"] == pytest.approx(kl / len(every), abs=1e-5)


def _last_block_and_norm(plain: torch.nn.Module, model: str) -> set[str]:
    names = {name for name, _ in plain.named_parameters() if name.startswith("model.layers.1.")}
    return names | {"model.norm.weight"} | ({"lm_head.weight"} if model == "tiny-random-untied" else set())


@pytest.mark.parametrize("micro_batch_size", [1, 3, 6])
def test_micro_batches_change_nothing(micro_batch_size: int) -> None:
    want, got = policy_learner(ROWS), policy_learner(ROWS, micro_batch_size=micro_batch_size)
    run_update(want), run_update(got)
    for (name, a), (_, b) in zip(exported(want).items(), exported(got).items(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("train", [{}, LAST_1, LORA], ids=["full", "last_n", "lora"])
def test_gradient_checkpointing_changes_nothing(train: dict[str, Any]) -> None:
    want, got = policy_learner(ROWS, train=train), policy_learner(ROWS, train=train, gradient_checkpointing=True)
    run_update(want), run_update(got)
    for (name, a), (_, b) in zip(exported(want).items(), exported(got).items(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize("train", [LAST_1, LORA], ids=["last_n", "lora"])
@pytest.mark.parametrize("model", ["tiny-random", "tiny-random-untied"])
def test_a_shared_reference_starts_at_kl_0_and_stays_when_the_policy_moves(model: str, train: dict[str, Any]) -> None:
    learner, rollouts = policy_learner(ROWS, model, train=train), make_rollouts(ROWS)
    view = learner.prepare(rollouts)
    assert view.ref_logprobs is not None
    for ours, reference in zip(view.logprobs, view.ref_logprobs, strict=True):
        assert np.array_equal(ours, reference)
    metrics = learner.update(0, make_scores(ROWS), 0.1, view.ref_logprobs, made_up(rollouts, 1))
    assert metrics["kl/mean_per_sequence"] == 0.0
    after = learner.prepare(rollouts)
    assert after.ref_logprobs is not None
    for now, before in zip(after.ref_logprobs, view.ref_logprobs, strict=True):
        assert np.array_equal(now, before)
    assert max(np.abs(a - b).max() for a, b in zip(after.logprobs, view.logprobs, strict=True)) > 1e-2


def test_a_reference_of_its_own_starts_at_kl_0() -> None:
    learner, rollouts = policy_learner(ROWS), make_rollouts(ROWS)
    view = learner.prepare(rollouts)
    assert view.ref_logprobs is None
    scorer = ReferenceScorer(resolve_model("tiny-random"), "fp32", 1.0, PAD_ID)
    shard = Shard(rollouts, 3, PAD_ID, device())
    reference = shard.rows([scorer.module(batch.ids_BL, batch, 1.0)[0] for batch in shard.batches])
    assert all(np.array_equal(a, b) for a, b in zip(view.logprobs, reference, strict=True))
    metrics = learner.update(0, make_scores(ROWS), 0.1, reference, made_up(rollouts, 1))
    assert metrics["kl/mean_per_sequence"] == 0.0


def test_another_reference_stops_the_first_step_and_only_that() -> None:
    learner = policy_learner(ROWS)
    before = exported(learner)
    off = [np.zeros(len(r.response_ids_T), np.float32) for r in make_rollouts(ROWS)]
    with pytest.raises(RunError, match=r"step 0: .* differ by .* nats .* the KL starts at 0"):
        run_update(learner, 0, ref_logprobs=off)
    assert all(torch.equal(tensor, before[name]) for name, tensor in exported(learner).items())
    assert run_update(learner, 1, ref_logprobs=off)["kl/mean_per_sequence"] < -1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_stops_before_any_step(bad: float) -> None:
    learner = policy_learner(ROWS)
    before = exported(learner)
    with pytest.raises(RunError, match=r"step 4: the score of rollout 2 .* \(1 of 6"):
        run_update(learner, 4, scores=[0.0, 1.0, bad, 0.0, 0.0, 0.0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in exported(learner).items())
    assert learner.train.engine.global_steps == 0


def test_a_loss_that_is_not_finite_stops_before_any_step() -> None:
    learner = policy_learner(ROWS)
    before = exported(learner)
    values = made_up(make_rollouts(ROWS), 1)
    values[3][0] = float("nan")
    with pytest.raises(RunError, match="step 2: the policy loss is nan"):
        run_update(learner, 2, values=values)
    assert all(torch.equal(tensor, before[name]) for name, tensor in exported(learner).items())
    assert learner.train.engine.global_steps == 0


def test_passing_the_kl_limit_ends_the_epochs() -> None:
    """The first step starts at the old policy (KL 0); the second sees how far the first went."""
    steps = {
        limit: run_update(policy_learner(ROWS, algorithm={"epochs": 4, "stop_kl": limit}))["policy/optimizer_steps"]
        for limit in (None, 1e-6, 1e6)
    }
    assert steps == {None: 4, 1e-6: 2, 1e6: 4}


def test_without_advantage_nothing_moves_and_an_entropy_bonus_raises_entropy() -> None:
    rollouts = make_rollouts(ROWS)
    idle = {"scores": [0.0] * ROWS, "values": [np.zeros(len(r.response_ids_T), np.float32) for r in rollouts]}
    still = policy_learner(ROWS)
    before = exported(still)
    run_update(still, **idle)
    assert all(torch.equal(tensor, before[name]) for name, tensor in exported(still).items())
    bonus = policy_learner(ROWS, algorithm={"entropy_coef": 0.1, "epochs": 4})
    at_first = bonus.prepare(rollouts).entropy_sum
    run_update(bonus, **idle)
    assert bonus.prepare(rollouts).entropy_sum > at_first + 1


def test_importance_weights_scale_each_token_and_are_capped() -> None:
    """The engine thought every token half as likely: weight exp(ln 2) = 2, and at most 1.5 with a cap."""
    norms = {}
    for cap in (None, 3.0, 1.5):
        learner = policy_learner(ROWS, algorithm={"importance_cap": cap})
        rollouts = make_rollouts(ROWS)
        for rollout, ours in zip(rollouts, learner.prepare(rollouts).logprobs, strict=True):
            rollout.engine_logprobs_T[:] = ours - np.log(2.0)
        norms[cap] = run_update(learner, rollouts=rollouts)["policy/grad_norm"]
    assert norms[3.0] == pytest.approx(2 * norms[None], rel=1e-4)
    assert norms[1.5] == pytest.approx(1.5 * norms[None], rel=1e-4)


def test_a_penalty_in_the_loss_pulls_towards_the_reference() -> None:
    """Advantage 0: the only gradient is that of coef * mean(d^2 / 2), so the distance to the reference shrinks."""
    rollouts = make_rollouts(ROWS)
    zeros = [np.zeros(len(r.response_ids_T), np.float32) for r in rollouts]
    algorithm = {"kl": {"place": "loss", "estimator": "k2"}, "epochs": 4}
    learner = policy_learner(ROWS, algorithm=algorithm)
    view = learner.prepare(rollouts)
    reference = [ours + 0.5 for ours in view.logprobs]
    learner.update(1, [0.0] * ROWS, 1.0, reference, zeros)
    after = learner.prepare(rollouts).logprobs
    distance = [
        np.concatenate([np.abs(a - r) for a, r in zip(x, reference, strict=True)]).mean()
        for x in (view.logprobs, after)
    ]
    assert distance[1] < 0.9 * distance[0]


def test_the_supervised_term_teaches_the_reference_answers() -> None:
    answers, rollouts = make_rollouts(3, seed=8), make_rollouts(ROWS)
    idle = {"scores": [0.0] * ROWS, "values": [np.zeros(len(r.response_ids_T), np.float32) for r in rollouts]}
    ptx = PTXBatches(PTXConfig(data="-", coef=1.0, batch_size=3), answers, PAD_ID, seed=0, rank=0, world=1)
    learner = policy_learner(ROWS, ptx=ptx)
    plain = load_causal_lm(resolve_model("tiny-random"), "fp32")
    loss = -torch.cat([response_logprobs(plain, answer) for answer in answers]).mean()
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in plain.parameters()])
    metrics = run_update(learner, **idle)
    assert metrics["policy/grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert metrics["loss/ptx"] == pytest.approx(loss.item(), rel=1e-4) and abs(metrics["loss/policy"]) < 1e-6
    assert "loss/ptx" not in run_update(policy_learner(ROWS), **idle)
    for number in range(1, 5):
        run_update(learner, number, **idle)
    plain.load_state_dict(exported(learner), strict=False)
    plain.tie_weights()
    after = -torch.cat([response_logprobs(plain, answer) for answer in answers]).mean()
    assert after < loss - 0.1


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "reinforce_pp"])
def test_estimators_without_a_critic_train(estimator: str) -> None:
    """Two answers a prompt, the second better: it becomes likelier, the first less likely."""
    pairs = make_rollouts(3, longest=4)
    rollouts = [r for pair in zip(pairs, make_rollouts(3, seed=9, longest=4), strict=True) for r in pair]
    rollouts = [
        Rollout(rollouts[i - i % 2].prompt, i % 2, r.response_ids_T, r.engine_logprobs_T, "", False, 0)
        for i, r in enumerate(rollouts)
    ]
    learner = policy_learner(ROWS, algorithm={"estimator": estimator, "epochs": 2})
    before = learner.prepare(rollouts).logprobs
    run_update(learner, rollouts=rollouts, values=None, scores=[0.0, 1.0] * 3)
    gains = [(a - b).sum() for a, b in zip(learner.prepare(rollouts).logprobs, before, strict=True)]
    assert np.mean(gains[1::2]) > 0 > np.mean(gains[0::2])


@pytest.mark.parametrize("train", [{}, LAST_1], ids=["full", "last_n"])
@pytest.mark.parametrize("model", ["tiny-random", "tiny-random-untied"])
def test_a_saved_policy_is_what_engines_were_sent(tmp_path: Path, model: str, train: dict[str, Any]) -> None:
    learner = policy_learner(ROWS, model, train=train)
    run_update(learner)
    learner.save_model(tmp_path, sender=True)
    saved = dict(load_causal_lm(str(tmp_path), "fp32").named_parameters())
    sent = exported(learner)
    assert saved.keys() == sent.keys() and all(torch.equal(saved[name], sent[name]) for name in saved)


def test_a_saved_adapter_on_its_base_is_what_engines_were_sent(tmp_path: Path) -> None:
    from peft import PeftModel

    learner = policy_learner(ROWS, train=LORA)
    run_update(learner)
    learner.save_model(tmp_path, sender=True)
    base = load_causal_lm(resolve_model("tiny-random"), "fp32")
    merged = dict(PeftModel.from_pretrained(base, tmp_path).merge_and_unload().named_parameters())
    sent = exported(learner)
    assert merged.keys() == sent.keys()
    for name, tensor in sent.items():
        torch.testing.assert_close(tensor, merged[name].detach(), atol=1e-6, rtol=1e-6)


def test_only_the_sender_gets_buckets_and_only_trained_weights_go(tmp_path: Path) -> None:
    learner = policy_learner(ROWS, train=LAST_1)
    assert list(learner.buckets(only_trained=True, bucket_bytes=1 << 20, sender=False)) == []
    (bucket,) = learner.buckets(only_trained=True, bucket_bytes=1 << 20, sender=True)
    names = [entry.name for entry in bucket.entries]
    assert len(names) == 10 and all(name.startswith("model.layers.1.") or name == "model.norm.weight" for name in names)
    learner.save_model(tmp_path / "none", sender=False)
    assert not (tmp_path / "none").exists()
