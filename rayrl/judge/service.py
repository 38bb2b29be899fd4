"""The judge as one named actor that every stage and reward worker of a job shares: one cache, one budget, one pace.

The actor owns the cache file (cache.py), whose path names it, and lives beside the process that first asks for it, as
long as that process: the driver asks before workers do. Where it dies it starts again from the file, and calls that
were under way are made again: answered ones from the cache. Where it hangs, whoever waits for it ends it. Clients
differ by configuration: model, criteria, budget; those of one endpoint and the same limits keep to one pace.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.stuck import NO_STACK, Process, end_stuck
from rayrl.config.judge import EndpointConfig, JudgeConfig
from rayrl.config.load import config_hash
from rayrl.judge import compare
from rayrl.judge.budget import Spent
from rayrl.judge.cache import Store
from rayrl.judge.client import CallFailed, JudgeClient, Pace
from rayrl.judge.compare import AnswerScore, Judgement
from rayrl.judge.prompts import Subject
from rayrl.types import Message, PromptRow

logger = logging.getLogger(__name__)

SILENT_S = 60.0
"""An owner that says nothing for so long hangs: it answers beside its calls, which wait for the endpoint."""
START_S = 300.0
"""The same for one that hasn't said anything yet."""
LOOK_S = 15.0
END_S = 20.0
_MAX_CALLS = 10_000
"""Calls that may wait in the actor; the clients bound what is sent."""
_TRIES = 50
_OWNERS: dict[tuple[str, str], Any] = {}
"""By node and path: Ray ends an actor with the last handle of the process that started it, whoever else asks it."""


class JudgeOwner:
    """What runs in the actor: the store, and a client for every configuration that asks."""

    def __init__(self, cache: str) -> None:
        self._cache = cache
        self._store: Store | None = None
        self._clients: dict[str, JudgeClient] = {}
        self._paces: dict[tuple[Any, ...], Pace] = {}

    async def process(self) -> Process:
        """Where it runs, and that it answers."""
        return Process(ray.get_runtime_context().get_node_id(), os.getpid(), NO_STACK)

    async def check(self, config: EndpointConfig) -> Spent:
        """Opens what is needed to ask. Raises UserError where the cache or the key isn't there."""
        self._client(config)
        assert self._store is not None
        return self._store.ledger.spent

    async def ask(self, config: EndpointConfig, messages: Sequence[Message]) -> str:
        """See JudgeClient.ask."""
        return await self._client(config).ask(messages)

    async def compare(
        self, config: JudgeConfig, prompt: PromptRow, a: str, b: str, subject: Subject = "answer"
    ) -> Judgement:
        """See compare.compare."""
        return await compare.compare(self._client(config).ask, prompt, a, b, config, subject)

    async def score(
        self, config: JudgeConfig, prompt: PromptRow, answer: str, scale: tuple[int, int] = (0, 10)
    ) -> AnswerScore:
        """See compare.score."""
        return await compare.score(self._client(config).ask, prompt, answer, config, scale)

    async def close(self) -> None:
        """Closes connections and lets the file go."""
        for client in self._clients.values():
            await client.close()
        if self._store is not None:
            self._store.close()
        self._clients, self._store = {}, None

    def _client(self, config: EndpointConfig) -> JudgeClient:
        if self._store is None:  # here, since SQLite binds a connection to its thread, which is the event loop's
            self._store = Store(self._cache)
        key = config_hash(config)
        if key not in self._clients:
            limits = (config.endpoint, config.concurrency, config.requests_per_minute)
            pace = self._paces.setdefault(limits, Pace(config))
            self._clients[key] = JudgeClient(config, self._store, pace)
        return self._clients[key]


