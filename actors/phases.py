"""What happens in each phase of a step: which group is called with what, and what is awaited.

Each phase can be done again after a recovery: `generate` and `score` change nothing but what the groups keep of this
very step, and the mixture's statistics move only when all scores and log-probabilities are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors.crew import Crew
from actors.generation import Batch, Generation
from actors.metrics import require_finite
from actors.patience import Patience
from actors.scoring import Scoring
from cluster.health import wait_for
from rayrl.config.ppo import Phase, PPOConfig
from rayrl.placement import shares_trunk
from rayrl.tracking.storage_wait import is_storage_trouble
from rayrl.types import MixedScores, Prompt

TRAINING_SEED = 0
"""Second integer of a training batch's seed (evaluation.py has its own)."""

Awaited = Sequence[tuple[str, ray.ObjectRef]]
"""(actor, answer)."""


@dataclass(frozen=True)
class Prepared:
    """What a step's update needs: references, and the scores."""

    logprobs: list[ray.ObjectRef]
    ref_logprobs: list[ray.ObjectRef]
    values: list[ray.ObjectRef | None]
    stats: list[Mapping[str, float]]
    scores: MixedScores


class TornCheckpoint(Exception):
    """The storage failed while several ranks wrote a checkpoint together."""


class Phases:
    """The phases of a run over its crew."""

    def __init__(
        self, config: PPOConfig, crew: Crew, generation: Generation, scoring: Scoring, patience: Patience
    ) -> None:
        self._config, self._crew, self._patience = config, crew, patience
        self._generation, self._scoring = generation, scoring
        self._asleep = False

    def generate(self, step: int, prompts: Sequence[Prompt]) -> Batch:
        """The step's answers, all sampled by the weights after `step` steps."""
        config = self._config
        if self._asleep:  # the answers before these were lost
            self.colocated("wake", "offload")
        seed, texts = (config.seed, TRAINING_SEED, step), config.logging.samples_per_step
        batch = self._generation.generate(
            prompts, config.samples_per_prompt, seed, f"step {step}, generation", num_texts=texts
        )
        self.colocated("sleep", "reload")
        batch.check_version(step, f"step {step}")
        return batch

    def colocated(self, engines: str, trainers: str) -> None:
        """Where roles share devices: engines wake as optimizer state leaves, and the other way round."""
        if not self._config.rollout.sleep_between_phases:
            return
        self._asleep = engines == "sleep"
        calls = [(group, trainers) for group in self._crew.trainers]
        calls.insert(0 if engines == "sleep" else len(calls), (self._crew.engines.up, engines))
        for group, method in calls:
            group.run(self._patience.step_s, method, method)

    def score(self, step: int, batch: Batch) -> Prepared:
        """Sources, reference, critic and policy at one time, or in turn where they share cores."""
        crew, scoring = self._crew, self._scoring
        shards = [batch.of_rank(rank) for rank in range(len(crew.policy))]
        started = scoring.start(batch.refs)
        if self._config.cluster.take_turns:
            scoring.wait_for_models(started, f"step {step}")
        share = shares_trunk(self._config)
        trunks = crew.policy.each("encode", [(share, *shard) for shard in shards], num_returns=2)
        views = crew.policy.each("prepare", [()] * len(shards), num_returns=3)
        # Big answers stay where they are; small ones beside them say when, and whose error it was.
        names = crew.policy.names
        awaited = [(name, done) for name, (_, done) in zip(names, trunks, strict=True)]
        awaited += [(name, stats) for name, (_, _, stats) in zip(names, views, strict=True)]
        self._turn(awaited, "score", f"step {step}, log-probabilities of the policy")
        values: list[Any] = [None] * len(shards)
        if crew.critic:
            given = [trunk for trunk, _ in trunks] if share else values
            arguments = [(given[i], *shard) for i, shard in enumerate(shards)]
            answers = crew.critic.each("prepare", arguments, num_returns=2)
            values = [value for value, _ in answers]
            awaited += [(name, done) for name, (_, done) in zip(crew.critic.names, answers, strict=True)]
            self._turn(awaited, "score", f"step {step}, values")
        reference = [view[1] for view in views]
        if crew.reference:
            answers = crew.reference.in_turn("logprobs", shards, num_returns=2)
            reference = [logprobs for logprobs, _ in answers]
            names = crew.reference.names
            awaited += [(names[i % len(names)], done) for i, (_, done) in enumerate(answers)]
        sources = scoring.collect(started, f"step {step}")
        small = self._wait(awaited, "score", f"step {step}, log-probabilities")
        scores = scoring.mix(sources, f"step {step}")
        stats = small[len(shards) : 2 * len(shards)]
        return Prepared([view[0] for view in views], reference, values, stats, scores)

    def update(self, step: int, batch: Batch, prepared: Prepared, kl_coef: float) -> dict[str, float]:
        """Policy and critic at one time, or in turn; their metrics."""
        crew, ranks = self._crew, len(self._crew.policy)
        final = self._final_scores(batch, prepared.scores)
        per_rank = len(final) // ranks
        scores = [final[i * per_rank : (i + 1) * per_rank] for i in range(ranks)]
        what = f"step {step}, update"
        awaited: list[tuple[str, ray.ObjectRef]] = []
        if crew.critic:
            refs = crew.critic.each(
                "update",
                [(step, scores[i], kl_coef, prepared.logprobs[i], prepared.ref_logprobs[i]) for i in range(ranks)],
            )
            awaited = list(zip(crew.critic.names, refs, strict=True))
            self._turn(awaited, "update", what)
        refs = crew.policy.each(
            "update",
            [(step, scores[i], kl_coef, prepared.ref_logprobs[i], prepared.values[i]) for i in range(ranks)],
        )
        awaited += zip(crew.policy.names, refs, strict=True)
        answers = self._wait(awaited, "update", what)
        metrics = {"kl/coef": kl_coef, **answers[0], **answers[-1]}
        require_finite(step, metrics)
        return metrics

    def _final_scores(self, batch: Batch, scores: MixedScores) -> list[float]:
        penalty = self._config.algorithm.missing_eos_penalty
        return [s - (0.0 if info.ended else penalty) for s, info in zip(scores.mixed_B, batch.infos, strict=True)]

    def save(self, folder: Path, done: int, what: str) -> dict[str, str]:
        """All ranks write their parts of a checkpoint; then they share the work of its sums, which are returned.

        Raises OSError where a rank can't write there, RunError where one hasn't taken `done` steps, TornCheckpoint
        where the storage failed while they wrote: those that wait in that collective for the others won't come out.
        """
        ranks = {name: handle for group in self._crew.trainers for name, handle in group.by_name.items()}

        def on_all(method: str, part: str, *args: Sequence[Any]) -> list[Any]:
            refs = [
                getattr(handle, method).remote(folder, *own)
                for handle, own in zip(ranks.values(), args or [()] * len(ranks), strict=True)
            ]
            return self._wait(list(zip(ranks, refs, strict=True)), "checkpoint", f"{what}{part}")

        on_all("probe", ", can it be written", *[(done,)] * len(ranks))
        try:
            on_all("save", "")
        except Exception as error:
            if is_storage_trouble(error) and len(ranks) > 1:
                raise TornCheckpoint(f"{what}: the storage failed while the ranks wrote") from error
            raise
        parts = on_all("checksums", ", sums", *[(part, len(ranks)) for part in range(len(ranks))])
        return {name: digest for part in parts for name, digest in part.items()}

    def load(self, folder: Path) -> None:
        """Restores a checkpoint into policy and critic."""
        for group in self._crew.trainers:
            group.run(self._patience.start_s, f"loading {folder.name}", "load", folder)

    def _turn(self, started: Awaited, phase: Phase, what: str) -> None:
        """Where roles share cores, the next one waits until these are done."""
        if self._config.cluster.take_turns:
            self._wait(started, phase, what)

    def _wait(self, awaited: Awaited, phase: Phase, what: str) -> list[Any]:
        watch = self._patience.watch(phase, *self._crew.trainers, *self._crew.scorers)
        return wait_for([ref for _, ref in awaited], self._patience.step_s, what, [name for name, _ in awaited], watch)
