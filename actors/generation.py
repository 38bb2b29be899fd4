"""The rollout group: prompts over engines, answers back in chunks that each belong to one rank of the trainers.

Answers stay where they were sampled, by reference; this process sees what metrics and the sample log need.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from actors.engines import Engines
from actors.patience import Patience
from cluster.errors import ActorLost, AnswerTimeout
from cluster.health import ready_of, wait_for
from rayrl.errors import RunError
from rayrl.types import Prompt, RolloutInfo

OnLoss = Callable[[ActorLost | AnswerTimeout, str], None]


@dataclass(frozen=True)
class Chunk:
    """Rollouts of consecutive prompts: sampled by one engine, trained on by one rank."""

    ref: ray.ObjectRef
    rank: int


@dataclass(frozen=True)
class Batch:
    """One generation: its chunks in the prompts' order, and a line on every rollout."""

    chunks: list[Chunk]
    infos: list[RolloutInfo]

    @property
    def refs(self) -> list[ray.ObjectRef]:
        """Of the chunks' rollouts."""
        return [chunk.ref for chunk in self.chunks]

    def check_version(self, version: int, what: str) -> None:
        """Raises RunError where answers weren't sampled by the weights after `version` steps."""
        stale = {info.weight_version for info in self.infos} - {version}
        if stale:
            raise RunError(f"{what}: answers carry weight versions {sorted(stale)}; a sync was lost")

    def of_rank(self, rank: int) -> list[ray.ObjectRef]:
        """The chunks that one trainer rank takes."""
        return [chunk.ref for chunk in self.chunks if chunk.rank == rank]


def cut(num_prompts: int, num_engines: int, num_ranks: int) -> list[tuple[int, int, int, int]]:
    """(start, stop, engine, rank) of the chunks: prompts in equal parts over engines and, apart from that, over ranks.

    Example: cut(4, 1, 2) == [(0, 2, 0, 0), (2, 4, 0, 1)]
    """
    engine_edges = [round(i * num_prompts / num_engines) for i in range(num_engines + 1)]
    rank_edges = [round(i * num_prompts / num_ranks) for i in range(num_ranks + 1)]
    edges = sorted({*engine_edges, *rank_edges})
    return [
        (a, b, int(np.searchsorted(engine_edges, a, "right")) - 1, int(np.searchsorted(rank_edges, a, "right")) - 1)
        for a, b in itertools.pairwise(edges)
    ]


class Generation:
    """Asks the engines.

    Prompts are cut into as many shares as the run has engines when all are there, and a share is one batch of an
    engine, seeded by its own number: which engine samples it, and how many there are, changes nothing in the answers.
    The share of an engine that dies goes to another.
    """

    def __init__(
        self,
        engines: Engines,
        num_ranks: int,
        patience: Patience,
        on_loss: OnLoss | None = None,
        on_none: Callable[[str], None] | None = None,
    ) -> None:
        """`on_loss` gets the error behind which engines are dead or stuck and ends them; `on_none` brings one."""
        self.engines, self._num_ranks, self._patience = engines, num_ranks, patience
        self.on_loss, self.on_none = on_loss, on_none
        self.on_queue: Callable[[int, int], None] = lambda waiting, running: None
        """Is told how many prompts wait for an engine and how many are being answered, whenever that changes."""

    def generate(
        self, prompts: Sequence[Prompt], num_samples: int, seed: Sequence[int], what: str, num_texts: int
    ) -> Batch:
        """`num_samples` answers to each prompt; waits for all.

        `seed`: integers that name this batch; `num_texts`: rollouts of each chunk whose text comes along.
        """
        pieces = cut(len(prompts), self.engines.wanted, self._num_ranks)
        mine: list[list[int]] = [[] for _ in range(self.engines.wanted)]
        for i, piece in enumerate(pieces):
            mine[piece[2]].append(i)
        size = [sum(pieces[i][1] - pieces[i][0] for i in own) for own in mine]
        todo = [share for share in range(self.engines.wanted) if mine[share]]
        running: dict[ray.ObjectRef, tuple[int, str, list[ray.ObjectRef]]] = {}
        answers: dict[int, tuple[ray.ObjectRef, list[RolloutInfo]]] = {}
        watch = self._patience.watch("generate", self.engines.up)

        def ask(share: int, name: str, handle: Any) -> None:
            parts = [list(prompts[pieces[i][0] : pieces[i][1]]) for i in mine[share]]
            share_seed = int(np.random.SeedSequence([*seed, share]).generate_state(1)[0])
            method = handle.generate.options(num_returns=2 * len(parts))
            refs = method.remote(parts, num_samples, share_seed, num_texts)
            running[refs[1]] = (share, name, refs)

        while todo or running:
            if not len(self.engines.up):
                if self.on_none is None:
                    raise RunError(f"{what}: no engine is left")
                self.on_none(what)
                watch = self._patience.watch("generate", self.engines.up)
            at_work = {name for _, name, _ in running.values()}
            for name, handle in self.engines.up.by_name.items():
                if todo and name not in at_work:
                    ask(todo.pop(_preferred(todo, name)), name, handle)
            self.on_queue(sum(size[share] for share in todo), sum(size[share] for share, _, _ in running.values()))
            waited_for = {ref: name for ref, (_, name, _) in running.items()}
            try:
                for ref in ready_of(waited_for, self._patience.step_s, what, watch):
                    share, name, refs = running[ref]
                    infos = wait_for(refs[1::2], self._patience.step_s, what, [name] * len(mine[share]))
                    del running[ref]
                    answers |= {i: (r, info) for i, r, info in zip(mine[share], refs[::2], infos, strict=True)}
            except (ActorLost, AnswerTimeout) as error:
                if self.on_loss is None:
                    raise
                self.on_loss(error, what)
                alive = self.engines.up.by_name
                for ref, (share, name, _) in list(running.items()):
                    if name not in alive:
                        del running[ref]
                        todo.insert(0, share)
                watch = self._patience.watch("generate", self.engines.up)
        self.on_queue(0, 0)
        order = sorted(answers)
        chunks = [Chunk(answers[i][0], pieces[i][3]) for i in order]
        return Batch(chunks, [info for i in order for info in answers[i][1]])


def _preferred(todo: Sequence[int], name: str) -> int:
    """Where in `todo` an engine's own share stands, else the first: with all engines up each samples its own."""
    return next((at for at, share in enumerate(todo) if name == f"rollout[{share}]"), 0)
