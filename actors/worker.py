"""What every actor of a run shares: it says how long it was busy, and in which process and device it runs."""

from __future__ import annotations

import functools
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray

P = ParamSpec("P")
R = TypeVar("R")


DONE = None
"""Second answer of methods whose first stays in the object store: it is awaited, and the first isn't copied."""


class Worker:
    """Base of the actors. Constructors can't fail: loading is in `setup`, whose errors keep their type."""

    def __init__(self) -> None:
        self._intervals: list[tuple[float, float]] = []

    def take_intervals(self) -> list[tuple[float, float]]:
        """Wall-clock (begin, end) of the work since the last call, in seconds since the epoch."""
        intervals, self._intervals = self._intervals, []
        return intervals

    def describe(self) -> dict[str, Any]:
        """Where it runs, for run.json (and for those who want to kill it)."""
        torch = sys.modules.get("torch")  # rule rewards don't load it
        return {"pid": os.getpid(), "host": socket.gethostname(), "threads": torch.get_num_threads() if torch else 1}


W = TypeVar("W", bound=Worker)


def busy(method: Callable[Concatenate[W, P], R]) -> Callable[Concatenate[W, P], R]:
    """Counts a method's time as work."""

    @functools.wraps(method)
    def timed(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        began = time.time()
        try:
            return method(self, *args, **kwargs)
        finally:
            self._intervals.append((began, time.time()))

    return timed


def union_s(intervals: list[tuple[float, float]]) -> float:
    """Seconds covered by at least one interval."""
    covered, end = 0.0, float("-inf")
    for a, b in sorted(intervals):
        covered += max(0.0, b - max(a, end))
        end = max(end, b)
    return covered


def free_address() -> tuple[str, int]:
    """This node's address and a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return ray.util.get_node_ip_address(), port
