"""The actors of a run, and how each is started: all at the beginning, and some again when they were lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from actors.critic import CriticActor
from actors.engines import Engines
from actors.group import Group
from actors.inputs import Inputs
from actors.policy import PolicyActor
from actors.record import describe_actors
from actors.reference import ReferenceActor
from actors.reward import RewardActor
from actors.rollout import RolloutActor
from cluster.errors import ActorLost
from cluster.placement import Placement
from rayrl.config.ppo import PPOConfig, RewardEntry
from rayrl.learners.shard import accumulation_steps
from rayrl.placement import has_own_reference, reward_role

logger = logging.getLogger(__name__)

Setup = Callable[[Group], list[ray.ObjectRef]]
"""Starts loading on all ranks of a group, or of a part of it; what each then answers says what it is."""


class Crew:
    """The groups of a run. `policy` and `critic` are restarted as a whole, ranks of the others one by one."""

    def __init__(
        self,
        policy: Group,
        critic: Group | None,
        reference: Group | None,
        engines: Engines,
        rewards: Sequence[Group],
        setups: dict[str, Setup] | None = None,
    ) -> None:
        """`setups`: by role, for groups that can be started again."""
        self.policy, self.critic, self.reference, self.engines = policy, critic, reference, engines
        self.rewards = list(rewards)
        self._setups = setups or {}

    @property
    def trainers(self) -> list[Group]:
        """Policy, and critic where there is one."""
        return [self.policy, *([self.critic] if self.critic else [])]

    @property
    def scorers(self) -> list[Group]:
        """What holds nothing that isn't in its configuration: reference and rewards."""
        return [*([self.reference] if self.reference else []), *self.rewards]

    @property
    def groups(self) -> list[Group]:
        """All, the engines that are up last."""
        return [*self.trainers, *self.scorers, self.engines.up]

    def by_kind(self) -> dict[str, list[Group]]:
        """By the name under which their busy time is logged."""
        kinds: dict[str, list[Group]] = {}
        for group in self.groups:
            kinds.setdefault(group.role.partition(":")[0], []).append(group)
        return kinds

    def load(self, parts: Sequence[Group], timeout_s: float, what: str) -> dict[str, Any]:
        """Loads what has been started, all at one time; what each actor says it is."""
        pending = [(part, self._setups[part.role](part)) for part in parts]
        deadline = time.monotonic() + timeout_s
        loaded = [(part, part.wait(refs, max(1.0, deadline - time.monotonic()), what)) for part, refs in pending]
        return describe_actors(loaded, timeout_s)


def start(
    config: PPOConfig, entries: Sequence[RewardEntry], inputs: Inputs, placement: Placement
) -> tuple[Crew, dict[str, Any]]:
    """Starts all actors at one time and waits until each has loaded; the crew, and what each actor says it is."""
    setups = _setups(config, entries, inputs)

    def group(actor: type, role: str, ranks: int) -> Group:
        return Group.start(actor, role, placement, range(ranks))

    engines = Group.start(RolloutActor, "rollout", placement, _there(config, placement))
    policy = group(PolicyActor, "policy", config.policy.ranks)
    critic = group(CriticActor, "critic", config.critic.ranks) if config.uses_critic else None
    reference = group(ReferenceActor, "reference", config.reference.workers) if has_own_reference(config) else None
    rewards = [group(RewardActor, reward_role(entry.name), entry.workers) for entry in entries]
    crew = Crew(
        policy,
        critic,
        reference,
        Engines(
            engines,
            config.rollout.engines,
            setups["rollout"],
            lambda rank: placement.is_there("rollout", rank),
            config.cluster.start_timeout_s,
        ),
        rewards,
        setups,
    )
    actors = load_all(crew, config.cluster.start_timeout_s, config.recovery.max_per_step)
    logger.info("rollout: %s engine(s) of %s", len(engines), actors[engines.names[0]]["engine"])
    return crew, actors


def load_all(crew: Crew, timeout_s: float, more_tries: int) -> dict[str, Any]:
    """A start that loses an actor begins again, so many times."""
    while True:
        try:
            return crew.load(crew.groups, timeout_s, "start")
        except ActorLost as error:
            if not more_tries:
                raise
            more_tries -= 1
            logger.warning("%s; starting all actors again", error)
            for group in crew.groups:
                group.renew(group.ranks)


def _there(config: PPOConfig, placement: Placement) -> list[int]:
    """Ranks of engines that have room now: at least as many as the start needs."""
    return [rank for rank in range(config.rollout.engines) if placement.is_there("rollout", rank)]


def _setups(config: PPOConfig, entries: Sequence[RewardEntry], inputs: Inputs) -> dict[str, Setup]:
    algorithm, rows_per_rank = config.algorithm, config.sequences_per_step // config.policy.ranks
    learner = {
        "pad_id": inputs.pad_id,
        "rows_per_rank": rows_per_rank,
        "steps": config.steps,
        "seed": config.seed,
        "max_new_tokens": config.rollout.max_new_tokens,
    }
    policy_config = config.policy.model_copy(update={"model": inputs.policy_model})
    policy = (policy_config, algorithm, inputs.ptx_rows)
    critic = {**learner, "model_path": inputs.critic_model, "new_head": inputs.critic_new_head}
    micro = accumulation_steps(rows_per_rank, algorithm.minibatches, config.policy.micro_batch_size)
    reference = (inputs.policy_model, config.policy.dtype, config.rollout.temperature, inputs.pad_id)
    engine = (inputs.policy_model, inputs.tokenizer_path, config.rollout, inputs.end_token_ids, inputs.pad_id)
    collective_s, temperature = config.cluster.collective_timeout_s, config.rollout.temperature
    setups: dict[str, Setup] = {
        "policy": lambda group: _meet(group, collective_s, *policy, temperature=temperature, **learner),
        "critic": lambda group: _meet(group, collective_s, config.critic, algorithm, **critic),
        "reference": lambda group: group.call("setup", *reference, micro * algorithm.minibatches),
        "rollout": lambda group: group.call("setup", *engine, config.transfer_backend),
    }
    for entry in entries:
        setups[reward_role(entry.name)] = _reward_setup(entry, inputs)
    return setups


def _reward_setup(entry: RewardEntry, inputs: Inputs) -> Setup:
    return lambda group: group.call("setup", entry, inputs.reward_models[entry.name], inputs.pad_id)


def _meet(group: Group, collective_timeout_s: float, *args: Any, **kwargs: Any) -> list[ray.ObjectRef]:
    """Starts `setup` on every rank; rank 0's address is where they meet."""
    address = group.handles[0].address.remote()
    return [
        handle.setup.remote(rank, len(group), address, collective_timeout_s, *args, **kwargs)
        for rank, handle in enumerate(group.handles)
    ]
