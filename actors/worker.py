"""What every actor of a run shares: it says how long it was busy, how far it is, and in which process it runs."""

from __future__ import annotations

import functools
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray

from cluster.stuck import Process, offer_stack
from rayrl.heartbeat import beats

P = ParamSpec("P")
R = TypeVar("R")


DONE = None
"""Second answer of methods whose first stays in the object store: it is awaited, and the first isn't copied."""
BESIDE_WORK = {"health": 1}
"""Ray's concurrency groups of the actors: methods of this one are answered while others run."""


class Worker:
    """Base of the actors. Constructors can't fail: loading is in `setup`, whose errors keep their type."""

    def __init__(self) -> None:
        self._intervals: list[tuple[float, float]] = []
        self._running = 0
        self._calls = 0
        self._stack_fd = offer_stack()

    @ray.method(concurrency_group="health")
    def progress(self) -> tuple[int, bool]:
        """How much was done so far (calls, micro-batches, engine steps), and whether something is being done now."""
        return self._calls + beats(), self._running > 0

    @ray.method(concurrency_group="health")
    def process(self) -> Process:
        """Where it runs."""
        return Process(ray.get_runtime_context().get_node_id(), os.getpid(), self._stack_fd)

    def take_intervals(self) -> list[tuple[float, float]]:
        """Wall-clock (begin, end) of the work since the last call, in seconds since the epoch."""
        intervals, self._intervals = self._intervals, []
        return intervals

    def describe(self) -> dict[str, Any]:
        """Where it runs, for run.json (and for those who want to kill it)."""
        torch = sys.modules.get("torch")  # rule rewards don't load it
        node = ray.get_runtime_context().get_node_id()
        threads = torch.get_num_threads() if torch else 1
        return {"pid": os.getpid(), "host": socket.gethostname(), "node": node[:8], "threads": threads}


W = TypeVar("W", bound=Worker)


def busy(method: Callable[Concatenate[W, P], R]) -> Callable[Concatenate[W, P], R]:
    """Counts a method's time as work."""

    @functools.wraps(method)
    def timed(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        began = time.time()
        self._running += 1
        try:
            return method(self, *args, **kwargs)
        finally:
            self._running -= 1
            self._calls += 1
            self._intervals.append((began, time.time()))

    return timed


def union_s(intervals: list[tuple[float, float]]) -> float:
    """Seconds covered by at least one interval."""
    covered, end = 0.0, float("-inf")
    for a, b in sorted(intervals):
        covered += max(0.0, b - max(a, end))
        end = max(end, b)
    return covered
