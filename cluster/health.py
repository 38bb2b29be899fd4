"""Waiting for actors: every wait has a limit, and every failure names who and in which phase.

`ray.get` on many references waits for a dead actor's partners, reports a timeout without a name, and wraps what an
actor raised in a page of traceback. Here answers are taken as they come, so that the first failure ends the wait while
others still hang in a collective; a death is preferred over the errors that it causes in others.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import exceptions as rex

from cluster.errors import ActorLost, AnswerTimeout

GRACE_S = 2.0
"""After an actor's error, how long to look for another's death that explains it."""
MAX_NAMES = 8
_DEATHS = (
    rex.RayActorError,
    rex.WorkerCrashedError,
    rex.NodeDiedError,
    rex.LocalRayletDiedError,
    rex.OutOfMemoryError,
    rex.ObjectLostError,
    rex.RuntimeEnvSetupError,
    rex.ActorUnschedulableError,
    rex.ActorPlacementGroupRemoved,
)


def wait_for(refs: Sequence[ray.ObjectRef], timeout_s: float, what: str, who: Sequence[str]) -> list[Any]:
    """The values of `refs`, in their order.

    Args:
        refs: answers awaited, one an actor.
        timeout_s: limit for all of them together.
        what: step and phase for errors, as in "step 12, update".
        who: the actor behind each reference, as in "policy[1]".

    Raises:
        AnswerTimeout: not all in time; names those missing.
        ActorLost: an actor died or didn't start.
        Exception: whatever an actor raised, in its own type, with the remote traceback as its cause.
    """
    if len(refs) != len(who):
        raise ValueError(f"{len(refs)} references, but {len(who)} names")
    deadline = time.monotonic() + timeout_s
    pending = dict(zip(refs, who, strict=True))
    answers: dict[ray.ObjectRef, Any] = {}
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise _late(tuple(pending.values()), len(refs), timeout_s, what)
        for ref in ready:
            name = pending.pop(ref)
            try:
                answers[ref] = ray.get(ref, timeout=max(0.001, deadline - time.monotonic()))
            except rex.GetTimeoutError:
                raise _late((name, *pending.values()), len(refs), timeout_s, what) from None
            except rex.RayTaskError as error:
                _raise_root(error, name, pending, what)
            except _DEATHS as error:
                raise _lost(error, name, what) from error
    return [answers[ref] for ref in refs]


def gather_named(calls: Mapping[str, ray.ObjectRef], timeout_s: float, what: str) -> dict[str, Any]:
    """`wait_for` over a mapping from actor names to references; values by name. Raises the same."""
    values = wait_for(list(calls.values()), timeout_s, what, list(calls))
    return dict(zip(calls, values, strict=True))


def _raise_root(error: rex.RayTaskError, name: str, pending: Mapping[ray.ObjectRef, str], what: str) -> None:
    """Raises the death that explains an actor's error, where there is one, else the error itself in its own type."""
    cause: BaseException = error
    while isinstance(cause, rex.RayTaskError):
        cause = cause.cause
    if isinstance(cause, _DEATHS):
        raise _lost(cause, f"an actor that {name} depends on", what) from error
    if pending:
        answered, _ = ray.wait(list(pending), num_returns=len(pending), timeout=GRACE_S)
        for ref in answered:
            try:
                ray.get(ref, timeout=GRACE_S)
            except (rex.RayTaskError, rex.GetTimeoutError):
                continue  # another follower of the same trouble; the first one speaks for them all
            except _DEATHS as death:
                raise _lost(death, pending[ref], what) from death
    cause.add_note(f"raised in {name} ({what})")
    raise cause from error


def _late(missing: tuple[str, ...], asked: int, timeout_s: float, what: str) -> AnswerTimeout:
    names = ", ".join(missing[:MAX_NAMES]) + (
        f" and {len(missing) - MAX_NAMES} more" if len(missing) > MAX_NAMES else ""
    )
    return AnswerTimeout(
        f"no answer from {names} within {timeout_s:g} s ({what}; {asked - len(missing)} of {asked} answered): "
        "hung, or slower than the limit allows",
        missing,
    )


def _lost(error: BaseException, name: str, what: str) -> ActorLost:
    failed_to_start = isinstance(error, rex.RayActorError) and error.actor_init_failed
    verb = "failed to start" if failed_to_start else "died"
    return ActorLost(f"{name} {verb} ({what}): {_reason(error, failed_to_start)}", name, what)


def _reason(error: BaseException, failed_to_start: bool) -> str:
    """The useful sentence of Ray's page-long messages."""
    lines = str(error).strip().splitlines()
    if failed_to_start:
        # A constructor's error arrives as text only: a traceback, then, not indented, the exception.
        last_frame = max((i for i, line in enumerate(lines) if line.startswith(" ")), default=-1)
        return " ".join(lines[last_frame + 1 :])
    text = " ".join(line.strip() for line in lines)
    text = text.rpartition("The actor is dead because ")[2].partition(" Some common causes")[0]
    return text[:400].rstrip(". ")
