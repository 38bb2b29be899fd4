"""The rubric rater: the shipped rules score both answers, and the better weighted sum wins.

For runs without a judge. Rules measure form; see rewards/rules.py for what they can't see.
"""

from __future__ import annotations

from collections.abc import Sequence

from rayrl.config.feedback import RubricConfig
from rayrl.errors import UserError
from rayrl.feedback.pairs import Pair, verdict_on
from rayrl.rewards.rules import Rule, make_rule
from rayrl.types import Comparison, PromptRow, Verdict

RATER = "rubric"


class Rubric:
    """score = sum of weight * rule; `margin` is the scores' difference, and a difference up to epsilon is a tie."""

    def __init__(self, config: RubricConfig) -> None:
        """Raises UserError for a rule or an option that doesn't exist."""
        try:
            self._rules: list[tuple[str, float, Rule]] = [
                (entry.rule, entry.weight, make_rule(entry.rule, entry.options)) for entry in config.rules
            ]
        except ValueError as error:
            raise UserError(f"raters: {error}") from None
        self._epsilon = config.epsilon

    def rate(self, pairs: Sequence[Pair]) -> list[Comparison]:
        """One row a pair; set aside where a rule can't score the prompt (it lacks a field or a reference)."""
        return [self._rate(pair) for pair in pairs]

    def _rate(self, pair: Pair) -> Comparison:
        try:
            scores_a, total_a = self._score(pair.prompt, pair.answer_a)
            scores_b, total_b = self._score(pair.prompt, pair.answer_b)
        except ValueError as error:
            return verdict_on(pair, RATER, "set_aside", reason=str(error))
        margin = abs(total_a - total_b)
        better: Verdict = "a" if total_a > total_b else "b"
        # Sums of floats: a difference of epsilon may come out a rounding above it.
        verdict: Verdict = "tie" if margin <= self._epsilon + 1e-9 else better
        scores = {"a": {**scores_a, "total": total_a}, "b": {**scores_b, "total": total_b}}
        return verdict_on(pair, RATER, verdict, margin=margin, scores=scores)

    def _score(self, prompt: PromptRow, answer: str) -> tuple[dict[str, float], float]:
        scores = {name: rule(prompt, answer) for name, _, rule in self._rules}
        return scores, sum(weight * scores[name] for name, weight, _ in self._rules)
