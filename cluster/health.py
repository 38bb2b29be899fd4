"""Waiting for actors: every wait has a limit, and every failure names who and in which phase.

`ray.get` on many references waits for a dead actor's partners, reports a timeout without a name, and wraps what an
actor raised in a page of traceback. Here answers are taken as they come, so that the first failure ends the wait while
others still hang in a collective; a death is preferred over the errors that it causes in others.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ray
from ray import exceptions as rex

from cluster.errors import ActorLost, AnswerGone, AnswerTimeout

GRACE_S = 2.0
"""After an actor's error, how long to look for another's death that explains it."""
POLL_S = 5.0
"""Between looks at actors that are awaited."""
MAX_NAMES = 8
_DEATHS = (
    rex.RayActorError,
    rex.WorkerCrashedError,
    rex.NodeDiedError,
    rex.LocalRayletDiedError,
    rex.OutOfMemoryError,
    rex.RuntimeEnvSetupError,
    rex.ActorUnschedulableError,
    rex.ActorPlacementGroupRemoved,
)


Condition = Literal["idle", "busy", "dead", "silent"]


class Watch:
    """Looks after actors while their answers are awaited, and tells which of them have stopped working.

    Its actors have a method `progress() -> (count, busy)` that is answered beside whatever else they do. One that works
    and whose count stands still for its limit, or that answers nothing for so long, is stuck. One that doesn't work is
    waiting for something itself.
    """

    def __init__(self, handles: Mapping[str, Any], limits_s: Mapping[str, float], every_s: float = POLL_S) -> None:
        """By the actors' names. `every_s`: seconds between looks."""
        self._handles, self.limits_s, self.every_s = dict(handles), dict(limits_s), every_s
        now = time.monotonic()
        self._since = dict.fromkeys(handles, now)
        self._counts: dict[str, int] = {}
        self._asked: dict[str, tuple[ray.ObjectRef, float]] = {}
        self._next_look = now + every_s

    def look(self) -> tuple[str, ...]:
        """Names of the stuck. Where some answer nothing, only those: the others may wait for them."""
        now = time.monotonic()
        if now < self._next_look:
            return ()
        if now > self._next_look + 2 * self.every_s:  # answers came all the time, or this process stood still
            self._since = dict.fromkeys(self._since, now)
        self._next_look = now + self.every_s
        self._listen(now)
        for name, handle in self._handles.items():
            if name not in self._asked:
                self._asked[name] = (handle.progress.remote(), now)
        stuck = [name for name, since in self._since.items() if now - since > self.limits_s[name]]
        if not stuck:
            return ()
        silent = [name for name, (_, asked) in self._asked.items() if now - asked > 1.5 * self.every_s]
        return tuple(silent or stuck)

    def _listen(self, now: float) -> None:
        """Takes the answers to the last look."""
        by_ref = {ref: name for name, (ref, _) in self._asked.items()}
        ready = ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0)[0] if by_ref else []
        for ref in ready:
            name = by_ref[ref]
            del self._asked[name]
            try:
                count, busy = ray.get(ref)
            except rex.RayError:
                continue  # its death shows in what is awaited
            if not busy or count != self._counts.get(name):
                self._since[name] = now
            self._counts[name] = count


def wait_for(
    refs: Sequence[ray.ObjectRef], timeout_s: float, what: str, who: Sequence[str], watch: Watch | None = None
) -> list[Any]:
    """The values of `refs`, in their order.

    Args:
        refs: answers awaited, one an actor.
        timeout_s: limit for all of them together.
        what: step and phase for errors, as in "step 12, update".
        who: the actor behind each reference, as in "policy[1]".
        watch: looks meanwhile for actors that are stuck.

    Raises:
        AnswerTimeout: not all in time, or an actor is stuck; names those missing or stuck.
        ActorLost: an actor died or didn't start.
        AnswerGone: it lives, but an object it needs, or its answer, lay on a node that died.
        Exception: whatever an actor raised, in its own type, with the remote traceback as its cause.
    """
    if len(refs) != len(who):
        raise ValueError(f"{len(refs)} references, but {len(who)} names")
    deadline = time.monotonic() + timeout_s
    pending = dict(zip(refs, who, strict=True))
    answers: dict[ray.ObjectRef, Any] = {}
    while pending:
        for ref in _ready(pending, deadline, timeout_s, len(refs), what, watch):
            name = pending.pop(ref)
            try:
                answers[ref] = ray.get(ref, timeout=max(0.001, deadline - time.monotonic()))
            except rex.GetTimeoutError:
                raise _late((name, *pending.values()), len(refs), timeout_s, what) from None
            except rex.RayTaskError as error:
                _raise_root(error, name, pending, what)
            except rex.ObjectLostError as error:
                raise _gone(name, what) from error
            except _DEATHS as error:
                raise _lost(error, name, what) from error
    return [answers[ref] for ref in refs]


