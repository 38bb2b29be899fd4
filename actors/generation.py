"""The rollout group: prompts over engines, answers back in chunks that each belong to one rank of the trainers.

Answers stay where they were sampled, by reference; this process sees what metrics and the sample log need.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray

from actors.group import Group
from cluster.health import wait_for
from rayrl.errors import RunError
from rayrl.types import Prompt, RolloutInfo


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
    """Asks the engines."""

    def __init__(self, rollout: Group, num_ranks: int, timeout_s: float) -> None:
        self.rollout, self._num_ranks, self._timeout_s = rollout, num_ranks, timeout_s

    def generate(
        self, prompts: Sequence[Prompt], num_samples: int, seed: Sequence[int], what: str, num_texts: int
    ) -> Batch:
        """`num_samples` answers to each prompt; waits for all.

        `seed`: integers that name this batch; `num_texts`: rollouts of each chunk whose text comes along.
        """
        pieces = cut(len(prompts), len(self.rollout), self._num_ranks)
        chunks: dict[int, Chunk] = {}
        info_refs: dict[int, ray.ObjectRef] = {}
        for engine, handle in enumerate(self.rollout.handles):
            mine = [i for i, piece in enumerate(pieces) if piece[2] == engine]
            if not mine:
                continue
            parts = [list(prompts[pieces[i][0] : pieces[i][1]]) for i in mine]
            engine_seed = int(np.random.SeedSequence([*seed, engine]).generate_state(1)[0])
            refs = handle.generate.options(num_returns=2 * len(mine)).remote(parts, num_samples, engine_seed, num_texts)
            for i, rollouts, info in zip(mine, refs[::2], refs[1::2], strict=True):
                chunks[i], info_refs[i] = Chunk(rollouts, pieces[i][3]), info
        order = sorted(chunks)
        names = [self.rollout.names[pieces[i][2]] for i in order]
        infos = wait_for([info_refs[i] for i in order], self._timeout_s, what, names)
        return Batch([chunks[i] for i in order], [info for part in infos for info in part])
