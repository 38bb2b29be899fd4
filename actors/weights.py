"""Weight sync: the policy's trained parameters into every engine, versioned, with a limit on every wait.

On CPUs rank 0 sends buckets through Ray's object store and each engine hands them to its workers over shared memory. On
GPUs vLLM's own trainer engines send (nccl, or ipc where trainer and engine share the device). Engine and trainer
log-probabilities are compared on the sampled tokens themselves, so the check costs nothing.
"""

from __future__ import annotations

from actors.group import Group
from cluster.health import wait_for
from rayrl.config.ppo import SyncConfig
from rayrl.errors import RunError

PASSED_ON_S = 30.0
"""The policy is awaited so much longer than it awaits engines, so that its error, which names them, comes first."""


class WeightSync:
    """Pushes from the policy group to the rollout group."""

    def __init__(self, policy: Group, rollout: Group, config: SyncConfig, backend: str, timeout_s: float) -> None:
        self._policy, self._rollout, self._config = policy, rollout, config
        self._backend, self._timeout_s = backend, timeout_s

    def open(self, workers_per_engine: int) -> None:
        """Makes the connections that nccl and ipc need."""
        if self._backend == "shared_memory":
            return
        engines = (self._rollout.handles, self._rollout.names, workers_per_engine)
        arguments = (self._backend, *engines, self._config.bucket_mb << 20, self._timeout_s)
        limit_s = self._timeout_s + PASSED_ON_S
        self._policy.run(limit_s, "opening the weight transfer", "open_device_transfer", *arguments)

    def push(self, version: int, what: str) -> int:
        """Sends; engines then sample as `version`. Bytes sent to each. Errors name `what` and the actors awaited."""
        limit_s = self._timeout_s + PASSED_ON_S
        if self._backend != "shared_memory":
            return int(sum(self._policy.run(limit_s, what, "push_on_device", version)))
        bucket_bytes = self._config.bucket_mb << 20
        refs = []
        for rank, handle in enumerate(self._policy.handles):
            engines, names = (self._rollout.handles, self._rollout.names) if rank == 0 else ([], [])
            refs.append(handle.push.remote(engines, names, version, bucket_bytes, self._timeout_s, what))
        return int(sum(wait_for(refs, limit_s, what, self._policy.names)))

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
