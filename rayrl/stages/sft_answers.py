"""A light evaluation during fine-tuning: a few prompts answered, compared with the answers before the first step.

    answers/step-NNNNNN.jsonl   {"id", "messages", "reference", "answer"}, in the run's own folder

Only rank 0 works here. What was answered before an interruption is read, not made again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayrl.config.sft import SFTAnswersConfig
from rayrl.data.chat import encode_prompt
from rayrl.data.readers import read_prompt_rows
from rayrl.data.split import choose
from rayrl.errors import RunError, UserError
from rayrl.evaluation.versus import Contest, check, decide, win_metrics
from rayrl.learners.sft import SFTLearner
from rayrl.rewards.questions import asks_question
from rayrl.tracking.rows import read_rows, replace_rows
from rayrl.types import Prompt

logger = logging.getLogger(__name__)

FOLDER = "answers"


def light_prompts(config: SFTAnswersConfig, tokenizer: Any, system_prompt: str | None, max_tokens: int) -> list[Prompt]:
    """The chosen prompts in tokens. Raises UserError where none can be used."""
    check(config.wins)
    rows = choose(read_prompt_rows(config.prompts).rows, config.num_prompts)
    encoded = [encode_prompt(tokenizer, row, max_tokens, system_prompt) for row in rows]
    prompts = [one for one in encoded if isinstance(one, Prompt)]
    if not prompts:
        reason = next((one for one in encoded if isinstance(one, str)), "it holds none")
        raise UserError(f"validation.answers.prompts: {config.prompts.path} has no prompt that can be used: {reason}")
    return prompts


class LightEvaluation:
    """The prompts, and what the model said to them at the start."""

    def __init__(
        self, config: SFTAnswersConfig, prompts: Sequence[Prompt], tokenizer: Any, ends: Sequence[int], folder: Path
    ) -> None:
        self._config, self._prompts, self._tokenizer, self._ends = config, list(prompts), tokenizer, list(ends)
        self._folder = folder / FOLDER

    def run(self, learner: SFTLearner, step: int) -> dict[str, float]:
        """Answers after `step` steps; `eval/...` of a metrics row: the share that asks, and wins against the start."""
        answers = self._answers(learner, step)
        asking = [asks_question(answers[prompt.row.id]) for prompt in self._prompts]
        metrics = {"eval/question_share": sum(asking) / len(asking)}
        if not step:
            return metrics
        start = self._answers(learner, 0)
        contests = [
            Contest("prompts", prompt.row, "now", "start", answers[prompt.row.id], start[prompt.row.id])
            for prompt in self._prompts
        ]
        try:
            return metrics | win_metrics(decide(self._config.wins, contests))
        except (RunError, UserError) as error:  # a judge that is away is no reason to stop training
            logger.warning("answers weren't compared with those before training: %s", error)
            return metrics

    def _answers(self, learner: SFTLearner, step: int) -> dict[str, str]:
        path = self._folder / f"step-{step:06d}.jsonl"
        if path.is_file():
            return {row["id"]: row["answer"] for row in read_rows(path)}
        tokens = learner.generate([p.token_ids_P for p in self._prompts], self._config.max_new_tokens, self._ends)
        texts = [str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in tokens]
        rows = [
            {"id": one.row.id, "messages": one.row.messages, "reference": one.row.reference, "answer": text}
            for one, text in zip(self._prompts, texts, strict=True)
        ]
        replace_rows(path, rows)
        return {str(row["id"]): text for row, text in zip(rows, texts, strict=True)}
