"""Simulated roles: real Ray actors without models, in which ranks take the time that stated rates say.

They measure the coordinator where there is no hardware for hundreds of roles. A process costs 60 MB, so one real actor,
a host, holds many ranks, and a rank's handle is a thin proxy: `handle.generate.remote(...)` becomes a call of the host.
Calls, references, dependencies between them and numbers of returns are Ray's own; work is `asyncio.sleep`. What ranks
return has the shapes of the real thing and says nothing about learning. A host can be killed, as a node can be lost.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError

from actors.worker import DONE
from cluster.stuck import Process
from rayrl.tracking.checksums import checksums
from rayrl.types import Prompt, RolloutInfo, SourceScores

TICK_S = 0.1
"""A working rank gets on once in so long, as a watch sees it."""


@dataclass(frozen=True)
class Rates:
    """Stated speeds of devices, delays and lengths of answers. Tokens are of prompts and answers together."""

    seed: int = 0
    answer_tokens: float = 400.0
    """Median length; lengths are log-normal, so that a few answers are long."""
    sigma: float = 0.8
    """Of the logarithm of the length; 0: all are equal."""
    max_answer_tokens: int = 2048
    sequence_tokens_per_s: float = 60.0
    """One sequence of an engine's batch."""
    engine_tokens_per_s: float = 1500.0
    """All sequences of an engine together."""
    prefill_tokens_per_s: float = 20_000.0
    forward_tokens_per_s: float = 9_000.0
    """A policy or critic rank that computes log-probabilities or values."""
    train_tokens_per_s: float = 3_000.0
    """The same, all epochs of an update together."""
    scorer_tokens_per_s: float = 27_000.0
    """A reference or reward worker."""
    weights_bytes: int = 2 << 30
    sync_bytes_per_s: float = 1e9
    """An engine that loads weights."""
    checkpoint_s: float = 5.0
    """A trainer rank that writes its part."""
    payload_bytes: int = 1 << 17
    """What a chunk of answers weighs; above 100 KB it goes through the object store and not beside the call."""
    speed: float = 1.0
    """All durations are divided by it."""


@dataclass(frozen=True)
class SimulatedAnswers:
    """Stands for a chunk of rollouts."""

    prompt_ids: list[str]
    tokens_B: np.ndarray
    """Prompt and answer, a number an answer."""
    payload: np.ndarray


@dataclass(frozen=True)
class Record:
    """One call of a rank: the time that the rates state for it, or, for `push`, that it took."""

    rank: str
    method: str
    began: float
    """Seconds since the epoch."""
    seconds: float


class SimulatedRank:
    """What all ranks have in common: one call at a time, intervals of work, progress."""

    def __init__(self, name: str, rates: Rates) -> None:
        self.name, self.rates = name, rates
        self.role = name.partition("[")[0]
        self.records: list[Record] = []
        self._intervals: list[tuple[float, float]] = []
        self._turn = asyncio.Lock()
        self._working_since: float | None = None

    async def setup(self) -> dict[str, Any]:
        """Nothing is loaded."""
        return {"engine": "simulated"} if self.role == "rollout" else {"simulated": True}

    async def describe(self) -> dict[str, Any]:
        """The host's process."""
        return {"pid": os.getpid(), "host": "simulated", "node": "simulated", "threads": 1}

    async def process(self) -> Process:
        """The host's."""
        return Process(ray.get_runtime_context().get_node_id(), os.getpid(), -1)

    async def progress(self) -> tuple[int, bool]:
        """A working rank always gets on."""
        return int(time.monotonic() / TICK_S), self._working_since is not None

    async def take_intervals(self) -> list[tuple[float, float]]:
        """As a Worker's."""
        intervals, self._intervals = self._intervals, []
        return intervals

    async def work(self, method: str, seconds: float) -> None:
        """Takes `seconds` at speed 1, after what was begun before."""
        async with self._turn:
            began = self._working_since = time.time()
            seconds /= self.rates.speed
            await asyncio.sleep(seconds)
            self._working_since = None
            self._intervals.append((began, time.time()))
            self.records.append(Record(self.name, method, began, seconds))


