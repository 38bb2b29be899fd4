"""A reward from an LLM judge: every answer scored on the judge's criteria, all answers of a batch at one time.

Client, cache, pace and budget are those of rayrl/judge, which feedback uses too: an answer that was once scored under
the same configuration costs nothing again. What couldn't be scored (no answer from the endpoint, one that can't be
read, a spent budget) is a failure of that sample; the reward's `on_failure` says what that means.
"""

from __future__ import annotations

from collections.abc import Sequence

from rayrl.config.judge import JudgeConfig
from rayrl.judge.service import JudgeService
from rayrl.types import Rollout, SourceScores


class JudgeReward:
    """One worker's way to the judge. Scores are from 0 to 10."""

    def __init__(self, name: str, config: JudgeConfig, timeout_s: float) -> None:
        """`timeout_s`: limit of the whole reward; what isn't scored shortly before it is a failure of its own.

        Raises UserError where the judge's cache or key can't be used.
        """
        self._name, self._service, self._limit_s = name, JudgeService(config), 0.9 * timeout_s

    def score(self, rollouts: Sequence[Rollout]) -> SourceScores:
        """Scores in order. Raises EndpointRefused where no request would succeed."""
        scores = self._service.score_batch([(r.prompt.row, r.text) for r in rollouts], self._limit_s)
        failures = {index: score.reason or "no score" for index, score in enumerate(scores) if score.value is None}
        return SourceScores(self._name, [score.value for score in scores], failures)
