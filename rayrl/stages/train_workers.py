"""Ranks of a supervised stage through Ray Train: start them, show what they log, give their errors back as they are.

Ray Train places the ranks and joins them to a process group; DeepSpeed takes that over (`join`). Checkpoints are the
stage's own (tracking/checkpoints.py), so a run goes on from the newest whole one, whether its ranks are started again
here or by the same command later.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rayrl.config.parts import RayConfig, TrainerConfig
from rayrl.errors import RunError, UserError

logger = logging.getLogger(__name__)


def run_workers(
    loop: Callable[[dict[str, Any]], None],
    settings: Mapping[str, Any],
    trainer: TrainerConfig,
    ray_config: RayConfig,
    *,
    collective_timeout_s: float,
    max_failures: int = 0,
) -> None:
    """Runs `loop(settings)` on every rank and waits. This process must be connected to Ray.

    `settings` may hold object references. Ranks that die are started again `max_failures` times; what the loop raises
    as UserError or RunError comes out as it is, at once. Raises DoesNotFit where the cluster can't hold the ranks, and
    RunError where they failed otherwise.
    """
    from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

    from cluster.fit import check_fits
    from cluster.placement import nodes
    from cluster.specs import RoleSpec

    check_fits([RoleSpec("ranks", trainer.ranks, trainer.cpus_per_rank, trainer.gpus_per_rank)], nodes())
    for attempt in range(max_failures + 1):
        try:
            _fit(loop, settings, trainer, ray_config, collective_timeout_s)
            return
        except WorkerGroupError as error:
            causes = [_cause(failure) for failure in error.worker_failures.values()]
            named = next((cause for cause in causes if isinstance(cause, UserError | RunError)), None)
            if named is not None:
                raise named from error
            first_line = _first_line(causes[0] if causes else error)
            failed: TrainingFailedError = error
        except ControllerError as error:
            first_line, failed = _first_line(error.controller_failure), error
        if attempt < max_failures:
            logger.warning("a rank failed (%s); starting the ranks again from the last checkpoint", first_line)
    raise RunError(f"a rank failed: {first_line}; the same command goes on from the last checkpoint") from failed


def check_fits_here(trainer: TrainerConfig, ray_config: RayConfig, name: str) -> None:
    """Raises DoesNotFit, before anything starts, where Ray is to start here and this machine can't hold the ranks."""
    import ray

    from cluster.fit import check_fits
    from cluster.machine import this_machine
    from cluster.session import choose
    from cluster.specs import RoleSpec

    if not ray.is_initialized() and choose(ray_config.address, os.environ).address == "local":
        spec = RoleSpec(name, trainer.ranks, trainer.cpus_per_rank, trainer.gpus_per_rank)
        check_fits([spec], [this_machine(os.environ)])


def join(trainer: TrainerConfig, collective_timeout_s: float) -> tuple[int, int]:
    """In a rank: (rank, number of ranks), its threads set and the process group handed to DeepSpeed."""
    import torch
    from ray import train

    from rayrl.models.deepspeed_engine import adopt_process_group

    torch.set_num_threads(trainer.threads or max(1, int(trainer.cpus_per_rank)))
    context = train.get_context()
    adopt_process_group(collective_timeout_s)
    return context.get_world_rank(), context.get_world_size()


@contextlib.contextmanager
def watch(path: Path, show: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Calls `show` with each row that is appended to a JSON Lines file during the block, within a second.

    A resumed run puts the file anew (without the rows that it will write again); what it then holds isn't shown.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(path, show, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(path: Path, show: Callable[[dict[str, Any]], None], stop: threading.Event) -> None:
    found = path.stat() if path.exists() else None
    file, place = (found.st_ino, found.st_size) if found else (None, 0)
    ending = False
    while not ending:
        ending = stop.wait(0.5)
        if not path.exists():
            continue
        now = path.stat()
        if file is not None and now.st_ino != file:
            place = now.st_size
        file = now.st_ino
        with path.open("rb") as rows:
            rows.seek(place)
            for line in rows:
                if not line.endswith(b"\n"):
                    break  # still being written
                place += len(line)
                show(json.loads(line))


def _fit(
    loop: Callable[[dict[str, Any]], None],
    settings: Mapping[str, Any],
    trainer: TrainerConfig,
    ray_config: RayConfig,
    collective_timeout_s: float,
) -> None:
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(ray_config.start_timeout_s))
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # a relative path in a config means the same to a rank as to its user
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources = {"CPU": trainer.cpus_per_rank}
    if trainer.gpus_per_rank:
        resources["GPU"] = trainer.gpus_per_rank
    storage = tempfile.mkdtemp(prefix="rayrl-train-")  # Ray Train's own records; no checkpoint goes through it
    try:
        TorchTrainer(
            loop,
            train_loop_config=dict(settings),
            torch_config=_meeting("nccl" if trainer.gpus_per_rank else "gloo", int(collective_timeout_s)),
            scaling_config=ScalingConfig(
                num_workers=trainer.ranks, use_gpu=trainer.gpus_per_rank > 0, resources_per_worker=resources
            ),
            # By itself Ray Train would wait for ever for ranks that don't start in time.
            run_config=RunConfig(
                storage_path=storage, name="ranks", failure_config=FailureConfig(controller_failure_limit=0)
            ),
        ).fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _meeting(backend: str, timeout_s: int) -> Any:
    """Ray Train's TorchConfig, but that the ranks meet as those of PPO's roles do, on rank 0's address alone."""
    import ray
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

    class Backend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
            where = worker_group.execute_single(0, _place)
            worker_group.execute(_set_torch_distributed_env_vars)
            ranks = range(len(worker_group))
            common = (len(ranks), *where, backend, timeout_s)
            ray.get([worker_group.execute_single_async(rank, _meet, rank, *common) for rank in ranks])

    class Config(TorchConfig):
        backend_cls = Backend

    return Config(backend=backend, timeout_s=timeout_s)


def _place() -> tuple[str, int]:
    """Runs in rank 0."""
    import ray

    from rayrl.models.rendezvous import reserve

    node = ray.util.get_node_ip_address()
    return node, reserve(node)


def _meet(rank: int, world_size: int, address: str, port: int, backend: str, timeout_s: int) -> None:
    """Runs in a rank."""
    from datetime import timedelta

    from rayrl.models.rendezvous import init_process_group

    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    init_process_group(backend, rank, world_size, address, port, timedelta(seconds=timeout_s))


def _cause(failure: BaseException) -> BaseException:
    """The exception that a rank raised, out of Ray's wrapping."""
    inner = getattr(failure, "cause", None)
    return inner if isinstance(inner, BaseException) else failure


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
