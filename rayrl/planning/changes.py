"""The smallest change with which a plan that doesn't fit would: tried in order of what it costs, and planned again.

First what changes neither results nor speed much (sharding, smaller micro-batches), then what costs time (recomputing
activations, state in host memory), then the engines' share, at last more hardware. One change that is enough is
preferred over two. What a run means (model, lengths, what is trained, batch sizes of the algorithm) is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from rayrl.config.load import ConfigError
from rayrl.config.parts import TrainerConfig
from rayrl.config.ppo import PPOConfig
from rayrl.placement import reward_role, role_specs
from rayrl.planning import demands
from rayrl.planning.plan import Plan, make_plan

MOST_NODES = 64
"""That are tried on top of what is described."""
UTILIZATIONS = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
FEWER_CPUS = (0.5, 0.25)
CACHES_GB = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class Change:
    """Keys to set, or nodes to add."""

    overrides: tuple[tuple[str, Any], ...] = ()
    nodes: int = 0

    @property
    def text(self) -> str:
        """As it is written on the command line, or in words."""
        parts = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in self.overrides]
        if self.nodes:
            parts.append(f"{self.nodes} more node" + ("s" if self.nodes > 1 else ""))
        return " ".join(parts)

    def __add__(self, other: Change) -> Change:
        return Change(self.overrides + other.overrides, self.nodes + other.nodes)


def smallest_change(plan: Plan) -> Change | None:
    """The first single change, else pair of changes, that makes a plan fit; None where none of those tried does.

    Nodes are added last, and no more than it takes.
    """
    helpful = []
    for change in _candidates(plan):
        planned = _planned(plan, change)
        if planned is None:
            continue
        if planned.fits:
            return change
        # What has no place at all may have one beside another change.
        homeless = float("inf") in (plan.short, planned.short)
        if homeless or planned.short < plan.short or len(planned.problems) < len(plan.problems):
            helpful.append(change)
    more = _least_nodes(plan, Change())
    if more is not None:
        return more
    for first, second in combinations(helpful, 2):
        if {key for key, _ in first.overrides} & {key for key, _ in second.overrides}:
            continue
        planned = _planned(plan, first + second)
        if planned is not None and planned.fits:
            return first + second
    both = (_least_nodes(plan, change) for change in helpful)
    return next((change for change in both if change is not None), None)


def _least_nodes(plan: Plan, change: Change) -> Change | None:
    """A change and the fewest nodes more with which it fits; None where a description can't grow so far."""
    if not plan.machines.described or not _fits(plan, change + Change(nodes=MOST_NODES)):
        return None
    low, high = 0, MOST_NODES  # more nodes never do harm: halve the range
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits(plan, change + Change(nodes=middle)) else (middle, high)
    return change + Change(nodes=high)


def _fits(plan: Plan, change: Change) -> bool:
    planned = _planned(plan, change)
    return planned is not None and planned.fits


def _planned(plan: Plan, change: Change) -> Plan | None:
    """The plan after a change; None where the configuration would be refused."""
    machines = plan.machines.with_more(change.nodes) if change.nodes else plan.machines
    try:
        return make_plan(changed(plan.config, change), plan.shapes, machines)
    except (ValidationError, ConfigError):
        return None


def changed(config: PPOConfig, change: Change) -> PPOConfig:
    """The configuration with a change's keys set. ValidationError where they contradict others."""
    raw = config.model_dump()
    for key, value in change.overrides:
        *sections, last = key.split(".")
        node = raw
        for section in sections:
            node = next(e for e in node if e["name"] == section) if isinstance(node, list) else node[section]
        node[last] = value
    return PPOConfig.model_validate(raw)


def _candidates(plan: Plan) -> Iterator[Change]:
    config = plan.config
    trained = demands.trained_roles(config)
    on_gpu = {actor.role for actor in plan.actors if actor.gpus}
    yield from _of_trainers(config, trained, "zero_stage", lambda t: 2 if t.zero_stage < 2 <= t.ranks else None)
    for parts in (2, 4, 8, 16, 32, 64):
        yield from _of_trainers(config, trained, "micro_batch_size", lambda t, n=parts: _divided(t.micro_batch_size, n))
        for entry in config.rewards:
            if entry.kind == "model" and _divided(entry.batch_size, parts):
                yield Change(((f"rewards.{entry.name}.batch_size", _divided(entry.batch_size, parts)),))
    yield from _of_trainers(
        config, trained, "gradient_checkpointing", lambda t: None if t.gradient_checkpointing else True
    )
    yield from _of_trainers(config, trained, "zero_stage", _stage_3)
    if on_gpu.intersection(trained):
        yield from _of_trainers(
            config, trained, "offload_optimizer", lambda t: True if t.zero_stage and not t.offload_optimizer else None
        )
    yield from _of_engines(config, "rollout" in on_gpu)
    yield from _fewer_cpus(config)
    yield from _apart(config)


