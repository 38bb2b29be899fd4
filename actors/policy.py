"""The policy actor: one rank of the policy group (rayrl/learners/policy.py does the work) and the sender of weights."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.trainer import TrainerActor
from actors.worker import DONE, busy
from cluster.errors import ActorLost
from cluster.health import wait_for
from rayrl.config.ppo import AlgorithmConfig, PolicyConfig, PTXConfig
from rayrl.data.chat import load_tokenizer
from rayrl.heartbeat import beat
from rayrl.learners.policy import PolicyLearner
from rayrl.learners.ptx import PTXBatches
from rayrl.models.batch import to_arrays
from rayrl.models.deepspeed_engine import init_distributed
from rayrl.models.loading import dtype_name
from rayrl.types import Rollout


class PolicyActor(TrainerActor):
    """One rank."""

    learner: PolicyLearner

    @busy
    def setup(
        self,
        rank: int,
        world_size: int,
        address: tuple[str, int],
        collective_timeout_s: float,
        config: PolicyConfig,
        algorithm: AlgorithmConfig,
        ptx_rows: Sequence[Rollout],
        **learner: Any,
    ) -> dict[str, Any]:
        """Joins the group and loads the model. `learner`: the other arguments of PolicyLearner. Returns what it is."""
        self._rank, self._config = rank, config
        init_distributed(rank, world_size, *address, collective_timeout_s)
        ptx_config: PTXConfig | None = algorithm.ptx
        ptx = None
        if ptx_config is not None:
            ptx = PTXBatches(ptx_config, ptx_rows, learner["pad_id"], learner["seed"], rank, world_size)
        self.learner = PolicyLearner(config, algorithm, ptx=ptx, **learner)
        return {"dtype": dtype_name(config.dtype), "trainable_parameters": self.learner.train.num_trained}

    @busy
    def encode(self, share: bool, *chunks: list[Rollout]) -> tuple[list[np.ndarray] | None, None]:
        """Takes the shard and runs the frozen trunk; its output where the critic shares it (num_returns=2, `DONE`)."""
        self._rollouts = list(itertools.chain.from_iterable(chunks))
        below = self.learner.encode(self._rollouts)
        return (to_arrays(below) if share else None), DONE

    @busy
    def prepare(self) -> tuple[list[np.ndarray], list[np.ndarray] | None, dict[str, float]]:
        """Old log-probabilities, the shared reference's or None, and sums for metrics (call with num_returns=3)."""
        view = self.learner.prepare()
        rollouts = self._rollouts
        gaps = [np.abs(ours - r.engine_logprobs_T) for ours, r in zip(view.logprobs, rollouts, strict=True)]
        stats = {
            "gap_sum": float(sum(gap.sum() for gap in gaps)),
            "gap_max": float(max(gap.max() for gap in gaps)),
            "tokens": float(sum(len(gap) for gap in gaps)),
            "entropy_sum": view.entropy_sum,
        }
        return view.logprobs, view.ref_logprobs, stats

    @busy
    def update(
        self,
        step: int,
        scores: Sequence[float],
        kl_coef: float,
        ref_logprobs: list[np.ndarray],
        values: list[np.ndarray] | None,
    ) -> dict[str, float]:
        """The PPO epochs over the prepared shard."""
        with self.learner.train.round(step):
            metrics = self.learner.update(step, scores, kl_coef, ref_logprobs, values)
        self.learner.release()
        return metrics

    @busy
    def push(
        self,
        engines: Mapping[str, Any],
        version: int,
        bucket_bytes: int,
        timeout_s: float,
        what: str,
    ) -> tuple[int, list[str]]:
        """Sends the trained weights to `engines`, by name (rank 0; the other ranks pass none and only gather).

        `timeout_s` is the limit for all answers of the engines together. An engine that dies gets no more, and the
        others get all. Returns the bytes sent to each, and the names of the dead.
        """
        alive, sent, deadline = dict(engines), 0, time.monotonic() + timeout_s

        def on_all(method: str, *args: Any) -> None:
            refs = {name: getattr(engine, method).remote(*args) for name, engine in alive.items()}
            for name, ref in refs.items():
                try:
                    wait_for([ref], max(0.0, deadline - time.monotonic()), f"{what}, {method}", [name])
                except ActorLost:
                    del alive[name]
            beat()

        on_all("begin_update")
        for bucket in self.learner.buckets(only_trained=True, bucket_bytes=bucket_bytes, sender=self._rank == 0):
            sent += bucket.data.nbytes
            on_all("load_bucket", ray.put(bucket))
        on_all("finish_update", version)
        return sent, [name for name in engines if name not in alive]

    @busy
    def open_device_transfer(
        self,
        backend: str,
        engines: Sequence[Any],
        names: Sequence[str],
        workers_per_engine: int,
        buffer_bytes: int,
        timeout_s: float,
    ) -> None:
        """Opens vLLM's nccl or ipc session (GPUs only)."""
        from actors.device_transfer import DeviceTransfer, EngineClient

        client = EngineClient(engines, names, workers_per_engine, timeout_s)
        self._device_transfer = DeviceTransfer(backend, self.learner, self._rank, client, buffer_bytes)

    @busy
    def push_on_device(self, version: int) -> int:
        """`push` through the session that `open_device_transfer` opened."""
        return self._device_transfer.send(version)

    @busy
    def save(self, folder: Path) -> None:
        """Model and trainer state into a checkpoint folder (all ranks)."""
        self.learner.train.save(folder / "policy_state")
        self.learner.save_model(folder / "policy", sender=self._rank == 0)
        if self._rank == 0:  # so that the folder is a whole checkpoint
            load_tokenizer(self._config.model, self._config.chat_template).save_pretrained(folder / "policy")

    @busy
    def load(self, folder: Path) -> None:
        """Restores what `save` wrote (all ranks)."""
        self.learner.train.load(folder / "policy_state")
