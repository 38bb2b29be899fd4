"""The engines of a run: those that sample, those that load, and those that are missing and come when there is room.

Only engines that are up are asked. A new one loads while the others work and is up once it has the weights of the step;
until then the run goes on without it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from actors.group import Group
from rayrl.errors import RunError

logger = logging.getLogger(__name__)

MAX_FAILED_STARTS = 3
"""In a row, after which a rank isn't tried again."""
POLL_S = 0.5


@dataclass(frozen=True)
class Loading:
    """An engine that loads since `since` (monotonic seconds)."""

    engine: Group
    ref: ray.ObjectRef
    since: float


class Engines:
    """See above. `up` is the group of those that can be asked."""

    def __init__(
        self,
        up: Group,
        wanted: int,
        setup: Callable[[Group], list[ray.ObjectRef]] | None = None,
        has_room: Callable[[int], bool] = lambda rank: True,
        start_s: float = 600.0,
    ) -> None:
        """`wanted`: engines of a whole group; `start_s`: limit for one to load. Without `setup` none comes back."""
        self.up, self.wanted = up, wanted
        self._setup, self._has_room = setup, has_room
        self._start_s = start_s
        self._loading: dict[int, Loading] = {}
        self._failed: dict[int, int] = {}

    def drop(self, rank: int) -> None:
        """An engine died or is to be ended, also one that has loaded and isn't up yet."""
        if rank in self.up.ranks:
            self.up.remove(rank)
        loading = self._loading.pop(rank, None)
        if loading is not None:
            self._failed[rank] = self._failed.get(rank, 0) + 1
            loading.engine.remove(rank)

    def has(self, name: str) -> bool:
        """Whether an engine of this name is up or loads."""
        return name in self.up.names or any(name == f"{self.up.role}[{rank}]" for rank in self._loading)

    def start_missing(self) -> None:
        """Begins to load engines that are missing and have room; doesn't wait."""
        if self._setup is None:
            return
        for rank in range(self.wanted):
            gone = rank not in self.up.ranks and rank not in self._loading
            if gone and self._failed.get(rank, 0) < MAX_FAILED_STARTS and self._has_room(rank):
                new = self.up.new(rank)
                self._loading[rank] = Loading(new, self._setup(new)[0], time.monotonic())

    def loaded(self) -> Group:
        """Those that have loaded since and wait for weights."""
        done: dict[int, Any] = {}
        for rank, loading in list(self._loading.items()):
            reason = None
            if ray.wait([loading.ref], timeout=0)[0]:
                try:
                    ray.get(loading.ref)
                    done[rank] = loading.engine.handles[0]
                except RayError as error:
                    reason = str(error).strip().splitlines()[-1]
            elif time.monotonic() - loading.since > self._start_s:
                reason = f"not within {self._start_s:g} s (cluster.start_timeout_s)"
            if reason is not None:
                logger.warning("rollout[%d] didn't start: %s", rank, reason)
                self._failed[rank] = self._failed.get(rank, 0) + 1
                self._loading.pop(rank).engine.remove(rank)
        return Group("rollout", done)

    def join(self, group: Group) -> None:
        """These have the weights by now: they are up."""
        for rank in group.ranks:
            self._loading.pop(rank, None)
            self._failed.pop(rank, None)
        self.up.add(group)

    def wait_for_one(self, what: str) -> Group:
        """Where none is up: waits until one has loaded. Raises RunError where none does in time."""
        deadline = time.monotonic() + self._start_s
        while True:
            self.start_missing()
            loaded = self.loaded()
            if len(loaded):
                return loaded
            given_up = [rank for rank, count in self._failed.items() if count >= MAX_FAILED_STARTS]
            if len(given_up) == self.wanted:
                raise RunError(f"{what}: no engine is left, and none of {self.wanted} could be started again")
            if time.monotonic() > deadline:
                raise RunError(f"{what}: no engine is left, and none came within {self._start_s:g} s (start_timeout_s)")
            time.sleep(POLL_S)
