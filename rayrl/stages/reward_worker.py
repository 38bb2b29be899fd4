"""What each rank of `rayrl reward` does: train, evaluate, save; and go on from the last checkpoint.

checkpoints/step-000120/   model/ (Hugging Face)   trainer/ (DeepSpeed)   heldout_scores.npy   state.json
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rayrl.config.parts import TrainableConfig
from rayrl.config.reward import RewardConfig
from rayrl.learners.preferences import PreferenceSet
from rayrl.tracking.checkpoints import CheckpointStore

MODEL, TRAINER, SCORES = "model", "trainer", "heldout_scores.npy"
BELOW_BEST = {"best_step": None, "best_accuracy": -1.0, "best_loss": math.inf}


def evaluation_steps(prompts: int, prompts_per_step: int, epochs: int, per_epoch: int) -> list[int]:
    """Numbers of optimizer steps after which to evaluate; the last is the run's length. Example: (10, 4, 2, 1): 3, 5"""
    total = math.ceil(epochs * prompts / prompts_per_step)
    points = epochs * per_epoch
    return sorted({max(1, math.ceil(total * i / points)) for i in range(1, points + 1)})


def train_loop(settings: dict[str, Any]) -> None:
    """`settings`: config (a mapping), folder, model, new_head, pad_id, and `data`, a list of one object reference."""
    import ray

    from rayrl.config.ppo import LoggingConfig
    from rayrl.learners.reward import RewardLearner
    from rayrl.stages.train_workers import join
    from rayrl.tracking.run_log import RunLog

    config = RewardConfig.model_validate(settings["config"])
    rank, world = join(config.model, config.collective_timeout_s)
    train, heldout = ray.get(settings["data"][0])
    points = evaluation_steps(len(train.groups), config.prompts_per_step, config.epochs, config.evaluation.per_epoch)
    learner = RewardLearner(
        config.model,
        settings["model"],
        settings["new_head"],
        train,
        heldout,
        config.prompts_per_step,
        points[-1],
        settings["pad_id"],
        config.seed,
        rank,
        world,
    )
    folder = Path(settings["folder"])
    store = CheckpointStore(folder, keep_last=1, keep_best=True)
    state: dict[str, Any] = {"step": 0, **BELOW_BEST}
    latest = store.latest()
    if latest is not None:
        state = store.read_state(latest[1])
        learner.train.load(latest[1] / TRAINER)
    log = None
    if rank == 0:
        log = RunLog(
            folder,
            LoggingConfig(loggers=config.loggers, text_to=[]),
            resume_step=state["step"],
            settings=settings["config"],
        )
    began = time.monotonic()
    for step in range(state["step"], points[-1]):
        metrics = learner.step(step)
        if step + 1 in points:
            scores = learner.heldout_scores()
            evaluated = heldout_metrics(heldout, scores)
            state = better_state(state, step + 1, evaluated)
            metrics |= {f"heldout/{key}": value for key, value in evaluated.items()}
        now = time.monotonic()
        metrics |= {"time/step": now - began}
        began = now
        if log is not None:
            log.metrics(step, metrics)  # before the checkpoint: a resumed run drops rows that it will write again
        if step + 1 in points:
            _save(learner, store, state, scores, rank)
    if log is not None:
        log.close()


def heldout_metrics(heldout: PreferenceSet, scores: np.ndarray) -> dict[str, float]:
    """Accuracy over the decided pairs (equal scores count half) and their mean loss, nats a pair."""
    pairs = [pair for group in heldout.groups for pair in group.pairs if not pair.tie]
    difference = np.array([scores[pair.better] - scores[pair.worse] for pair in pairs])
    return {
        "accuracy": float(np.mean((difference > 0) + 0.5 * (difference == 0))),
        "loss": float(np.mean(np.logaddexp(0.0, -difference))),
    }


def better_state(state: Mapping[str, Any], step: int, evaluated: Mapping[str, float]) -> dict[str, Any]:
    """The state after `step` steps: the best is the most accurate, of equals the one with the lower loss."""
    new = {"step": step, **{key: state[key] for key in BELOW_BEST}}
    accuracy, loss = evaluated["accuracy"], evaluated["loss"]
    if (accuracy, -loss) > (new["best_accuracy"], -new["best_loss"]):
        new |= {"best_step": step, "best_accuracy": accuracy, "best_loss": loss}
    return new


def _save(learner: Any, store: CheckpointStore, state: dict[str, Any], scores: np.ndarray, rank: int) -> None:
    import torch.distributed as dist

    if rank == 0:
        store.begin(state["step"])
    dist.barrier()
    partial = store.partial(state["step"])
    learner.save_model(partial / MODEL)
    learner.train.save(partial / TRAINER)
    dist.barrier()
    if rank == 0:
        np.save(partial / SCORES, scores)
        store.publish(state["step"], state)
    dist.barrier()


def trained_blocks(train: TrainableConfig) -> str:
    """How the model was trained, in words."""
    return {
        "full": "all weights",
        "lora": f"LoRA of rank {train.lora_rank}",
        "last_n": f"the last {train.num_layers} blocks",
    }[train.mode]
