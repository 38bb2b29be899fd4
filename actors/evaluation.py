"""Held-out evaluation during a run: the same engines, the same reward sources, raw scores weighed as declared."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from actors.generation import Generation
from actors.scoring import Scoring
from rayrl.config.ppo import EvaluationConfig
from rayrl.errors import RunError, UserError
from rayrl.evaluation.statistics import Estimate, by_prompt, mean_interval
from rayrl.evaluation.versus import Contest, decide, win_metrics
from rayrl.rewards.questions import asks_question
from rayrl.tracking.rows import evaluation_path, read_samples, write_samples
from rayrl.tracking.storage_wait import Storage
from rayrl.types import Prompt, Sample

logger = logging.getLogger(__name__)

EVALUATION_SEED = 1
"""Second integer of an evaluation batch's seed; training batches have 0 there."""


def completeness(prompts: Sequence[Prompt]) -> dict[str, bool | None]:
    """By prompt: whether the patient left nothing out (None where the row doesn't say)."""
    rows = [prompt.row for prompt in prompts]
    return {row.id: (not row.fields["missing_info"] if "missing_info" in row.fields else None) for row in rows}


class HeldOut:
    """The held-out prompts of a run, sampled and scored after a number of steps."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        config: EvaluationConfig,
        generation: Generation,
        scoring: Scoring,
        folder: Path,
        storage: Storage,
        seed: int,
    ) -> None:
        self._prompts, self._config, self._seed = list(prompts), config, seed
        self._generation, self._scoring = generation, scoring
        self._folder, self._storage = folder, storage

    def drop_after(self, num_trained: int) -> None:
        """Removes what an earlier start wrote after `num_trained` steps, as the log drops its rows."""
        keep = evaluation_path(self._folder, num_trained).name
        with self._storage.answering("evaluations of later steps"):
            for path in (self._folder / "evaluation").glob("step-*.jsonl"):
                if path.name > keep:
                    path.unlink()

    def run(self, num_trained: int) -> list[Sample]:
        """Samples and scores after `num_trained` steps; taken from the folder where an earlier start made them."""
        path, what = evaluation_path(self._folder, num_trained), f"evaluation after step {num_trained}"
        with self._storage.answering(what):
            if path.exists():
                return read_samples(path)
        per_prompt = self._config.samples_per_prompt
        batch = self._generation.generate(
            self._prompts, per_prompt, (self._seed, EVALUATION_SEED, num_trained), what, num_texts=10**9
        )
        batch.check_version(num_trained, what)
        sources = self._scoring.collect(self._scoring.start(batch.refs), what)
        scores = self._scoring.mix(sources, what, normalise=False)
        samples = []
        for i, info in enumerate(batch.infos):
            row = self._prompts[i // per_prompt].row
            assert info.text is not None and info.prompt_id == row.id
            raw = {name: column[i] for name, column in scores.raw.items()}
            samples.append(
                Sample(
                    num_trained,
                    "heldout",
                    row.id,
                    row.messages,
                    info.text,
                    row.reference,
                    raw,
                    raw,
                    scores.mixed_B[i],
                    info.num_tokens,
                )
            )
        with self._storage.answering(what):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_samples(path, samples)
        return samples

    def metrics(self, samples: Sequence[Sample]) -> dict[str, float]:
        """`eval/...` of a metrics row: means with 95% intervals over prompts, the shares of answers that ask, and how
        often answers win against those before training.
        """
        out = _with_interval("eval/mixed", mean_interval(by_prompt((s.prompt_id, s.mixed) for s in samples).values()))
        for name in samples[0].raw:
            scored = [(s.prompt_id, raw) for s in samples if (raw := s.raw[name]) is not None]
            if scored:
                out |= _with_interval(f"eval/{name}", mean_interval(by_prompt(scored).values()))
        complete = completeness(self._prompts)
        for label, wanted in (("complete", True), ("incomplete", False)):
            asked = [asks_question(s.response) for s in samples if complete[s.prompt_id] is wanted]
            if asked:
                out[f"eval/question_share_{label}"] = sum(asked) / len(asked)
        return out | self._wins(samples)

    def _wins(self, samples: Sequence[Sample]) -> dict[str, float]:
        """The win rate of each prompt's first answer against its first one before training."""
        config = self._config.wins
        if config is None or not samples[0].step:
            return {}
        first = {sample.prompt_id: sample.response for sample in reversed(self.run(0))}
        now = {sample.prompt_id: sample.response for sample in reversed(samples)}
        rows = {prompt.row.id: prompt.row for prompt in self._prompts}
        contests = [
            Contest("heldout", rows[prompt_id], "now", "start", text, first[prompt_id])
            for prompt_id, text in now.items()
        ]
        try:
            return win_metrics(decide(config, contests))
        except (RunError, UserError) as error:  # a judge that is away is no reason to stop training
            logger.warning("held-out answers weren't compared with those before training: %s", error)
            return {}


def _with_interval(key: str, estimate: Estimate) -> dict[str, float]:
    out = {key: estimate.mean}
    if estimate.low is not None and estimate.high is not None:
        out |= {f"{key}_low": estimate.low, f"{key}_high": estimate.high}
    return out