def ready_of(
    pending: Mapping[ray.ObjectRef, str], timeout_s: float, what: str, watch: Watch | None = None
) -> list[ray.ObjectRef]:
    """References that have an answer, or an error, of those behind which the named actors work; waits for one.

    Raises AnswerTimeout as `wait_for`, ValueError where nothing is awaited.
    """
    if not pending:
        raise ValueError(f"{what}: nothing is awaited")
    return _ready(pending, time.monotonic() + timeout_s, timeout_s, len(pending), what, watch)


def conditions(handles: Mapping[str, Any], timeout_s: float) -> dict[str, Condition]:
    """How each actor is, by its name: it works, is idle, is dead, or gave no answer in time."""
    asked = {handle.progress.remote(): name for name, handle in handles.items()}
    ready = set(ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)[0]) if asked else set()
    found: dict[str, Condition] = {}
    for ref, name in asked.items():
        if ref not in ready:
            found[name] = "silent"
            continue
        try:
            found[name] = "busy" if ray.get(ref)[1] else "idle"
        except rex.RayError:
            found[name] = "dead"
    return found


def _ready(
    pending: Mapping[ray.ObjectRef, str], deadline: float, timeout_s: float, asked: int, what: str, watch: Watch | None
) -> list[ray.ObjectRef]:
    refs = list(pending)
    while True:
        left = max(0.0, deadline - time.monotonic())
        ready, _ = ray.wait(refs, num_returns=1, timeout=min(left, watch.every_s) if watch else left)
        if ready:  # with one a call, N answers that come together would cost N looks at N references
            return ray.wait(refs, num_returns=len(refs), timeout=0)[0]
        if watch is not None and (stuck := watch.look()):
            raise _stuck(stuck, what, watch)
        if time.monotonic() >= deadline:
            raise _late(tuple(pending.values()), asked, timeout_s, what)


def _raise_root(error: rex.RayTaskError, name: str, pending: Mapping[ray.ObjectRef, str], what: str) -> None:
    """Raises the death that explains an actor's error, where there is one, else the error itself in its own type."""
    cause: BaseException = error
    while isinstance(cause, rex.RayTaskError):
        cause = cause.cause
    if isinstance(cause, rex.ObjectLostError):
        raise _gone(name, what) from error
    if isinstance(cause, _DEATHS):
        raise _lost(cause, f"an actor that {name} depends on", what) from error
    if pending:
        answered, _ = ray.wait(list(pending), num_returns=len(pending), timeout=GRACE_S)
        for ref in answered:
            try:
                ray.get(ref, timeout=GRACE_S)
            except (rex.RayTaskError, rex.GetTimeoutError, rex.ObjectLostError):
                continue  # another follower of the same trouble; the first one speaks for them all
            except _DEATHS as death:
                raise _lost(death, pending[ref], what) from death
    cause.add_note(f"raised in {name} ({what})")
    raise cause from error


def _late(missing: tuple[str, ...], asked: int, timeout_s: float, what: str) -> AnswerTimeout:
    return AnswerTimeout(
        f"no answer from {_listed(missing)} within {timeout_s:g} s ({what}; {asked - len(missing)} of {asked} "
        "answered): hung, or slower than the limit allows",
        missing,
    )


def _stuck(names: tuple[str, ...], what: str, watch: Watch) -> AnswerTimeout:
    limit_s = max(watch.limits_s[name] for name in names)
    return AnswerTimeout(f"{_listed(names)} made no progress for {limit_s:g} s ({what})", names)


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _gone(name: str, what: str) -> AnswerGone:
    return AnswerGone(f"what {name} was to work on, or has made, lies on a node that is gone ({what})")


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