class SimulatedEngine(SimulatedRank):
    """Samples lengths; texts only say that they are simulated."""

    version = -1

    async def generate(
        self, chunks: Sequence[Sequence[Prompt]], num_samples: int, seed: int, num_texts: int
    ) -> list[Any]:
        """As RolloutActor's; the same seed gives the same lengths in any engine."""
        rates, generator = self.rates, np.random.default_rng([self.rates.seed, seed])
        prompt_tokens = sum(len(prompt.token_ids_P) for chunk in chunks for prompt in chunk)
        out: list[Any] = []
        lengths: list[int] = []
        for chunk in chunks:
            ids = [prompt.row.id for prompt in chunk for _ in range(num_samples)]
            drawn = rates.answer_tokens * np.exp(rates.sigma * generator.standard_normal(len(ids)))
            own = np.clip(drawn.astype(np.int64), 1, rates.max_answer_tokens)
            before = np.repeat([len(prompt.token_ids_P) for prompt in chunk], num_samples)
            payload = np.zeros(rates.payload_bytes, np.uint8)
            infos = [
                RolloutInfo(
                    row_id,
                    int(n),
                    bool(n < rates.max_answer_tokens),
                    self.version,
                    f"simulated answer of {n} tokens" if i < num_texts else None,
                )
                for i, (row_id, n) in enumerate(zip(ids, own, strict=True))
            ]
            out += [SimulatedAnswers(ids, before + own, payload), infos]
            lengths += own.tolist()
        decode_s = max(max(lengths) / rates.sequence_tokens_per_s, sum(lengths) / rates.engine_tokens_per_s)
        await self.work("generate", prompt_tokens / rates.prefill_tokens_per_s + decode_s)
        return out

    async def begin_update(self) -> None:
        """Opens a weight update."""

    async def load_bucket(self, num_bytes: int) -> None:
        """Loads so many bytes."""
        await self.work("load_bucket", num_bytes / self.rates.sync_bytes_per_s)

    async def finish_update(self, version: int) -> None:
        """From now on answers carry this version."""
        self.version = version


class SimulatedTrainer(SimulatedRank):
    """A rank of policy or critic; its state is the number of updates."""

    def __init__(self, name: str, rates: Rates) -> None:
        super().__init__(name, rates)
        self._rank = int(name.partition("[")[2].partition("]")[0])
        self._updates = self._tokens = 0

    async def forward(self, method: str, chunks: Sequence[SimulatedAnswers]) -> None:
        """Takes the shard; a pass over its tokens."""
        self._tokens = _tokens(chunks)
        await self.work(method, self._tokens / self.rates.forward_tokens_per_s)

    async def update(self, step: int, scores: Sequence[float], kl_coef: float, *arrays: Any) -> dict[str, float]:
        """All epochs over the shard; numbers that depend on the step and the scores."""
        await self.work("update", self._tokens / self.rates.train_tokens_per_s)
        self._updates = step + 1
        loss = float(np.mean(scores)) / (step + 1)
        return {f"loss/{self.role}": loss, **({"kl/mean_per_sequence": 0.01 * step} if self.role == "policy" else {})}

    async def probe(self, folder: Path, done: int) -> None:
        """Nothing: there is no state that could be too large for the disk."""

    async def save(self, folder: Path) -> None:
        """A file that says how many updates there were."""
        await self.work("save", self.rates.checkpoint_s)
        state = folder / f"{self.role}_state"
        state.mkdir(exist_ok=True)
        (state / f"rank-{self._rank}").write_text(str(self._updates), encoding="utf-8")

    async def checksums(self, folder: Path, part: int, parts: int) -> dict[str, str]:
        """As TrainerActor's."""
        return checksums(folder, part, parts)

    async def load(self, folder: Path) -> None:
        """Reads what `save` wrote."""
        await self.work("load", self.rates.checkpoint_s)
        self._updates = int((folder / f"{self.role}_state" / f"rank-{self._rank}").read_text("utf-8"))


class SimulatedPolicy(SimulatedTrainer):
    """A rank of the policy."""

    def __init__(self, name: str, rates: Rates) -> None:
        super().__init__(name, rates)
        self._encoded = asyncio.Event()  # Ray may bring `prepare` before `encode`, which waits for its arguments

    async def encode(self, share: bool, *chunks: SimulatedAnswers) -> tuple[None, None]:
        """The whole pass; `prepare` then takes none of the time."""
        await self.forward("encode", chunks)
        self._encoded.set()
        return None, DONE

    async def prepare(self) -> tuple[np.ndarray, None, dict[str, float]]:
        """Stands for log-probabilities; engine and trainer agree."""
        await self._encoded.wait()
        tokens = float(self._tokens)
        stats = {"gap_sum": 0.0, "gap_max": 0.0, "tokens": tokens, "entropy_sum": tokens}
        return np.zeros(1, np.float32), None, stats

    async def update(self, step: int, scores: Sequence[float], kl_coef: float, *arrays: Any) -> dict[str, float]:
        """See SimulatedTrainer."""
        self._encoded.clear()
        return await super().update(step, scores, kl_coef, *arrays)

    async def push(
        self, engines: Mapping[str, Any], version: int, bucket_bytes: int, timeout_s: float, what: str
    ) -> tuple[int, list[str]]:
        """As PolicyActor's: every bucket to every engine; the dead get no more."""
        alive, began, left = dict(engines), time.time(), self.rates.weights_bytes

        async def on_all(method: str, *args: Any) -> None:
            calls = [getattr(engine, method).remote(*args) for engine in alive.values()]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            for name, answer in zip(list(alive), answers, strict=True):
                if isinstance(answer, RayActorError):
                    del alive[name]
                elif isinstance(answer, BaseException):
                    raise answer

        if engines:
            await on_all("begin_update")
            while left > 0:
                await on_all("load_bucket", min(left, bucket_bytes))
                left -= bucket_bytes
            await on_all("finish_update", version)
            self.records.append(Record(self.name, "push", began, time.time() - began))
            self._intervals.append((began, time.time()))
        return self.rates.weights_bytes, [name for name in engines if name not in alive]


