"""What was lost, and how it comes back.

After an error every actor is asked how it is. The dead, those that answer nothing and those that a watch found stuck
are ended (with their stacks on disk, where they hang) and replaced: engines one by one and without waiting, scorers one
by one, policy or critic as a whole group, whose models then come from the last checkpoint. What must be done again is
the coordinator's business. An error that no loss explains isn't healed here.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from actors.crew import Crew
from actors.group import Group
from actors.phases import TornCheckpoint
from cluster.errors import ActorLost, AnswerGone, AnswerTimeout
from cluster.health import conditions
from cluster.stuck import Process, end_stuck
from rayrl.errors import RunError
from rayrl.tracking.recoveries import Cause, Recovery, RecoveryLog

logger = logging.getLogger(__name__)

ASK_S = 30.0
"""For actors to say how they are; they do so beside their work."""
END_S = 20.0
"""For the stack of a stuck actor and its end."""
NONE_LEFT = "no other was left: waited for one"
_CONNECTION = re.compile(r"gloo|nccl|connection (closed|reset)|timed out waiting|socket", re.IGNORECASE)


@dataclass(frozen=True)
class Healed:
    """What a recovery did."""

    trainers: bool
    """Policy or critic are new, or changed in an unknown way: their models must be loaded and steps done again."""
    answers_lost: bool
    """What the engines had sampled is gone."""
    event: Recovery
    """For the log, once the run goes on."""


class Healer:
    """Brings back what a run lost."""

    def __init__(self, crew: Crew, log: RecoveryLog, max_per_step: int, start_s: float) -> None:
        self._crew, self.log, self._max_per_step, self._start_s = crew, log, max_per_step, start_s
        self._processes: dict[str, Process] = {}
        self._per_step: Counter[int] = Counter()
        self._gone: Counter[int] = Counter()

    def learn_processes(self, groups: Sequence[Group]) -> None:
        """Notes where actors run, for the day on which they no longer say it."""
        for group in groups:
            self._processes |= dict(zip(group.names, group.run(self._start_s, "start", "process"), strict=True))

    def heal(self, error: Exception, step: int, phase: str, undo: bool, may_load: bool) -> Healed | None:
        """None where no loss explains the error.

        Args:
            undo: a failure in this phase may leave trainers changed.
            may_load: there is a checkpoint, so that trainers that live can be set back and needn't be replaced.

        Raises:
            RunError: too many recoveries in this step.
            ActorLost, AnswerTimeout: what was started anew failed again.
        """
        began, noticed = time.monotonic(), time.time()
        crew = self._crew
        everyone = {name: handle for group in crew.groups for name, handle in group.by_name.items()}
        named = {name for name in _named(error) if name in everyone or crew.engines.has(name)}
        stuck, died = (named, set()) if isinstance(error, AnswerTimeout) else (set(), named)
        states = conditions({name: handle for name, handle in everyone.items() if name not in stuck}, ASK_S)
        hung = sorted(stuck | {name for name, state in states.items() if state == "silent"})
        dead = sorted(died | {name for name, state in states.items() if state == "dead"})
        lost = {*hung, *dead}
        apart = _is_connection(error) or isinstance(error, TornCheckpoint)
        if not lost and not apart and not isinstance(error, AnswerGone):
            return None
        self._gone[step] += isinstance(error, AnswerGone)
        if lost or not isinstance(error, AnswerGone) or self._gone[step] > self._per_step[step] + 1:
            self._count(error, step)  # a first one that is gone was caused by a loss that is counted
        logger.warning("step %d, %s: %s", step, phase, error)
        stacks = [path for name in hung if (path := self.end(name)) is not None]
        engines_lost = [rank for rank in range(crew.engines.wanted) if f"rollout[{rank}]" in lost]
        for rank in engines_lost:
            crew.engines.drop(rank)
        crew.engines.start_missing()
        back = undo or apart or any(lost & set(group.names) for group in crew.trainers)
        parts = [part for group in crew.scorers if (part := _renewed(group, lost)) is not None]
        for group in crew.trainers if back else []:
            at_work = any(states.get(name) == "busy" for name in group.names)
            if not may_load or apart or at_work or lost & set(group.names):
                parts.append(group.renew(group.ranks))
        crew.load(parts, self._start_s, f"step {step}, restart")
        self.learn_processes(parts)
        storage = isinstance(error, TornCheckpoint)
        cause: Cause = "hung" if hung else "died" if lost else "storage" if storage else "connection"
        started = [name for part in parts for name in part.names] + [f"rollout[{rank}]" for rank in engines_lost]
        action = f"started again: {', '.join(started) or 'nothing'}"
        seconds = time.monotonic() - began
        event = Recovery(cause, step, phase, sorted(lost), action, seconds, stacks=stacks, time=noticed)
        return Healed(back, isinstance(error, AnswerGone), event)

    def lose_engines(self, error: ActorLost | AnswerTimeout, step: int) -> None:
        """Ends the engines that an error names and begins to load others. Raises the error where it names none."""
        began, noticed = time.monotonic(), time.time()
        names = [name for name in _named(error) if name in self._crew.engines.up.names]
        if not names:
            raise error
        hung = isinstance(error, AnswerTimeout)
        if not hung:  # a node takes all its engines with it: that is one loss
            states = conditions(self._crew.engines.up.by_name, ASK_S)
            names = [name for name, state in states.items() if name in names or state == "dead"]
        self._count(error, step)
        logger.warning("step %d, generate: %s", step, error)
        stacks = [path for name in names if hung and (path := self.end(name)) is not None]
        self._replace_engines(names)
        others = "prompts went to other engines" if len(self._crew.engines.up) else NONE_LEFT
        seconds = time.monotonic() - began
        cause: Cause = "hung" if hung else "died"
        self.log.add(Recovery(cause, step, "generate", names, others, seconds, stacks=stacks, time=noticed))

    def note_lost_in_sync(self, names: Sequence[str], step: int) -> None:
        """Engines that died while weights were sent; the others have them."""
        self._count(RunError(f"{', '.join(names)} died"), step)
        logger.warning("step %d, sync: %s died", step, ", ".join(names))
        self._replace_engines(names)
        action = "the other engines have the weights" if len(self._crew.engines.up) else NONE_LEFT
        self.log.add(Recovery("died", step, "sync", names, action, 0.0))

    def _replace_engines(self, names: Sequence[str]) -> None:
        for name in names:
            self._crew.engines.drop(int(name[len("rollout[") : -1]))
        self._crew.engines.start_missing()

    def end(self, name: str) -> str | None:
        """Kills an actor that doesn't answer; the file with its stack, where it left one."""
        process = self._processes.pop(name, None)
        text = end_stuck(process, END_S) if process is not None else None
        return self.log.write_stack(name, text) if text else None

    def _count(self, error: Exception, step: int) -> None:
        self._per_step[step] += 1
        if self._per_step[step] > self._max_per_step:
            raise RunError(
                f"step {step} was recovered {self._max_per_step} times (recovery.max_per_step), and then: {error}; the "
                "same command goes on from the last checkpoint"
            ) from error


def _named(error: Exception) -> list[str]:
    who = getattr(error, "who", ())
    return [who] if isinstance(who, str) else list(who)


def _renewed(group: Group, lost: set[str]) -> Group | None:
    ranks = [rank for rank, name in zip(group.ranks, group.names, strict=True) if name in lost]
    return group.renew(ranks) if ranks else None


def _is_connection(error: BaseException) -> bool:
    """A collective that broke though nobody died: a network that failed for a moment."""
    return isinstance(error, RuntimeError) and bool(_CONNECTION.search(str(error)))
