"""The reward actor: one source of the mixture, whatever its kind. Sources score; the mixture is the coordinator's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import ray

from actors.worker import Worker, busy
from rayrl.config.ppo import RewardEntry
from rayrl.errors import UserError
from rayrl.rewards.function import SampleScorer, load_function, score_batch
from rayrl.rewards.rules import make_rule
from rayrl.types import Rollout, SourceScores


class RewardActor(Worker):
    """One worker of one source."""

    def __init__(self) -> None:
        super().__init__()
        self._counts = False

    @ray.method(concurrency_group="health")
    def progress(self) -> tuple[int, bool]:
        """See Worker. Functions and judges don't say how far they are: `timeout_s` of the entry limits them."""
        count, running = super().progress()
        return count, running and self._counts

    @busy
    def setup(self, entry: RewardEntry, model_path: str | None, pad_id: int) -> dict[str, str]:
        """Loads the source; `model_path` is the resolved path of a reward model. Returns what it is."""
        self._counts = entry.kind == "model"
        self._score = _scorer(entry, model_path, pad_id)
        return {"kind": entry.kind, "scores_with": model_path or entry.scores_with}

    @busy
    def score(self, *chunks: list[Rollout]) -> SourceScores:
        """Raw scores in order; failures by sample with their reasons."""
        return self._score(list(itertools.chain.from_iterable(chunks)))


def _scorer(entry: RewardEntry, model_path: str | None, pad_id: int) -> Callable[[Sequence[Rollout]], SourceScores]:
    if entry.kind == "model":
        from rayrl.models.scorer import RewardModel

        assert model_path is not None
        model = RewardModel(model_path, "auto", pad_id, entry.batch_size)
        return lambda rollouts: SourceScores(entry.name, model.score(rollouts))
    if entry.kind == "judge":
        from rayrl.rewards.judge import JudgeReward

        assert entry.judge is not None
        return JudgeReward(entry.name, entry.judge, entry.timeout_s).score
    scorer = rule_or_function(entry)
    return lambda rollouts: score_batch(entry.name, scorer, rollouts)


def rule_or_function(entry: RewardEntry) -> SampleScorer:
    """What scores a sample, for the kinds `rule` and `function`. Raises UserError where there is no such thing."""
    try:
        if entry.kind == "rule":
            assert entry.rule is not None
            return make_rule(entry.rule, entry.options)
        assert entry.path is not None
        return load_function(entry.path, entry.options)
    except ValueError as error:
        raise UserError(f"reward {entry.name!r}: {error}") from error
