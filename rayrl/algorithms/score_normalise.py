"""Normalisation of scores before and after the reward mixture.

- running_std: divides by the standard deviation of every score seen so far, this batch's included, WITHOUT taking a
  mean off, so that the sign of a score and its distance from 0 keep their meaning (as trlx does). Updated in parallel
  form (en.wikipedia.org/wiki/Algorithms_for_calculating_variance), in float64.
- batch_whiten: mean 0 and standard deviation 1 within the batch.
- none: the score as it came.

Standard deviations have divisor n - 1, batches of scores being small. Where there is one score, or all are equal, the
divisor is 1. Scores are those of all ranks: one process normalises, so nothing is reduced here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

How = Literal["none", "running_std", "batch_whiten"]
State = dict[str, float | str]

ROUNDING = 1e-8
"""A standard deviation below this share of the mean is rounding error of equal scores."""


class ScoreNormaliser(ABC):
    """Normalises a batch of scores, then holds them within +-clip (None: no bound)."""

    how: ClassVar[How]

    def __init__(self, clip: float | None) -> None:
        self.clip = clip

    def __call__(self, raw: Sequence[float | None]) -> list[float | None]:
        """One number for each; None (an omitted score) stays None and isn't counted.

        Raises ValueError if a score isn't finite, before anything is counted.
        """
        for index, score in enumerate(raw):
            if score is not None and not math.isfinite(score):
                raise ValueError(
                    f"score {index} of {len(raw)} is {score}; a reward must be a finite number, or omitted"
                )
        given_N = np.array([score for score in raw if score is not None], dtype=np.float64)
        if len(given_N) == 0:
            return list(raw)
        scaled_N = self._scale(given_N)
        if self.clip is not None:
            scaled_N = np.clip(scaled_N, -self.clip, self.clip)
        scaled = iter(scaled_N.tolist())
        return [None if score is None else next(scaled) for score in raw]

    @abstractmethod
    def _scale(self, scores_N: np.ndarray) -> np.ndarray:
        """At least one finite score -> as many."""

    def state_dict(self) -> State:
        """What a checkpoint keeps; plain JSON values."""
        return {"how": self.how}

    def load_state_dict(self, state: State) -> None:
        """Raises ValueError if the state is another normaliser's."""
        if state["how"] != self.how:
            raise ValueError(
                f"the checkpoint's score normaliser is {state['how']!r} and this run's is {self.how!r}; "
                "resume with the configuration that the run started with"
            )


class NoNormalise(ScoreNormaliser):
    """Scores as they came."""

    how = "none"

    def _scale(self, scores_N: np.ndarray) -> np.ndarray:
        return scores_N


class BatchWhiten(ScoreNormaliser):
    """Mean 0 and standard deviation 1 within the batch; keeps nothing."""

    how = "batch_whiten"

    def _scale(self, scores_N: np.ndarray) -> np.ndarray:
        mean = float(scores_N.mean())
        centred_N = scores_N - mean
        return centred_N / _divisor(len(scores_N), mean, float(np.square(centred_N).sum()))


class RunningStd(ScoreNormaliser):
    """Divides by the running standard deviation, without centring."""

    how = "running_std"

    def __init__(self, clip: float | None) -> None:
        super().__init__(clip)
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0
        """Sum of squared distances from the mean."""

    @property
    def std(self) -> float:
        """What scores are divided by now."""
        return _divisor(self.count, self.mean, self.squares)

    def _scale(self, scores_N: np.ndarray) -> np.ndarray:
        self._update(scores_N)
        return scores_N / self.std

    def _update(self, scores_N: np.ndarray) -> None:
        mean = float(scores_N.mean())
        count = self.count + len(scores_N)
        shift = mean - self.mean
        self.squares += float(np.square(scores_N - mean).sum()) + shift**2 * self.count * len(scores_N) / count
        self.mean += shift * len(scores_N) / count
        self.count = count

    def state_dict(self) -> State:
        return {"how": self.how, "count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.count, self.mean, self.squares = int(state["count"]), float(state["mean"]), float(state["squares"])


def make_normaliser(how: How, clip: float | None) -> ScoreNormaliser:
    """The normaliser of that name. Raises ValueError if there is none."""
    for normaliser in (NoNormalise, RunningStd, BatchWhiten):
        if normaliser.how == how:
            return normaliser(clip)
    raise ValueError(f"unknown score normalisation {how!r}; choose none, running_std or batch_whiten")


def _divisor(count: int, mean: float, squares: float) -> float:
    """The standard deviation (divisor n - 1), or 1 where it is none."""
    if count < 2:
        return 1.0
    std = math.sqrt(squares / (count - 1))
    return std if std > ROUNDING * abs(mean) else 1.0
