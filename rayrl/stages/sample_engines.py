"""Engines in an actor pool of Ray Data, and the shards that they answer.

A shard is one row of the data set and one call of the engine: the same prompts in one batch under one seed, so that its
answers don't depend on how many engines there are, which of them takes it, or what it answered before. Shards come back
as they are finished. Only token ids travel; texts stay in the driver.
"""

from __future__ import annotations

import logging
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.data.exceptions import SystemException
from ray.exceptions import RayActorError, RayError
from ray.util.annotations import RayDeprecationWarning

from cluster.fit import check_fits
from cluster.placement import nodes
from cluster.specs import RoleSpec
from rayrl.config.parts import RolloutConfig
from rayrl.errors import RunError
from rayrl.models.engine import load_engine
from rayrl.placement import thread_env

logger = logging.getLogger(__name__)

SHARD = pa.schema([("number", pa.int64()), ("seed", pa.int64()), ("prompts", pa.list_(pa.list_(pa.int32())))])
ANSWERS = pa.schema(
    [
        ("number", pa.int64()),
        ("token_ids", pa.list_(pa.list_(pa.list_(pa.int32())))),
        ("ended", pa.list_(pa.list_(pa.bool_()))),
        ("seconds", pa.float64()),
    ]
)

_RAISED = re.compile(r"[A-Za-z_.]*(Error|Exception): ")


@dataclass(frozen=True)
class EngineSettings:
    """What every engine of a pool is loaded with."""

    model: str
    rollout: RolloutConfig
    end_token_ids: tuple[int, ...]
    pad_id: int


@dataclass(frozen=True)
class Shard:
    """Prompts (token ids [P]) that are answered together."""

    number: int
    seed: int
    prompts: list[np.ndarray]


@dataclass(frozen=True)
class Answered:
    """A shard's answers: by prompt, then by sample."""

    number: int
    token_ids: list[list[list[int]]]
    ended: list[list[bool]]
    seconds: float
    """Wall time of the engine's call."""


class EngineWorker:
    """One engine: what Ray Data calls with a shard in its actor."""

    def __init__(self, settings: EngineSettings, num_samples: int) -> None:
        self._engine = load_engine(settings.model, settings.rollout, settings.end_token_ids, settings.pad_id)
        self._num_samples = num_samples

    def __call__(self, table: pa.Table) -> pa.Table:
        """Answers one shard: a table of one row."""
        (row,) = table.to_pylist()
        prompts = [np.asarray(ids, dtype=np.int64) for ids in row["prompts"]]
        started = time.monotonic()
        completions = self._engine.generate(prompts, self._num_samples, row["seed"])
        answer = {
            "number": row["number"],
            "token_ids": [[one.token_ids_T.tolist() for one in of_prompt] for of_prompt in completions],
            "ended": [[one.ended for one in of_prompt] for of_prompt in completions],
            "seconds": time.monotonic() - started,
        }
        return pa.Table.from_pylist([answer], schema=ANSWERS)


def shard_seed(seed: int, number: int) -> int:
    """A shard's own seed, from 0 to below 2**31."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) >> 1


def answer_shards(
    shards: Sequence[Shard], settings: EngineSettings, num_samples: int, start_timeout_s: float
) -> Iterator[Answered]:
    """The shards' answers, in the order in which they are finished. Ray must be connected.

    Where an engine dies, the pool starts again with the shards that are left, as long as it has answered any since.

    Raises DoesNotFit where the cluster is too small for the engines, RunError where an engine fails.
    """
    left = {shard.number: shard for shard in shards}
    while left:
        before = len(left)
        try:
            for answered in _answer(list(left.values()), settings, num_samples, start_timeout_s):
                del left[answered.number]
                yield answered
        except RayError as error:
            if not isinstance(error, RayActorError) or len(left) == before:
                raise RunError(f"an engine failed: {_cause(error)}") from error
            logger.warning("an engine died; starting again with the %d shards left: %s", len(left), _cause(error))
        else:
            if left:
                raise RunError(f"Ray Data lost the shards {sorted(left)}; the same command answers them")


def _answer(
    shards: Sequence[Shard], settings: EngineSettings, num_samples: int, start_timeout_s: float
) -> Iterator[Answered]:
    rollout = settings.rollout
    engines = min(rollout.engines, len(shards))
    gpus = rollout.gpus_per_engine * rollout.tensor_parallel
    check_fits([RoleSpec("engine", engines, rollout.cpus_per_engine, gpus)], nodes())
    tables = [
        pa.Table.from_pylist(
            [{"number": shard.number, "seed": shard.seed, "prompts": [ids.tolist() for ids in shard.prompts]}],
            schema=SHARD,
        )
        for shard in shards
    ]
    with _quiet_context(start_timeout_s):
        answers = ray.data.from_arrow(tables).map_batches(
            EngineWorker,
            fn_constructor_args=(settings, num_samples),
            batch_size=1,
            batch_format="pyarrow",
            # The next shard waits with an engine that would otherwise idle while the driver sends it.
            compute=ActorPoolStrategy(size=engines, max_tasks_in_flight_per_actor=2),
            num_cpus=rollout.cpus_per_engine,
            num_gpus=gpus,
            # Ray Data's own restarts have no end: an engine that dies of what it is asked would come back for ever.
            max_restarts=0,
            runtime_env={"env_vars": thread_env(rollout.threads, rollout.cpus_per_engine)},
        )
        for table in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in table.to_pylist():
                yield Answered(**row)


@contextmanager
def _quiet_context(start_timeout_s: float) -> Iterator[None]:
    """Ray Data's settings for this stage alone: no bars, no log lines, no end to a slow engine's patience."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.execution_no_progress_timeout_s = -1
    context.wait_for_min_actors_s = int(start_timeout_s)
    context.max_errored_blocks = 0
    loggers = [logging.getLogger(name) for name in ("ray.data", "ray.data._internal")]
    levels = [one.level for one in loggers]
    with DataContext.current(context), warnings.catch_warnings():
        # max_restarts has no other way in yet.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", RayDeprecationWarning)
        for one in loggers:
            one.setLevel(logging.CRITICAL)  # it takes a dead engine for an error of its own
        try:
            yield
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)


def _cause(error: BaseException) -> str:
    """The innermost error in one line; Ray Data's own words around it say nothing."""
    inner: Any = error
    while (deeper := getattr(inner, "cause", None) or inner.__cause__) and not isinstance(deeper, SystemException):
        inner = deeper
    lines = str(inner).strip().splitlines() or [""]
    # An actor that can't start brings a whole traceback as its text; what was raised stands last.
    return next((line for line in reversed(lines) if _RAISED.match(line)), f"{type(inner).__name__}: {lines[0]}")
