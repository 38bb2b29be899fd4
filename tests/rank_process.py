"""One rank of a group in a process of its own: `python rank_process.py RANK WORLD PORT FOLDER SCENARIO ...`.

Runs scenarios of test_learners_ranks.py one after the other; rank 0 leaves FOLDER/SCENARIO.pt. Every scenario trains on
the same eight rollouts, each rank on its slice of them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learner_cases import PAD_ID, critic_learner, exported, make_rollout, make_rollouts, make_scores, policy_learner

from rayrl.config.ppo import PTXConfig
from rayrl.learners.critic import CriticLearner
from rayrl.learners.policy import PolicyLearner
from rayrl.learners.ptx import PTXBatches
from rayrl.models.deepspeed_engine import init_distributed

ROWS = 8
STEPS = 5
TRAIN: dict[str, dict[str, Any]] = {
    "full": {},
    "last_n": {"mode": "last_n", "num_layers": 1},
    "lora": {"mode": "lora", "lora_rank": 4},
}
OPTIMIZER = {"lr": 1e-3, "max_grad_norm": 0.5, "eps": 1e-5, "schedule": "linear", "warmup_steps": 2}


def rollouts_of(rank: int, world: int) -> list[Any]:
    """Rank 0 of two gets short answers and rank 1 long ones, so that no count is the same on both."""
    short, long = make_rollouts(ROWS // 2, seed=1, longest=3), make_rollouts(ROWS // 2, seed=2)
    return (short + long)[rank * ROWS // world : (rank + 1) * ROWS // world]


def slice_of(values: Any, rank: int, world: int) -> Any:
    """A rank's share of one number a rollout."""
    return values[rank * ROWS // world : (rank + 1) * ROWS // world]


def made_up(rollouts: list[Any], base: int) -> list[np.ndarray]:
    """A number a token that depends on the tokens alone, so that any split of the rollouts gives the same."""
    return [np.sin(r.response_ids_T + base).astype(np.float32) for r in rollouts]


def train_policy(learner: PolicyLearner, steps: range, rank: int, world: int) -> list[dict[str, float]]:
    """`steps` iterations of one optimizer step each; their metrics."""
    rollouts, scores = rollouts_of(rank, world), slice_of(make_scores(ROWS), rank, world)
    metrics = []
    for step in steps:
        view = learner.prepare(rollouts)
        reference = view.ref_logprobs
        if reference is None:
            reference = [
                lp + 0.1 * np.cos(r.response_ids_T).astype(np.float32) * (step > 0)
                for lp, r in zip(view.logprobs, rollouts, strict=True)
            ]
        metrics.append(learner.update(step, scores, 0.1, reference, made_up(rollouts, 0)))
        learner.release()
    return metrics


def train_critic(learner: CriticLearner, steps: range, rank: int, world: int) -> list[dict[str, float]]:
    """The critic's `train_policy`."""
    rollouts, scores = rollouts_of(rank, world), slice_of(make_scores(ROWS), rank, world)
    metrics = []
    for step in steps:
        learner.prepare(rollouts)
        metrics.append(learner.update(step, scores, 0.1, made_up(rollouts, 1), made_up(rollouts, 2)))
        learner.release()
    return metrics


def critic_weights(learner: CriticLearner) -> dict[str, torch.Tensor]:
    """All of its parameters by name (a collective under ZeRO-3)."""
    named = dict(learner.parts.model.named_parameters())
    with learner.train.gathered(list(named.values())):
        return {name: param.detach().clone() for name, param in named.items()}


def make_policy(rank: int, world: int, train: str, stage: int, model: str, **keys: Any) -> PolicyLearner:
    """A policy rank with two micro-batches (of four rows or fewer) to an optimizer step."""
    rows = ROWS // world
    settings = {"micro_batch_size": rows // 2, "zero_stage": stage, "optimizer": OPTIMIZER, "train": TRAIN[train]}
    return policy_learner(rows, model, **(settings | keys))


def make_critic(rank: int, world: int, train: str, stage: int) -> CriticLearner:
    """The critic's `make_policy`."""
    rows = ROWS // world
    return critic_learner(rows, micro_batch_size=rows // 2, zero_stage=stage, optimizer=OPTIMIZER, train=TRAIN[train])


def policy(rank: int, world: int, train: str, stage: str, model: str, dtype: str = "fp32") -> dict[str, Any]:
    """Five steps; weights and metrics."""
    learner = make_policy(rank, world, train, int(stage), model, dtype=dtype)
    metrics = train_policy(learner, range(STEPS), rank, world)
    return {"weights": exported(learner), "metrics": metrics}


def critic(rank: int, world: int, train: str, stage: str) -> dict[str, Any]:
    """Five steps; weights and metrics."""
    learner = make_critic(rank, world, train, int(stage))
    metrics = train_critic(learner, range(STEPS), rank, world)
    return {"weights": critic_weights(learner), "metrics": metrics}


def resume(rank: int, world: int, folder: Path, role: str, train: str, stage: str) -> dict[str, Any]:
    """Five steps in one go; and three, saved, loaded into a new learner, and two more."""
    make: Any = (lambda: make_policy(rank, world, train, int(stage), "tiny-random")) if role == "policy" else (
        lambda: make_critic(rank, world, train, int(stage))
    )  # fmt: skip
    run: Any = train_policy if role == "policy" else train_critic
    weights: Any = exported if role == "policy" else critic_weights
    whole, first = make(), make()
    straight = run(whole, range(STEPS), rank, world)
    halves = run(first, range(3), rank, world)
    first.train.save(folder / f"{role}-{train}-{stage}")
    second = make()
    second.train.load(folder / f"{role}-{train}-{stage}")
    loaded, saved = weights(second), weights(first)
    halves += run(second, range(3, STEPS), rank, world)
    return {
        "straight": weights(whole),
        "resumed": weights(second),
        "saved": saved,
        "loaded": loaded,
        "metrics": (straight, halves),
    }


def ptx(rank: int, world: int, stage: str) -> dict[str, Any]:
    """Three supervised rows over two ranks: one has none for its second micro-batch, and must still take part."""
    answers = [make_rollout([5, 6, i], list(range(7 + i, 10 + 2 * i))) for i in range(3)]
    rows = PTXBatches(PTXConfig(data="-", coef=1.0, batch_size=3), answers, PAD_ID, 0, rank, world)
    learner = make_policy(rank, world, "full", int(stage), "tiny-random", ptx=rows)
    return {"metrics": train_policy(learner, range(2), rank, world), "weights": exported(learner)}


def main() -> None:
    """See the module's docstring."""
    rank, world, port, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    init_distributed(rank, world, "127.0.0.1", port, timeout_s=60)
    for scenario in sys.argv[5:]:
        kind, *arguments = scenario.split(":")
        functions: dict[str, Any] = {"policy": policy, "critic": critic, "ptx": ptx}
        result = (
            resume(rank, world, folder, *arguments) if kind == "resume" else functions[kind](rank, world, *arguments)
        )
        if rank == 0:
            torch.save(result, folder / f"{scenario}.pt")


if __name__ == "__main__":
    main()
