"""The PPO stage: checks the input, starts the actors, runs the coordinator, writes what it leaves (outcome.py).

Everything that can be wrong with the input is looked at before Ray starts. Whatever happens afterwards, actors and
bundles are gone when `main` returns.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import ray
from rich.console import Console

from actors.coordinator import Coordinator, note_damaged
from actors.crew import start
from actors.evaluation import HeldOut
from actors.generation import Generation
from actors.inputs import Inputs, read_inputs
from actors.judges import judges
from actors.outcome import SUMMARY, finish
from actors.patience import Patience
from actors.phases import Phases
from actors.record import data_read, write_record
from actors.recovery import Healer
from actors.resume import BESIDE, check_same_data, check_same_run
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
from rayrl.placement import role_specs
from rayrl.rewards.mixture import Mixture
from rayrl.tracking.checkpoints import CheckpointStore
from rayrl.tracking.progress import Progress
from rayrl.tracking.recoveries import Recovery, RecoveryLog
from rayrl.tracking.run_log import RunLog
from rayrl.tracking.storage_wait import Storage


def main(config_path: str) -> None:
    """Runs or resumes the run that the resolved configuration describes. Raises UserError for bad input."""
    config = load(PPOConfig, config_path, [])
    folder = Path(config.output_dir).expanduser().absolute()
    check_same_run(config, folder)
    store = CheckpointStore(folder, config.checkpoint.keep_last, config.checkpoint.keep_best)
    last, inputs, console = store.latest(), None, Console()
    if last is None or last[0] < config.steps:
        inputs = _checked(config, folder)
    with only_run(folder):
        check_same_run(config, folder)  # again, since another start may have come in between
        last = store.latest()
        if last is not None and last[0] >= config.steps:
            last = store.newest_whole()  # one that is damaged isn't the end
        if last is not None and last[0] >= config.steps:
            console.print(f"{folder} is done: {last[0]} of {config.steps} steps; nothing to train", soft_wrap=True)
        else:
            inputs = inputs or _checked(config, folder)
            with connect(config.cluster.address, object_store_mb=config.cluster.object_store_mb) as session:
                placement = Placement.create(role_specs(config), config.cluster.start_timeout_s, folder.name)
                try:
                    with judges(config.rewards) as rewards:
                        _run(config, rewards, folder, inputs, session, placement, store, console)
                finally:
                    placement.remove()
            last = store.latest()
            assert last is not None
        finish(config, folder, last, inputs, console)


def _checked(config: PPOConfig, folder: Path) -> Inputs:
    """Everything that can be wrong with the input, looked at before Ray starts."""
    versus.check(config.evaluation.wins)
    _check_devices(config)
    check_same_data(folder)
    return read_inputs(config)


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
    latest = store.newest_whole()
    first_step = latest[0] if latest else 0
    patience = Patience(config.cluster, config.recovery)
    with Progress(config.steps, first_step=first_step, enabled=config.logging.progress, console=console) as progress:
        with progress.phase("start actors"):
            crew, actors = start(config, rewards, inputs, placement)
        _begin_folder(config, folder, inputs)
        write_record(folder, data_read(config), session, first_step, config.transfer_backend, actors)
        storage = Storage(config.recovery.storage_wait_s)
        recoveries = RecoveryLog(folder, storage)
        note_damaged(store, recoveries, first_step)
        if latest is not None:
            recoveries.add(Recovery("resumed", first_step, "start", [], "a new driver went on", 0.0, first_step))
        healer = Healer(crew, recoveries, config.recovery.max_per_step, config.cluster.start_timeout_s)
        healer.learn_processes(crew.groups)
        generation = Generation(crew.engines, config.policy.ranks, patience)
        scoring = Scoring(config.rewards, crew.rewards, Mixture(config.rewards, config.mixture), patience)
        settings = config.model_dump(mode="json")
        with RunLog(
            folder,
            config.logging,
            resume_step=first_step,
            settings=settings,
            console=progress.console,
            storage=storage,
        ) as log:
            coordinator = Coordinator(
                config,
                inputs.train,
                crew,
                Phases(config, crew, generation, scoring, patience),
                generation,
                scoring,
                WeightSync(crew.policy, config.sync, config.transfer_backend, config.rollout.tensor_parallel, patience),
                HeldOut(inputs.heldout, config.evaluation, generation, scoring, folder, storage, config.seed),
                make_controller(config.algorithm.kl),
                log,
                progress,
                store,
                storage,
                healer,
                patience,
            )
            coordinator.run(latest)


def _begin_folder(config: PPOConfig, folder: Path, inputs: Inputs) -> None:
    """Actors are up: from here on the run leaves files."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / BESIDE
    beside.write_text(dump(config), encoding="utf-8")
    os.replace(beside, folder / "config.yaml")
    (folder / SUMMARY).unlink(missing_ok=True)  # of fewer steps
    inputs.write_rejected(folder)
