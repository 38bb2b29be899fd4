"""From a run's configuration to what its roles ask of the cluster.

Planning, the actors and Kubernetes manifests all read this one answer. Roles are named `policy`, `critic`, `reference`,
`rollout` and `reward:NAME`; a role that a run doesn't need (no critic, a reference inside the policy) isn't there.
Where ranks then go is decided in cluster/fit.py (beforehand) and cluster/placement.py (by Ray).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from cluster.fit import groups
from cluster.specs import RoleSpec
from rayrl.config.load import ConfigError
from rayrl.config.ppo import PPOConfig


@dataclass(frozen=True)
class PlanRow:
    """One line of the plan: a role, what each of its ranks reserves, whose bundles it shares, what it runs."""

    role: str
    ranks: int
    """0 for a reference that lives inside the policy."""
    cpus: float
    gpus: float
    strategy: str
    shares_with: str
    model: str


def reward_role(name: str) -> str:
    """The role of a reward source: "reward:questions"."""
    return f"reward:{name}"


def has_own_reference(config: PPOConfig) -> bool:
    """Whether the reference is a model of its own. With LoRA or last_n the policy's ranks hold it."""
    return config.policy.train.mode == "full"


def role_specs(config: PPOConfig) -> list[RoleSpec]:
    """The roles of a run and what they reserve.

    Raises:
        ConfigError: reservations that no device can give, or colocation groups that contradict each other.
    """
    leaders = _leaders(config)
    try:
        specs = [_placed(spec, leaders, config) for spec in _reservations(config)]
        groups(specs)
    except ValueError as error:
        raise ConfigError(f"the roles can't be placed: {error}") from None
    return specs


def _placed(spec: RoleSpec, leaders: Mapping[str, str], config: PPOConfig) -> RoleSpec:
    """With whom it shares bundles, on which nodes, and whether its ranks may come and go."""
    kind = spec.name.partition(":")[0]
    pin = {str(role): resource for role, resource in config.cluster.pin.items()}.get(kind)
    spec = replace(spec, colocate_with=leaders.get(spec.name), resources={pin: 1.0} if pin else {})
    shares = spec.name in {*leaders, *leaders.values()}
    if kind == "rollout" and not shares and not spec.strategy.startswith("STRICT"):
        return replace(spec, min_ranks=config.recovery.min_engines or spec.ranks)
    return spec


def shares_trunk(config: PPOConfig) -> bool:
    """Whether the critic takes the frozen trunk's output from the policy: the same blocks over the same micro-batches.

    On CPUs only: between GPUs the activations would pass through host memory, and the trunk is quick.
    """
    policy, critic = config.policy, config.critic
    return (
        config.uses_critic
        and critic.model == "policy"
        and policy.train.mode == critic.train.mode == "last_n"
        and policy.train.num_layers == critic.train.num_layers
        and (policy.dtype, policy.micro_batch_size) == (critic.dtype, critic.micro_batch_size)
        and policy.gpus_per_rank == critic.gpus_per_rank == 0
    )


def plan_table(config: PPOConfig) -> list[PlanRow]:
    """What `--dry-run` shows: one row a role, the reference also where it needs no actor. Raises as `role_specs`."""
    models = _models(config)
    rows = [
        PlanRow(
            spec.name,
            spec.ranks,
            spec.cpus,
            spec.gpus,
            spec.strategy,
            f"{spec.colocate_with}'s bundles" if spec.colocate_with else "own bundles",
            models[spec.name],
        )
        for spec in role_specs(config)
    ]
    if not has_own_reference(config):
        held = "adapters off" if config.policy.train.mode == "lora" else "frozen top blocks over the shared trunk"
        rows.append(PlanRow("reference", 0, 0.0, 0.0, "-", "inside the policy's ranks", held))
    return rows


def _reservations(config: PPOConfig) -> Iterator[RoleSpec]:
    strategy = config.cluster.strategy
    trainers = [("policy", config.policy)] + ([("critic", config.critic)] if config.uses_critic else [])
    for name, trainer in trainers:
        env = thread_env(trainer.threads, trainer.cpus_per_rank)
        yield RoleSpec(name, trainer.ranks, trainer.cpus_per_rank, trainer.gpus_per_rank, strategy, env=env)
    if has_own_reference(config):
        frozen = config.reference
        env = thread_env(frozen.threads, frozen.cpus_per_worker)
        yield RoleSpec("reference", frozen.workers, frozen.cpus_per_worker, frozen.gpus_per_worker, strategy, env=env)
    for entry in config.rewards:
        env = thread_env(entry.threads, entry.cpus_per_worker)
        name = reward_role(entry.name)
        yield RoleSpec(name, entry.workers, entry.cpus_per_worker, entry.gpus_per_worker, strategy, env=env)
    rollout = config.rollout
    if rollout.tensor_parallel > 1 and rollout.gpus_per_engine not in (0.0, 1.0):
        raise ValueError(
            f"rollout.gpus_per_engine must be 1 with tensor_parallel {rollout.tensor_parallel} (a whole device each), "
            f"got {rollout.gpus_per_engine:g}"
        )
    gpus = rollout.gpus_per_engine * rollout.tensor_parallel
    env = thread_env(rollout.threads, rollout.cpus_per_engine)
    yield RoleSpec("rollout", rollout.engines, rollout.cpus_per_engine, gpus, strategy, env=env)


def thread_env(threads: int | None, cpus: float) -> dict[str, str]:
    """OpenMP's thread count, which torch follows: a rank's whole CPUs unless set, at least 1.

    Roles share cores, and a thread that spins at a barrier takes the time of the one it waits for, so waiting threads
    sleep after some 50 microseconds: at once would cost generation, with its many small products, half its speed.
    """
    return {
        "OMP_NUM_THREADS": str(threads if threads is not None else max(1, int(cpus))),
        "GOMP_SPINCOUNT": "20000",
    }


def _leaders(config: PPOConfig) -> dict[str, str]:
    """For each role that shares bundles, the role that it shares them with; absent roles are passed over."""
    rewards = [reward_role(entry.name) for entry in config.rewards]
    absent = set() if config.uses_critic else {"critic"}
    if not has_own_reference(config):
        absent.add("reference")
    leaders: dict[str, str] = {}
    seen: set[str] = set()
    for kinds in config.cluster.colocate:
        roles = [role for kind in kinds for role in (rewards if kind == "reward" else [kind]) if kind not in absent]
        twice = seen.intersection(roles) or {role for role in roles if roles.count(role) > 1}
        if twice:
            raise ConfigError(
                f"cluster.colocate: {', '.join(sorted(twice))} stands there twice; a role is in one group"
            )
        seen.update(roles)
        leaders.update(dict.fromkeys(roles[1:], roles[0]) if roles else {})
    return leaders


def _models(config: PPOConfig) -> dict[str, str]:
    train = config.policy.train
    trained = {"full": "all of it", "lora": f"LoRA rank {train.lora_rank}", "last_n": f"last {train.num_layers} blocks"}
    models = {
        "policy": f"{config.policy.model} ({trained[train.mode]})",
        "critic": f"from {config.critic.model}",
        "reference": config.policy.model,
        "rollout": f"{config.rollout.backend}: {config.policy.model}",
    }
    models |= {reward_role(e.name): f"{e.kind}: {e.scores_with}" for e in config.rewards}
    return models
