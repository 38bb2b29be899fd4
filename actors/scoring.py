"""Reward sources as actors, and their mixture: rollout references in, one score a rollout out."""

from __future__ import annotations

from collections.abc import Sequence

import ray

from actors.group import Group
from actors.patience import Patience
from cluster.health import wait_for
from rayrl.config.ppo import RewardEntry
from rayrl.rewards.mixture import Mixture, RewardFailure
from rayrl.types import MixedScores, SourceScores

Started = list[list[tuple[str, ray.ObjectRef]]]
"""(worker, answer), a list a source."""


class Scoring:
    """All sources of a run. `start` sends the work out, `collect` waits for it, `mix` moves the statistics."""

    def __init__(
        self, entries: Sequence[RewardEntry], groups: Sequence[Group], mixture: Mixture, patience: Patience
    ) -> None:
        self._entries, self.groups, self.mixture = list(entries), list(groups), mixture
        self._patience = patience

    def start(self, chunks: Sequence[ray.ObjectRef]) -> Started:
        """Answers to come, in the chunks' order; a worker gets neighbouring chunks, in one call."""
        started: Started = []
        for group in self.groups:
            workers = min(len(group), len(chunks))
            ends = [len(chunks) * (worker + 1) // workers for worker in range(workers)]
            shares = [chunks[start:end] for start, end in zip([0, *ends], ends, strict=False)]
            calls = zip(group.names, group.handles, shares, strict=False)
            started.append([(name, handle.score.remote(*share)) for name, handle, share in calls])
        return started

    def wait_for_models(self, started: Started, what: str) -> None:
        """Until the reward models have answered: where roles share cores, others begin after them."""
        for index, entry in enumerate(self._entries):
            if entry.kind == "model":
                self._wait(index, started, what)

    def collect(self, started: Started, what: str) -> list[SourceScores]:
        """Raw scores in the chunks' order, a source each."""
        return [_join(entry.name, self._wait(index, started, what)) for index, entry in enumerate(self._entries)]

    def mix(self, sources: Sequence[SourceScores], what: str, normalise: bool = True) -> MixedScores:
        """Mixed scores. A source that fails stops the run or is omitted, as its entry says."""
        try:
            return self.mixture.mix(sources, normalise=normalise)
        except RewardFailure as error:
            raise RewardFailure(f"{what}: {error}") from error

    def _wait(self, index: int, started: Started, what: str) -> list[SourceScores]:
        entry = self._entries[index]
        names, refs = [name for name, _ in started[index]], [ref for _, ref in started[index]]
        watch = self._patience.watch("score", self.groups[index])
        return wait_for(refs, entry.timeout_s, f"{what}, reward {entry.name}", names, watch)


def _join(name: str, parts: Sequence[SourceScores]) -> SourceScores:
    raw: list[float | None] = []
    failures: dict[int, str] = {}
    for part in parts:
        failures |= {len(raw) + index: reason for index, reason in part.failures.items()}
        raw += part.raw_B
    return SourceScores(name, raw, failures)