def _stage_3(trainer: TrainerConfig) -> int | None:
    """Not with last_n, whose frozen trunk is outside of what ZeRO-3 spreads."""
    return 3 if trainer.zero_stage < 3 and trainer.ranks > 1 and trainer.train.mode != "last_n" else None


def _divided(size: int, parts: int) -> int | None:
    return size // parts if size >= parts else None


def _of_trainers(config: PPOConfig, trained: list[str], key: str, wanted: Any) -> Iterator[Change]:
    """One key of policy, of critic, and of both; `wanted` gives its new value, or None where it stays."""
    singles = []
    for role in trained:
        trainer: TrainerConfig = config.policy if role == "policy" else config.critic
        value = wanted(trainer)
        if value is not None:
            singles.append(Change(((f"{role}.{key}", value),)))
    yield from singles
    if len(singles) == 2:
        yield singles[0] + singles[1]


def _of_engines(config: PPOConfig, on_gpu: bool) -> Iterator[Change]:
    rollout = config.rollout
    if rollout.backend == "hf":
        for parts in (2, 4, 8, 16, 32):
            if _divided(rollout.max_num_seqs, parts):
                yield Change((("rollout.max_num_seqs", _divided(rollout.max_num_seqs, parts)),))
        return
    if not on_gpu:
        for gb in sorted(CACHES_GB, key=lambda gb: abs(gb - rollout.kv_cache_gb)):
            yield Change((("rollout.kv_cache_gb", gb),))
        return
    for share in sorted(UTILIZATIONS, key=lambda share: abs(share - rollout.gpu_memory_utilization)):
        yield Change((("rollout.gpu_memory_utilization", share),))
    shared = any("rollout" in group for group in config.cluster.colocate)
    if shared and not rollout.sleep_between_phases:
        yield Change((("rollout.sleep_between_phases", True),))
    for parallel in (2, 4, 8):
        times, rest = divmod(parallel, rollout.tensor_parallel)
        if rest or times < 2 or shared:
            continue
        wider: tuple[tuple[str, Any], ...] = (("rollout.tensor_parallel", parallel), ("rollout.gpus_per_engine", 1.0))
        if rollout.engines // times:
            yield Change((*wider, ("rollout.engines", rollout.engines // times)))
        yield Change(wider)


def _fewer_cpus(config: PPOConfig) -> Iterator[Change]:
    """Half a CPU or a quarter, which is enough where roles share cores, in place of more: of one role, of all."""
    keys = {
        "policy": "policy.cpus_per_rank",
        "critic": "critic.cpus_per_rank",
        "reference": "reference.cpus_per_worker",
        "rollout": "rollout.cpus_per_engine",
        **{reward_role(entry.name): f"rewards.{entry.name}.cpus_per_worker" for entry in config.rewards},
    }
    reserved = {keys[spec.name]: spec.cpus for spec in role_specs(config)}
    for fewer in FEWER_CPUS:
        less = tuple((key, fewer) for key, cpus in reserved.items() if cpus > fewer)
        yield from (Change((one,)) for one in less)
        if len(less) > 1:
            yield Change(less)


def _apart(config: PPOConfig) -> Iterator[Change]:
    """Whole GPUs in place of shares, for roles that share devices."""
    shared = [group for group in config.cluster.colocate if len(group) > 1]
    for group in shared:
        keys = {
            "policy": ("policy.gpus_per_rank", config.policy.gpus_per_rank),
            "critic": ("critic.gpus_per_rank", config.critic.gpus_per_rank),
            "reference": ("reference.gpus_per_worker", config.reference.gpus_per_worker),
            "rollout": ("rollout.gpus_per_engine", config.rollout.gpus_per_engine),
        }
        wanted = [(keys[role][0], 1.0) for role in group if role in keys and 0 < keys[role][1] < 1]
        rest = [other for other in config.cluster.colocate if other is not group]
        if wanted:
            yield Change((("cluster.colocate", rest), *wanted))
