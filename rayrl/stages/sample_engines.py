"""Engines as workers of a pool (pool.py), and the shards that they answer.

A shard is one call of the engine: the same prompts in one batch under one seed. Only token ids travel; texts stay in
the driver.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rayrl.config.parts import RolloutConfig
from rayrl.models.engine import load_engine
from rayrl.placement import thread_env
from rayrl.stages.pool import Pool, answers

SHARD = pa.schema([("number", pa.int64()), ("seed", pa.int64()), ("prompts", pa.list_(pa.list_(pa.int32())))])
ANSWERS = pa.schema(
    [
        ("number", pa.int64()),
        ("token_ids", pa.list_(pa.list_(pa.list_(pa.int32())))),
        ("ended", pa.list_(pa.list_(pa.bool_()))),
        ("seconds", pa.float64()),
    ]
)


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

    Raises DoesNotFit where the cluster is too small for the engines, RunError where an engine fails.
    """
    tasks = {
        shard.number: pa.Table.from_pylist(
            [{"number": shard.number, "seed": shard.seed, "prompts": [ids.tolist() for ids in shard.prompts]}],
            schema=SHARD,
        )
        for shard in shards
    }
    pool = engine_pool(settings.rollout, start_timeout_s)
    for answer in answers(tasks, EngineWorker, (settings, num_samples), pool):
        yield Answered(**answer)


def engine_pool(rollout: RolloutConfig, start_timeout_s: float, name: str = "an engine") -> Pool:
    """The workers that a configuration of engines asks for."""
    return Pool(
        name=name,
        size=rollout.engines,
        cpus=rollout.cpus_per_engine,
        gpus=rollout.gpus_per_engine * rollout.tensor_parallel,
        start_timeout_s=start_timeout_s,
        env=thread_env(rollout.threads, rollout.cpus_per_engine),
    )
