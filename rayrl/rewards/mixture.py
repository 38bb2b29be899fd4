"""The mixture of reward sources: normalise each, weigh, add, normalise the sum.

    mixed = normalise(sum_k w_k * normalise_k(raw_k))

After HuatuoGPT's RLMF, which joins feedback of several kinds; here the kinds are declared in the config and every term
is logged. A sample that a source couldn't score is an error or a counted omission, never a silent None. Left out: how a
source comes by its numbers (rules.py, function.py, and models in their own actors).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rayrl.algorithms.score_normalise import make_normaliser
from rayrl.config.ppo import MixtureConfig, RewardEntry
from rayrl.errors import RunError
from rayrl.types import MixedScores, SourceScores

Column = Sequence[float | None]


class RewardFailure(RunError):
    """A reward source failed where the config says that this stops the run."""


class Mixture:
    """Weights and normalisers of a run's reward sources; the normalisers' state goes into every checkpoint."""

    def __init__(self, entries: Sequence[RewardEntry], config: MixtureConfig) -> None:
        if not any(entry.weight for entry in entries):
            raise ValueError("rewards: every weight is 0, so no answer is better than another; give a source a weight")
        self._entries = {entry.name: entry for entry in entries}
        self._normalisers = {entry.name: make_normaliser(entry.normalise, entry.clip) for entry in entries}
        self._mixed_normaliser = make_normaliser(config.normalise, config.clip)

    def mix(self, sources: Sequence[SourceScores], *, normalise: bool = True) -> MixedScores:
        """Raw scores of a batch of B samples -> one score a sample. The order of the sources doesn't matter.

        A term left out (`on_failure: omit`) renormalises the sample's other weights so that their total magnitude stays
        what it was. With `normalise=False`, for evaluation, raw scores are weighed as they are (no clip either) and no
        running statistic moves, so that scores of different steps compare.

        Raises RewardFailure, before any statistic moves, where a source of `on_failure: stop` failed (NaN and infinity
        are failures) or a sample has no source left; ValueError where sources or batch sizes don't fit.
        """
        raw = self._columns(sources)
        weight_scale_B = self._weight_scales(raw)
        normalised = {n: self._normalisers[n](column) for n, column in raw.items()} if normalise else raw
        summed_B = [scale * self._weighted_sum(normalised, i) for i, scale in enumerate(weight_scale_B)]
        mixed_B = self._mixed_normaliser(summed_B) if normalise else summed_B
        omitted = {name: sum(score is None for score in column) for name, column in raw.items()}
        return MixedScores(raw, normalised, [score for score in mixed_B if score is not None], omitted)

    def state_dict(self) -> dict[str, Any]:
        """The normalisers' states, in JSON's types."""
        sources = {name: normaliser.state_dict() for name, normaliser in self._normalisers.items()}
        return {"sources": sources, "mixed": self._mixed_normaliser.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError where the state is of other reward sources."""
        if set(state["sources"]) != set(self._normalisers):
            raise ValueError(
                f"the checkpoint's reward sources are {sorted(state['sources'])} and the config's are "
                f"{sorted(self._normalisers)}; resume with the rewards that the run started with"
            )
        for name, normaliser in self._normalisers.items():
            normaliser.load_state_dict(state["sources"][name])
        self._mixed_normaliser.load_state_dict(state["mixed"])

    def _columns(self, sources: Sequence[SourceScores]) -> dict[str, Column]:
        """Raw scores by source in the config's order, failures as None; raises where a failure has to stop the run."""
        given = {source.name: source for source in sources}
        if len(given) != len(sources) or set(given) != set(self._entries):
            raise ValueError(f"scores came from {[s.name for s in sources]}, the mixture has {list(self._entries)}")
        if len({len(source.raw_B) for source in sources}) > 1:
            raise ValueError(f"batch sizes differ: { {s.name: len(s.raw_B) for s in sources} }")
        columns: dict[str, Column] = {}
        for name, entry in self._entries.items():
            source = given[name]
            column = [None if score is None or not math.isfinite(score) else float(score) for score in source.raw_B]
            failed = [index for index, score in enumerate(column) if score is None]
            if failed and entry.on_failure == "stop":
                raise RewardFailure(
                    f"reward {name!r} failed on {len(failed)} of {len(column)} samples, first on sample {failed[0]}: "
                    f"{_reason(source, failed[0])}; mend the source, or set on_failure: omit to go on without it"
                )
            columns[name] = column
        self._check_some_left(columns, given)
        return columns

    def _check_some_left(self, columns: Mapping[str, Column], given: Mapping[str, SourceScores]) -> None:
        for index in range(len(next(iter(columns.values())))):
            if not self._weight_left(columns, index):
                reasons = [f"{n}: {_reason(given[n], index)}" for n, column in columns.items() if column[index] is None]
                raise RewardFailure(f"no reward with a weight scored sample {index}; {'; '.join(reasons)}")

    def _weight_left(self, columns: Mapping[str, Column], index: int) -> float:
        return math.fsum(
            abs(self._entries[name].weight) for name, column in columns.items() if column[index] is not None
        )

    def _weight_scales(self, columns: Mapping[str, Column]) -> list[float]:
        """Total magnitude of the weights over that of the sources that scored the sample; 1 where all did."""
        total = math.fsum(abs(entry.weight) for entry in self._entries.values())
        return [total / self._weight_left(columns, i) for i in range(len(next(iter(columns.values()))))]

    def _weighted_sum(self, columns: Mapping[str, Column], index: int) -> float:
        terms = ((self._entries[name].weight, column[index]) for name, column in columns.items())
        return math.fsum(weight * score for weight, score in terms if score is not None)


def _reason(source: SourceScores, index: int) -> str:
    score = source.raw_B[index]
    if score is not None:
        return f"the score is {score}, not a finite number"
    return source.failures.get(index, "no score and no reason given")
