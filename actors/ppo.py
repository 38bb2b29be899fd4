"""The PPO stage: checks the input, starts the actors, runs the coordinator, writes what it leaves (outcome.py).

Everything that can be wrong with the input is looked at before Ray starts. Whatever happens afterwards, actors and
bundles are gone when `main` returns.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from actors.coordinator import Coordinator, Roles
from actors.critic import CriticActor
from actors.evaluation import HeldOut
from actors.generation import Generation
from actors.group import Group
from actors.inputs import Inputs, read_inputs
from actors.judges import judges
from actors.outcome import SUMMARY, finish
from actors.policy import PolicyActor
from actors.record import data_read, describe_actors, write_record
from actors.reference import ReferenceActor
from actors.resume import BESIDE, check_same_data, check_same_run
from actors.reward import RewardActor
from actors.rollout import RolloutActor
from actors.scoring import Scoring
from actors.weights import WeightSync
from cluster.fit import check_fits
from cluster.machine import this_machine
from cluster.placement import Placement
from cluster.session import Session, choose, connect
from rayrl.algorithms.kl import make_controller
from rayrl.config.load import dump, load
from rayrl.config.ppo import PPOConfig, RewardEntry
from rayrl.data.lock import only_run
from rayrl.evaluation import versus
from rayrl.learners.shard import accumulation_steps
from rayrl.placement import has_own_reference, reward_role, role_specs
from rayrl.rewards.mixture import Mixture
from rayrl.tracking.checkpoints import CheckpointStore
from rayrl.tracking.progress import Progress
from rayrl.tracking.run_log import RunLog

logger = logging.getLogger(__name__)


def main(config_path: str) -> None:
    """Runs or resumes the run that the resolved configuration describes. Raises UserError for bad input."""
    config = load(PPOConfig, config_path, [])
    folder = Path(config.output_dir).expanduser().absolute()
    check_same_run(config, folder)
    store = CheckpointStore(folder, config.checkpoint.keep_last, config.checkpoint.keep_best)
    last, inputs, console = store.latest(), None, Console()
    if last is None or last[0] < config.steps:
        versus.check(config.evaluation.wins)
        _check_devices(config)
        check_same_data(folder)
        inputs = read_inputs(config)
    with only_run(folder):
        check_same_run(config, folder)  # again, since another start may have come in between
        last = store.latest()
        if last is not None and last[0] >= config.steps:
            console.print(f"{folder} is done: {last[0]} of {config.steps} steps; nothing to train", soft_wrap=True)
        else:
            assert inputs is not None
            with connect(config.cluster.address, object_store_mb=config.cluster.object_store_mb) as session:
                placement = Placement.create(role_specs(config), config.cluster.start_timeout_s)
                try:
                    with judges(config.rewards) as rewards:
                        _run(config, rewards, folder, inputs, session, placement, store, console)
                finally:
                    placement.remove()
            last = store.latest()
            assert last is not None
        finish(config, folder, last, inputs, console)


def _check_devices(config: PPOConfig) -> None:
    """Whether the roles fit this machine, where Ray is to start here; a cluster is asked when it has been joined."""
    specs = role_specs(config)
    if not ray.is_initialized() and choose(config.cluster.address, os.environ).address == "local":
        check_fits(specs, [this_machine(os.environ)])


def _run(
    config: PPOConfig,
    rewards: Sequence[RewardEntry],
    folder: Path,
    inputs: Inputs,
    session: Session,
    placement: Placement,
    store: CheckpointStore,
    console: Console,
) -> None:
    latest = store.latest()
    first_step = latest[0] if latest else 0
    with Progress(config.steps, first_step=first_step, enabled=config.logging.progress, console=console) as progress:
        with progress.phase("start actors"):
            roles, actors = _start(config, rewards, inputs, placement)
        _begin_folder(config, folder, inputs)
        write_record(folder, data_read(config), session, first_step, config.transfer_backend, actors)
        generation = Generation(roles.rollout, config.policy.ranks, config.cluster.step_timeout_s)
        scoring = Scoring(config.rewards, roles.rewards, Mixture(config.rewards, config.mixture))
        sync = WeightSync(
            roles.policy, roles.rollout, config.sync, config.transfer_backend, config.cluster.step_timeout_s
        )
        heldout = HeldOut(inputs.heldout, config.evaluation, generation, scoring, folder, config.seed)
        settings = config.model_dump(mode="json")
        with RunLog(folder, config.logging, resume_step=first_step, settings=settings, console=progress.console) as log:
            coordinator = Coordinator(
                config,
                inputs.train,
                roles,
                generation,
                scoring,
                sync,
                heldout,
                make_controller(config.algorithm.kl),
                log,
                progress,
                store,
                first_step,
            )
            with progress.phase("sync"):
                if latest is not None:
                    logger.info("resuming after step %d from %s", first_step, latest[1])
                    coordinator.load(latest[1])
                sync.open(config.rollout.tensor_parallel)
                coordinator.push(first_step, "first weight sync")
            coordinator.run()


def _start(
    config: PPOConfig, entries: Sequence[RewardEntry], inputs: Inputs, placement: Placement
) -> tuple[Roles, dict[str, Any]]:
    """Starts all actors at one time and waits until each has loaded; the roles, and what each actor says it is."""
    algorithm, cluster = config.algorithm, config.cluster
    rows_per_rank = config.sequences_per_step // config.policy.ranks
    learner = {
        "pad_id": inputs.pad_id,
        "rows_per_rank": rows_per_rank,
        "steps": config.steps,
        "seed": config.seed,
        "max_new_tokens": config.rollout.max_new_tokens,
    }
    policy = Group.start(PolicyActor, "policy", placement, config.policy.ranks)
    rollout = Group.start(RolloutActor, "rollout", placement, config.rollout.engines)
    critic = Group.start(CriticActor, "critic", placement, config.critic.ranks) if config.uses_critic else None
    reference = None
    if has_own_reference(config):
        reference = Group.start(ReferenceActor, "reference", placement, config.reference.workers)
    rewards = [Group.start(RewardActor, reward_role(entry.name), placement, entry.workers) for entry in entries]
    roles = Roles(policy, critic, reference, rollout, rewards)
    pending: list[tuple[Group, list[Any]]] = []
    policy_config = config.policy.model_copy(update={"model": inputs.policy_model})
    pending.append(
        (
            policy,
            _setup_ranks(
                policy, cluster.collective_timeout_s, policy_config, algorithm, inputs.ptx_rows,
                temperature=config.rollout.temperature, **learner,
            ),
        )
    )  # fmt: skip
    if critic is not None:
        critic_arguments = {**learner, "model_path": inputs.critic_model, "new_head": inputs.critic_new_head}
        ranks = _setup_ranks(critic, cluster.collective_timeout_s, config.critic, algorithm, **critic_arguments)
        pending.append((critic, ranks))
    if reference is not None:
        micro = accumulation_steps(rows_per_rank, algorithm.minibatches, config.policy.micro_batch_size)
        arguments = (inputs.policy_model, config.policy.dtype, config.rollout.temperature, inputs.pad_id)
        pending.append((reference, reference.call("setup", *arguments, micro * algorithm.minibatches)))
    for entry, group in zip(entries, rewards, strict=True):
        pending.append((group, group.call("setup", entry, inputs.reward_models[entry.name], inputs.pad_id)))
    engine = (inputs.policy_model, inputs.tokenizer_path, config.rollout, inputs.end_token_ids, inputs.pad_id)
    pending.append((rollout, rollout.call("setup", *engine, config.transfer_backend)))
    deadline = time.monotonic() + cluster.start_timeout_s
    started = [(group, group.wait(refs, max(1.0, deadline - time.monotonic()), "start")) for group, refs in pending]
    actors = describe_actors(started, cluster.start_timeout_s)
    logger.info("rollout: %s engine(s) of %s", len(rollout), actors[rollout.names[0]]["engine"])
    return roles, actors


def _setup_ranks(group: Group, collective_timeout_s: float, *args: Any, **kwargs: Any) -> list[Any]:
    """Starts `setup` on every rank; rank 0's address is where they meet."""
    address = group.handles[0].address.remote()
    return [
        handle.setup.remote(rank, len(group), address, collective_timeout_s, *args, **kwargs)
        for rank, handle in enumerate(group.handles)
    ]


def _begin_folder(config: PPOConfig, folder: Path, inputs: Inputs) -> None:
    """Actors are up: from here on the run leaves files."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / BESIDE
    beside.write_text(dump(config), encoding="utf-8")
    os.replace(beside, folder / "config.yaml")
    (folder / SUMMARY).unlink(missing_ok=True)  # of fewer steps
    inputs.write_rejected(folder)
