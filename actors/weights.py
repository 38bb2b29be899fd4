"""Weight sync: the policy's trained parameters into every engine, versioned, with a limit on every wait.

On CPUs rank 0 sends buckets through Ray's object store and each engine hands them to its workers over shared memory. On
GPUs vLLM's own trainer engines send (nccl, or ipc where trainer and engine share the device). Engine and trainer
log-probabilities are compared on the sampled tokens themselves, so the check costs nothing.
"""

from __future__ import annotations

from typing import Any

from actors.group import Group
from actors.patience import Patience
from cluster.health import Watch
from rayrl.config.ppo import SyncConfig
from rayrl.errors import RunError

PASSED_ON_S = 30.0
"""The policy is awaited so much longer than it awaits engines, so that its error, which names them, comes first."""


class WeightSync:
    """Pushes from the policy group to engines."""

    def __init__(
        self, policy: Group, config: SyncConfig, backend: str, workers_per_engine: int, patience: Patience
    ) -> None:
        self._policy, self._config, self._backend = policy, config, backend
        self._workers_per_engine, self._patience = workers_per_engine, patience
        self._open_between: list[Any] = []

    def push(self, engines: Group, version: int, what: str) -> tuple[int, list[str]]:
        """Sends; the engines then sample as `version`. Bytes sent to each, and the names of engines that died.

        Errors name `what` and the actors awaited.
        """
        limit_s = self._patience.step_s + PASSED_ON_S
        watch = self._patience.watch("sync", self._policy, engines)
        if self._backend != "shared_memory":
            self._open(engines, watch)
            refs = self._policy.call("push_on_device", version)
            return sum(self._policy.wait(refs, limit_s, what, watch)), []
        bucket_bytes = self._config.bucket_mb << 20
        refs = []
        for rank, handle in zip(self._policy.ranks, self._policy.handles, strict=True):
            targets = engines.by_name if rank == 0 else {}
            refs.append(handle.push.remote(targets, version, bucket_bytes, self._patience.step_s, what))
        answers = self._policy.wait(refs, limit_s, what, watch)
        return answers[0]

    def _open(self, engines: Group, watch: Watch) -> None:
        """Makes the connections that nccl and ipc need, anew where another actor is at either end."""
        ends = [*self._policy.handles, *engines.handles]
        if ends == self._open_between:
            return
        targets = (engines.handles, engines.names, self._workers_per_engine)
        arguments = (self._backend, *targets, self._config.bucket_mb << 20, self._patience.step_s)
        refs = self._policy.call("open_device_transfer", *arguments)
        self._policy.wait(refs, self._patience.step_s + PASSED_ON_S, "opening the weight transfer", watch)
        self._open_between = ends

    def check(self, step: int, first_step: int, gap: float) -> None:
        """Stops the run where engine and trainer disagree about the sampled tokens: a sync went wrong.

        Looked at in the first step after a start and in every `check_every`-th.
        """
        if step != first_step and step % self._config.check_every:
            return
        if not gap <= self._config.max_logprob_gap:
            raise RunError(
                f"step {step}: engine and trainer log-probabilities of the same tokens differ by {gap:.4f} nats on "
                f"average, more than sync.max_logprob_gap ({self._config.max_logprob_gap:g}): the engine's weights "
                "aren't the trainer's, or their dtypes differ too much, or rollout.top_p < 1 or "
                "rollout.min_new_tokens > 0 renormalises what the engine reports"
            )