class ModelService:
    """A process's way to the model that `config` describes. Needs a connection to Ray."""

    def __init__(self, config: EndpointConfig) -> None:
        """Joins the actor that owns `config.cache`, or starts it.

        Raises UserError where the cache can't be used, or the key isn't set where the actor runs.
        """
        if config.endpoint in config.local:
            raise ValueError(f"the server of {config.endpoint} must run first")
        self._config = config
        self._asked: tuple[ray.ObjectRef, float] | None = None
        """What `process` will say, and since when it is awaited: across calls, whose own limits may be shorter."""
        self._owner: Process | None = None
        """What it said last; None where it is starting, for all that is known."""
        path = str(Path(config.cache).expanduser().absolute())
        place = (ray.get_runtime_context().get_node_id(), path)
        for attempt in range(_TRIES):
            if place not in _OWNERS:
                _OWNERS[place] = _join(path)
            self._actor: Any = _OWNERS[place]
            try:
                self.spent()
                self._owner = self._get(self._actor.process.remote())
                return
            except ActorDiedError:  # another process has let it go, and Ray is ending it
                del _OWNERS[place]
                if attempt == _TRIES - 1:
                    raise
                time.sleep(0.2)

    def spent(self) -> Spent:
        """What all runs that share the cache have spent."""
        return self._get(self._actor.check.remote(self._config))

    def ask(self, messages: Sequence[Message]) -> str:
        """One answer of the model. Raises CallFailed, BudgetExceeded, EndpointRefused."""
        return str(self._get(self._actor.ask.remote(self._config, messages)))

    def ask_batch(self, requests: Sequence[Sequence[Message]]) -> list[str | None]:
        """Answers to many requests, asked for at one time, in their order; None where there is none after all retries.

        Raises BudgetExceeded, EndpointRefused.
        """
        pending = [self._actor.ask.remote(self._config, messages) for messages in requests]
        answers: list[str | None] = []
        for reference in pending:
            try:
                answers.append(str(self._get(reference)))
            except CallFailed:
                answers.append(None)
        return answers

    def wait(
        self, references: Sequence[ray.ObjectRef], num_returns: int, timeout_s: float | None = None
    ) -> list[ray.ObjectRef]:
        """Those that are done, once there are `num_returns` of them or the time is up. Ends an owner that hangs."""
        deadline = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
        while True:
            left = max(0.0, deadline - time.monotonic())
            done, _ = ray.wait(list(references), num_returns=num_returns, timeout=min(left, LOOK_S))
            if len(done) >= num_returns:
                return done
            self._end_if_silent()
            if time.monotonic() >= deadline:
                return done

    def _end_if_silent(self) -> None:
        if self._asked is None:
            self._asked = self._actor.process.remote(), time.monotonic()
            return
        answer, since = self._asked
        silent_s = time.monotonic() - since
        if ray.wait([answer], timeout=0)[0]:
            self._asked = None
            with contextlib.suppress(RayError):  # it is gone, which what is awaited will say
                self._owner = ray.get(answer)
        elif silent_s > (START_S if self._owner is None else SILENT_S):
            logger.warning("the judge's actor says nothing for %.0f s: it is ended and starts again", silent_s)
            if self._owner is not None:  # that process alone: another who waits may have ended it, and a new one starts
                end_stuck(self._owner, END_S)
            else:
                ray.kill(self._actor, no_restart=False)
            self._asked, self._owner = (answer, time.monotonic()), None  # which the new one is asked too

    def _get(self, reference: ray.ObjectRef) -> Any:
        """The actor's result; what it raised for the user, without Ray's traceback around it."""
        self.wait([reference], 1)
        try:
            return ray.get(reference)
        except RayTaskError as error:
            raise error.as_instanceof_cause() if error.cause is None else error.cause from None


class JudgeService(ModelService):
    """A process's way to the judge that `config` describes."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__(config)
        self.config = config

    def submit(self, prompt: PromptRow, a: str, b: str, subject: Subject = "answer") -> ray.ObjectRef:
        """Starts judging two answers in both orders; `result` waits for the Judgement."""
        return self._actor.compare.remote(self.config, prompt, a, b, subject)

    def result(self, reference: ray.ObjectRef) -> Judgement:
        """Raises EndpointRefused where no request would succeed."""
        return self._get(reference)

    def score(self, prompt: PromptRow, answer: str) -> AnswerScore:
        """One answer's score from 0 to 10."""
        return self.score_batch([(prompt, answer)])[0]

    def score_batch(
        self,
        answers: Sequence[tuple[PromptRow, str]],
        timeout_s: float | None = None,
        scale: tuple[int, int] = (0, 10),
    ) -> list[AnswerScore]:
        """Scores of many answers, asked for at one time, in their order. Raises EndpointRefused.

        Those that aren't there after `timeout_s` have no value; their answers still come, into the cache.
        """
        pending = [self._actor.score.remote(self.config, prompt, answer, scale) for prompt, answer in answers]
        done = set(self.wait(pending, len(pending), timeout_s)) if pending else set()
        late = AnswerScore(None, reason=f"no score within {timeout_s} s")
        return [self._get(reference) if reference in done else late for reference in pending]


def _join(path: str) -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return (
        ray.remote(JudgeOwner)
        .options(
            name=f"judge-{hashlib.sha256(path.encode()).hexdigest()[:16]}",
            get_if_exists=True,
            num_cpus=0,
            max_concurrency=_MAX_CALLS,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=here,
        )
        .remote(path)
    )
