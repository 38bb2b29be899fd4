"""Tasks for a pool of workers on Ray Data: each a row of the data set, each answered once, whoever dies.

A task is one row and one call, so that its answer depends on neither the number of workers, nor which of them takes it,
nor what that one did before. Answers come back as they are finished. Ray Data's own restarts of actors have no end: a
worker that dies of its task would come back for ever. So they are off, and where a worker dies, a new pool takes the
tasks that are left, as long as any were answered since.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.data.exceptions import SystemException
from ray.exceptions import RayActorError, RayError
from ray.util.annotations import RayDeprecationWarning

from cluster.fit import check_fits
from cluster.placement import nodes
from cluster.specs import RoleSpec
from rayrl.errors import RunError, UserError

logger = logging.getLogger(__name__)

NUMBER = "number"
"""The column of a task's table, and of its answer's, that tells it from the others."""

_RETRIES = 3
"""Of a light worker's task whose process dies."""
_FAILURE, _OF_USER = "failure", "of_user"
_RAISED = re.compile(r"[A-Za-z_.]*(Error|Exception): ")


@dataclass(frozen=True)
class Pool:
    """The workers. `name`: what messages call one, such as "engine"."""

    name: str
    size: int
    cpus: float
    gpus: float
    start_timeout_s: float
    env: Mapping[str, str] = field(default_factory=dict)
    light: bool = False
    """A worker costs nothing to make: it is made anew for each task, in whatever process is free."""


def answers(
    tasks: Mapping[int, pa.Table], worker: type, arguments: Sequence[Any], pool: Pool
) -> Iterator[dict[str, Any]]:
    """Each task's answer as a row, in the order in which they are finished. Ray must be connected.

    Args:
        tasks: by number; a table of one row, of one schema, with that number in the column `number`.
        worker: made in every actor with `arguments`, then called with a task's table; gives a table of one row.

    Raises DoesNotFit where the cluster is too small, RunError where a worker fails, and what it raised for the user.
    """
    left = dict(tasks)
    while left:
        before = len(left)
        try:
            for answer in _answers(left, worker, arguments, pool):
                if answer.get(_FAILURE) is not None:
                    raise (UserError if answer[_OF_USER] else RunError)(answer[_FAILURE])
                del left[answer[NUMBER]]
                yield answer
        except RayError as error:
            if not isinstance(error, RayActorError) or len(left) == before:
                raise RunError(f"{pool.name} failed: {_cause(error)}") from error
            logger.warning("%s died; starting again with the %d tasks left: %s", pool.name, len(left), _cause(error))
        else:
            if left:
                raise RunError(f"Ray Data lost the tasks {sorted(left)}; the same command does them")


def _answers(
    tasks: Mapping[int, pa.Table], worker: type, arguments: Sequence[Any], pool: Pool
) -> Iterator[dict[str, Any]]:
    size = min(pool.size, len(tasks))
    check_fits([RoleSpec(pool.name, size, pool.cpus, pool.gpus)], nodes())
    rows = ray.data.from_arrow(list(tasks.values()))
    how: dict[str, Any] = {
        "batch_size": 1,
        "batch_format": "pyarrow",
        "num_cpus": pool.cpus,
        "num_gpus": pool.gpus,
        "runtime_env": {"env_vars": dict(pool.env)} if pool.env else None,
    }
    with _quiet_context(pool.start_timeout_s):
        if pool.light:
            # Ray's default has no end for these either.
            compute: Any = TaskPoolStrategy(size=size)
            answered = rows.map_batches(_Light(worker, arguments), compute=compute, max_retries=_RETRIES, **how)
        else:
            # The next task waits with a worker that would otherwise idle while the driver sends it.
            compute = ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2)
            answered = rows.map_batches(
                _Kept, fn_constructor_args=(worker, arguments), compute=compute, max_restarts=0, **how
            )
        for table in answered.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from table.to_pylist()


class _Light:
    """Makes a worker for one task."""

    def __init__(self, worker: type, arguments: Sequence[Any]) -> None:
        self._worker, self._arguments = worker, tuple(arguments)

    def __call__(self, table: pa.Table) -> pa.Table:
        return _told(lambda: self._worker(*self._arguments)(table), table)


class _Kept:
    """Makes a worker for all tasks of an actor."""

    def __init__(self, worker: type, arguments: Sequence[Any]) -> None:
        self._failed: UserError | RunError | None = None
        try:
            self._made = worker(*arguments)
        except (UserError, RunError) as error:
            self._failed = error  # an answer tells it whole

    def __call__(self, table: pa.Table) -> pa.Table:
        return _told(lambda: self._answer(table), table)

    def _answer(self, table: pa.Table) -> pa.Table:
        if self._failed is not None:
            raise self._failed
        return self._made(table)


def _told(work: Callable[[], pa.Table], task: pa.Table) -> pa.Table:
    """The answer, or what was raised for the user: Ray Data would wrap it so that nobody can tell what it was."""
    try:
        return work()
    except (UserError, RunError) as error:
        of_user = isinstance(error, UserError)
        return pa.table({NUMBER: task[NUMBER], _FAILURE: [str(error)], _OF_USER: [of_user]})


@contextmanager
def _quiet_context(start_timeout_s: float) -> Iterator[None]:
    """Ray Data's settings for this stage alone: no bars, no log lines, no end to a slow worker's patience."""
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
            one.setLevel(logging.CRITICAL)  # it takes a dead worker for an error of its own
        try:
            yield
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)


def _cause(error: BaseException) -> str:
    """What was raised in the worker, in one line; Ray's and Ray Data's own words around it say nothing."""
    inner: Any = error
    while (deeper := getattr(inner, "cause", None) or inner.__cause__) and not isinstance(deeper, SystemException):
        inner = deeper
    # The worker's traceback comes as a text; what was raised first stands above what it led to.
    lines = [line for text in (str(inner), str(error)) for line in reversed(text.strip().splitlines())]
    raised = (line for line in lines if _RAISED.match(line) and not line.startswith("ray.exceptions."))
    first = next(iter(str(inner).strip().splitlines()), "")
    return next(raised, f"{type(inner).__name__}: {first}")
