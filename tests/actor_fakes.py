"""Groups without models for tests of the coordinator: they note what they are asked and answer with small numbers.

Calls go the way that real ones go (`handle.method.remote(...)`, references in, references out); the object store is
Ray's own, the work is done at once in this process.
"""

import errno
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.group import Group
from rayrl.tracking.checksums import checksums
from rayrl.types import Prompt, PromptRow, Rollout, RolloutInfo, SourceScores

Events = list[tuple[Any, ...]]


class Method:
    """One method of a handle."""

    def __init__(self, function: Callable[..., Any], num_returns: int = 1) -> None:
        self._function, self._num_returns = function, num_returns

    def options(self, num_returns: int) -> "Method":
        return Method(self._function, num_returns)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """References among the arguments become values, as Ray does it, but not those inside of lists."""
        values = [ray.get(arg) if isinstance(arg, ray.ObjectRef) else arg for arg in args]
        answer = self._function(*values, **kwargs)
        return ray.put(answer) if self._num_returns == 1 else [ray.put(part) for part in answer]


class Handle:
    """Stands for an actor handle."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self.actor, name))


class Fake:
    """What all have: a name, and the list that all of a run write to."""

    def __init__(self, name: str, events: Events) -> None:
        self.name, self.events = name, events

    def take_intervals(self) -> list[tuple[float, float]]:
        return []

    def progress(self) -> tuple[int, bool]:
        return 0, False


class Trainer(Fake):
    """What policy and critic ranks have in common. `metrics(step)` is what updates answer."""

    def __init__(self, name: str, events: Events, metrics: Callable[[int], dict[str, float]]) -> None:
        super().__init__(name, events)
        self._metrics = metrics
        self.disk_fails = 0

    def take(self, chunks: Sequence[list[Rollout]]) -> list[np.ndarray]:
        """Notes the shard; zeros for each of its tokens."""
        rollouts = [rollout for chunk in chunks for rollout in chunk]
        self.events.append((self.name, "take", [(r.prompt.row.id, r.sample_index) for r in rollouts]))
        return [np.zeros(len(r.response_ids_T), np.float32) for r in rollouts]

    def update(self, step: int, scores: Sequence[float], kl_coef: float, *arrays: Any) -> dict[str, float]:
        self.events.append((self.name, "update", step, [float(score) for score in scores], kl_coef))
        return self._metrics(step)

    def probe(self, folder: Path, done: int) -> None:
        if self.disk_fails > 0:
            self.disk_fails -= 1
            raise OSError(errno.ENOSPC, "No space left on device")

    def save(self, folder: Path) -> None:
        self.events.append((self.name, "save", folder.name))

    def checksums(self, folder: Path, part: int, parts: int) -> dict[str, str]:
        return checksums(folder, part, parts)

    def load(self, folder: Path) -> None:
        self.events.append((self.name, "load", folder.name))

    def offload(self) -> None:
        self.events.append((self.name, "offload"))

    def reload(self) -> None:
        self.events.append((self.name, "reload"))


class Policy(Trainer):
    """A policy rank. With `pushes` false its weights never arrive."""

    pushes = True

    def encode(self, share: bool, *chunks: list[Rollout]) -> tuple[str | None, None]:
        self._arrays = self.take(chunks)
        return (f"trunk of {self.name}" if share else None), None

    def prepare(self) -> tuple[list[np.ndarray], None, dict[str, float]]:
        self.events.append((self.name, "prepare"))
        tokens = float(sum(map(len, self._arrays)))
        return self._arrays, None, {"gap_sum": 1e-4 * tokens, "gap_max": 1e-3, "tokens": tokens, "entropy_sum": 1.0}

    def push(self, engines: Mapping[str, Handle], version: int, *limits: Any) -> tuple[int, list[str]]:
        self.events.append((self.name, "push", version, list(engines)))
        for engine in engines.values():
            if self.pushes:
                engine.actor.version = version
        return 10 * len(engines), []


class Critic(Trainer):
    """A critic rank."""

    def prepare(self, trunk: str | None, *chunks: list[Rollout]) -> tuple[list[np.ndarray], None]:
        self.events.append((self.name, "prepare", trunk))
        return self.take(chunks), None


class Reference(Fake):
    """A reference worker."""

    def logprobs(self, *chunks: list[Rollout]) -> tuple[list[np.ndarray], None]:
        self.events.append((self.name, "logprobs"))
        return [np.zeros(len(r.response_ids_T), np.float32) for chunk in chunks for r in chunk], None


class Engine(Fake):
    """An engine: prompt i is answered with two tokens and an end, or with three and none where `endless(i)`."""

    def __init__(self, name: str, events: Events, endless: Callable[[str], bool] = lambda row_id: False) -> None:
        super().__init__(name, events)
        self.version = 0
        self._endless = endless

    def generate(self, chunks: Sequence[Sequence[Prompt]], num_samples: int, seed: int, num_texts: int) -> list[Any]:
        self.events.append((self.name, "generate", [p.row.id for chunk in chunks for p in chunk], seed))
        out: list[Any] = []
        for chunk in chunks:
            rollouts = [self._rollout(prompt, i) for prompt in chunk for i in range(num_samples)]
            infos = [
                RolloutInfo(r.prompt.row.id, 3, r.ended, r.weight_version, r.text if i < num_texts else None)
                for i, r in enumerate(rollouts)
            ]
            out += [rollouts, infos]
        return out

    def _rollout(self, prompt: Prompt, index: int) -> Rollout:
        text = f"answer {index} to {prompt.row.id}"
        logprobs = np.zeros(3, np.float32)
        ended = not self._endless(prompt.row.id)
        return Rollout(prompt, index, np.array([5, 6, 2 if ended else 7]), logprobs, text, ended, self.version)

    def sleep(self) -> None:
        self.events.append((self.name, "sleep"))

    def wake(self) -> None:
        self.events.append((self.name, "wake"))


class Reward(Fake):
    """A reward worker; `score_of(rollout)` is a number, or a reason why there is none."""

    def __init__(self, name: str, events: Events, score_of: Callable[[Rollout], float | str]) -> None:
        super().__init__(name, events)
        self._score_of = score_of

    def score(self, *chunks: list[Rollout]) -> SourceScores:
        self.events.append((self.name, "score"))
        answers = [self._score_of(rollout) for chunk in chunks for rollout in chunk]
        scores = [None if isinstance(answer, str) else answer for answer in answers]
        return SourceScores(
            self.name.split(":")[-1].split("[")[0],
            scores,
            {i: answer for i, answer in enumerate(answers) if isinstance(answer, str)},
        )


def group(role: str, *actors: Fake) -> Group:
    return Group(role, [Handle(actor) for actor in actors])


def prompts(count: int) -> list[Prompt]:
    """Prompts p00, p01 ..."""
    return [
        Prompt(PromptRow(f"p{i:02d}", [{"role": "user", "content": f"question {i}"}]), np.array([1, 3 + i]))
        for i in range(count)
    ]