class SimulatedCritic(SimulatedTrainer):
    """A rank of the critic."""

    async def prepare(self, trunk: None, *chunks: SimulatedAnswers) -> tuple[np.ndarray, None]:
        """Stands for values."""
        await self.forward("prepare", chunks)
        return np.zeros(1, np.float32), DONE


class SimulatedReference(SimulatedRank):
    """A reference worker."""

    async def logprobs(self, *chunks: SimulatedAnswers) -> tuple[np.ndarray, None]:
        """Stands for log-probabilities."""
        await self.work("logprobs", _tokens(chunks) / self.rates.scorer_tokens_per_s)
        return np.zeros(1, np.float32), DONE


class SimulatedReward(SimulatedRank):
    """A reward worker: short answers score high."""

    async def score(self, *chunks: SimulatedAnswers) -> SourceScores:
        """One number an answer."""
        await self.work("score", _tokens(chunks) / self.rates.scorer_tokens_per_s)
        scores = [1.0 / (1.0 + tokens / 1000.0) for chunk in chunks for tokens in chunk.tokens_B.tolist()]
        return SourceScores(self.role.partition(":")[2], scores)


KINDS: dict[str, type[SimulatedRank]] = {
    "policy": SimulatedPolicy,
    "critic": SimulatedCritic,
    "reference": SimulatedReference,
    "reward": SimulatedReward,
    "rollout": SimulatedEngine,
}


class SimulatedHost:
    """The actor: ranks come to be at their first call."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._ranks: dict[str, SimulatedRank] = {}
        self._checks = 0

    async def call(self, key: str, method: str, *args: Any) -> Any:
        """`method` of a rank; `key` is its name and which start of it this is, as in "policy[1]#0"."""
        if key not in self._ranks:
            name = key.partition("#")[0]
            self._ranks[key] = KINDS[name.partition("[")[0].partition(":")[0]](name, self._rates)
        self._checks += method == "progress"
        return await getattr(self._ranks[key], method)(*args)

    async def report(self) -> tuple[list[Record], int]:
        """What its ranks have done, and how often a watch asked one."""
        return [record for rank in self._ranks.values() for record in rank.records], self._checks


@dataclass(frozen=True)
class SimulatedHandle:
    """A rank's handle: methods are called as those of Ray's actor handles."""

    host: Any
    key: str

    def __getattr__(self, method: str) -> SimulatedMethod:
        if method.startswith("_"):
            raise AttributeError(method)
        return SimulatedMethod(self.host, self.key, method)


@dataclass(frozen=True)
class SimulatedMethod:
    """One method of a rank."""

    host: Any
    key: str
    method: str
    num_returns: int = 1

    def options(self, num_returns: int) -> SimulatedMethod:
        """With so many references a call."""
        return SimulatedMethod(self.host, self.key, self.method, num_returns)

    def remote(self, *args: Any) -> Any:
        """Starts it."""
        call = self.host.call if self.num_returns == 1 else self.host.call.options(num_returns=self.num_returns)
        return call.remote(self.key, self.method, *args)


class Hosts:
    """The processes of a simulation. Ranks are put in one after another, each role in hosts of its own."""

    def __init__(self, rates: Rates, ranks_per_host: int) -> None:
        self._rates, self._ranks_per_host = rates, ranks_per_host
        self.handles: list[Any] = []
        self._room: dict[str, tuple[Any, int]] = {}
        self.started = False
        """From now on a host with room may have died."""
        self._starts = itertools.count()

    def new(self, role: str, rank: int) -> SimulatedHandle:
        """A new rank."""
        host, free = self._room.get(role, (None, 0))
        if not free or (self.started and not _lives(host)):
            remote = ray.remote(num_cpus=0, max_concurrency=100_000)(SimulatedHost)
            host, free = remote.remote(self._rates), self._ranks_per_host
            self.handles.append(host)
        self._room[role] = (host, free - 1)
        return SimulatedHandle(host, f"{role}[{rank}]#{next(self._starts)}")

    def report(self) -> tuple[list[Record], int]:
        """Of all hosts that live: what their ranks have done, in order of time, and how often watches asked."""
        records: list[Record] = []
        checks = 0
        for host in self.handles:
            try:
                own, asked = ray.get(host.report.remote())
            except RayActorError:
                continue
            records, checks = records + own, checks + asked
        return sorted(records, key=lambda record: record.began), checks


def _lives(host: Any) -> bool:
    try:
        ray.get(host.report.remote())
    except RayActorError:
        return False
    return True


def _tokens(chunks: Sequence[SimulatedAnswers]) -> int:
    return int(sum(chunk.tokens_B.sum() for chunk in chunks))
